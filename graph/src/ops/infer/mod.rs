//! Inference of element types and symbolic shapes.
//!
//! Facts are propagated through the nodes in topological order. Each operator has a rule ([`rules`]), which
//! computes the facts of the outputs from those of the inputs ([`cx::Cx`]), or returns a contradiction.
//! Elements of short integer tensors (their content) are propagated as well, since shapes are computed from
//! them. Facts that no rule determines are taken from the declarations of the file.

// All rules have the same signature, including those that cannot fail.
#![allow(clippy::unnecessary_wraps)]

mod attention;
mod call;
mod content;
mod control;
mod create;
mod cx;
mod dims;
mod elementwise;
mod engine;
mod matmul;
mod microsoft;
mod ml;
mod norm;
mod pieces;
mod quantize;
mod reduce;
mod reshape;
mod resize;
mod rnn;
mod rules;
mod sequence;
mod signal;
mod window;

use crate::{Fact, Function, Graph, Model, NodeId};
use engine::Engine;

/// A contradiction between types or shapes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {why}")]
pub struct InferError {
    /// Operator and name of the node.
    pub node: String,
    /// The contradiction.
    pub why: String,
}

impl Model {
    /// Infers all facts from scratch: of the main graph from its declared inputs and constants, of subgraphs
    /// from their arguments, and of function bodies from the common facts of all calls.
    ///
    /// If the declared shape of an output contradicts the inferred one from the beginning, the inferred one
    /// is used.
    ///
    /// # Errors
    ///
    /// Facts that contradict each other or the declared type of an output of the model. The set facts are
    /// unspecified then.
    pub fn infer(&mut self) -> Result<(), InferError> {
        let mut engine = Engine::new(&self.functions);
        engine.main(&mut self.graph)?;
        let bodies = engine.bodies();
        for (function, body) in self.functions.iter_mut().zip(bodies) {
            function.body = body;
        }
        Ok(())
    }
}

impl Graph {
    /// Infers all facts from scratch, from inputs, constants and these functions.
    ///
    /// # Errors
    ///
    /// As [`Model::infer`].
    pub fn infer_with(&mut self, functions: &[Function]) -> Result<(), InferError> {
        Engine::new(functions).main(self)
    }

    /// Infers all facts again after a change of the graph. Inputs and captured values keep their facts, which
    /// an outer graph may have refined. Outputs of nodes without a rule (such as calls of functions) keep
    /// theirs if the facts of their inputs did not change.
    ///
    /// # Errors
    ///
    /// As [`Model::infer`].
    pub fn reinfer(&mut self) -> Result<(), InferError> {
        Engine::new(&[]).again(self)
    }

    /// Infers the outputs of one node from its inputs. Known facts are kept where the inferred ones
    /// contradict them.
    pub fn infer_node(&mut self, node: NodeId) {
        let Ok(Some(facts)) = Engine::new(&[]).node(self, node) else { return };
        for (output, fact) in self.outputs_of(node).into_iter().zip(facts) {
            let Some(output) = output else { continue };
            if let Some(fact) = self.value(output).fact.unify(&fact).filter(|f| *f != Fact::Unknown) {
                self.set_fact(output, fact);
            }
        }
    }
}
