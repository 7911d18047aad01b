//! Reverse-mode differentiation of a graph into a graph of ordinary operators.
//!
//! For a scalar output `L`, every value `v` on a path from a parameter to `L` has a gradient `dv = ∂L/∂v` of the
//! type and shape of `v`. The nodes are visited from `L` backwards: the rule of an operator (`rules`) adds the
//! nodes that compute the gradients of its inputs from those of its outputs, and gradients of a value that is used
//! several times are summed. Integers and booleans have none. An operator without a rule stops the gradient, with
//! a reason.
//!
//! Rules are written as equations over `term::Term`, whose operations add nodes.

mod reverse;
mod rules;
mod step;
mod term;
#[cfg(test)]
mod tests;

use indexmap::IndexMap;
use pare_graph::{DataType, InferError, Model};
use std::collections::BTreeMap;

pub use rules::operators;

/// The oldest operator set that [`differentiate`] accepts.
pub const OPSET: i64 = 18;

/// A model that computes a loss and its gradients.
#[derive(Clone, Debug)]
pub struct Differentiated {
    /// Inputs: those of the model, then the parameters, each under the name and type of its initializer, which is
    /// removed. Outputs: those of the model, the loss among them, then the gradients.
    pub model: Model,
    /// The output that is the gradient of each parameter, in the order of the request. A parameter that the loss
    /// does not depend on has none.
    pub gradients: IndexMap<String, String>,
    /// Values at which the gradient stopped, each with its reason, one sentence that names the node: no parameter
    /// before them is trained through them.
    pub stopped: Vec<String>,
}

/// The reason why a model cannot be differentiated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GradientError {
    /// The operator set is too old.
    #[error("operator set {version} has no gradients: they need {OPSET} or newer")]
    Opset {
        /// The version that the model has.
        version: i64,
    },
    /// The loss is not an output.
    #[error("the model has no output `{0}`")]
    NoOutput(String),
    /// The loss is not a floating-point number.
    #[error("the loss `{name}` is {fact}, not one number")]
    NotScalar {
        /// The output.
        name: String,
        /// Its type and shape.
        fact: String,
    },
    /// A parameter is not an initializer of the main graph.
    #[error("`{0}` is not an initializer of the main graph")]
    NotInitializer(String),
    /// A parameter does not hold floating-point numbers of at least 16 bits.
    #[error("the parameter `{name}` holds {dtype}, which has no gradient")]
    NotFloat {
        /// The initializer.
        name: String,
        /// Its element type.
        dtype: DataType,
    },
    /// Types or shapes contradict each other.
    #[error(transparent)]
    Infer(#[from] InferError),
}

/// Differentiates the scalar output `loss` with respect to initializers.
///
/// # Errors
///
/// See [`GradientError`].
pub fn differentiate(
    model: &Model,
    loss: &str,
    parameters: &[String],
) -> Result<Differentiated, GradientError> {
    differentiate_units(model, loss, parameters, &Units::new())
}

/// The units of parameters whose gradients are computed; of other parameters, all.
pub type Units = BTreeMap<String, Vec<usize>>;

/// Differentiates like [`differentiate`], but parameters that `units` names only in part.
///
/// A unit is an output channel of the layer whose weight the parameter is. The gradient holds these units only, in this
/// order, along their axis; that of a layer whose rule cannot leave any out, or of a parameter with several users, holds
/// all. A parameter without units is an input that has no gradient, and what only it needs is not computed.
///
/// # Errors
///
/// See [`GradientError`].
pub fn differentiate_units(
    model: &Model,
    loss: &str,
    parameters: &[String],
    units: &Units,
) -> Result<Differentiated, GradientError> {
    reverse::differentiate(model, loss, parameters, units)
}

/// Returns true for the element types that gradients have.
fn carries(dtype: DataType) -> bool {
    matches!(dtype, DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16)
}
