//! Sequential repair: refits each linear operator in topological order to reproduce the original's outputs
//! from the changed model's inputs.
//!
//! Each operator is fitted by ridge regression: `x` comes from the changed model, whose operators before it
//! are final already, and `y` from the original (*asymmetric* reconstruction). Where the output is added to a
//! value that is final already, the fit also compensates the error of that value:
//! `y = sum_original − addend_changed`. Where a ReLU (or `Clip`) follows, only the part within its bounds
//! counts: for some rounds, the target of an element that the original clips is the current output of the
//! fit, if that is clipped too.

mod fit;
mod frontier;
mod rows;
mod target;

use crate::{
    analysis::calibration::{NotFinite, batches, bytes_per_sample},
    framework::{PassError, Tools},
};
use frontier::Frontier;
use pare_graph::{Graph, Model, NodeId, Patch, ValueId};
use rows::{ModelAt, TrainingRows};
use std::{collections::HashSet, ops::Range};
use target::Target;

/// A linear operator of the changed model that is to be refitted.
#[derive(Clone, Debug)]
pub struct Refit {
    /// The node; of a `MatMul` with a bias added after it, the `MatMul`.
    pub node: NodeId,
    /// The value of the original that the output is fitted to.
    pub target: ValueId,
    /// The value of the original that the sum of the output and its addend is fitted to; by default the sum
    /// that the target is a term of. Where it is the target itself, the output is fitted only as a term of
    /// the sum.
    pub sum: Option<ValueId>,
    /// Channels of the target that the operator still produces, ascending; `None`: all.
    pub kept: Option<Vec<usize>>,
    /// Weights that are fitted, `[groups, O, D]` row-major; the others keep their value, such as zero.
    /// `None`: all. With `output_transform`, entries of `T`, `[groups, O, O]`.
    pub free: Option<Vec<bool>>,
    /// Fit only a transform of the current output, `W' = T·W` (ReplaceMe): `O²` parameters a group.
    pub output_transform: bool,
}

/// Options of a repair by least squares.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RepairOptions {
    /// The ridge `λ`.
    pub ridge: RidgeChoice,
    /// Rounds that take a following activation into account.
    pub rounds: usize,
}

/// The ridge `λ` of a fit, as a share of the mean variance of the inputs. It draws weights toward their current
/// values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RidgeChoice {
    /// The same for all operators.
    Fixed(f64),
    /// Chosen from these for each group of an operator: the one with the least error on the last quarter of the rows,
    /// after a fit to the others. For few samples, where a fit with too small a ridge overfits.
    Validated(&'static [f64]),
}

impl RepairOptions {
    /// The given ridge, and four rounds: further rounds change little.
    pub fn new(lambda: f64) -> Self {
        Self { ridge: RidgeChoice::Fixed(lambda), rounds: 4 }
    }
}

/// A repair of a changed model after an original. Values of the two models correspond by name.
pub struct Repair<'a> {
    /// The engine and the samples.
    pub tools: Tools<'a>,
    /// The original model.
    pub original: &'a Model,
    /// The operators to refit, in topological order. Those whose weights have other users are skipped.
    pub refits: &'a [Refit],
    /// The samples that are fitted to.
    pub samples: Range<usize>,
}

#[derive(Clone, Copy)]
enum Method {
    LeastSquares(RepairOptions),
    Moments,
}

impl Repair<'_> {
    /// Refits the operators one after another by least squares, each on the current outputs of those before
    /// it.
    ///
    /// # Errors
    /// If the model cannot be run, or if activations are not finite.
    pub fn refit(&self, changed: &mut Model, options: RepairOptions) -> Result<(), PassError> {
        self.run(changed, Method::LeastSquares(options))
    }

    /// Scales and shifts each output of the operators, one operator after another, to its mean and variance
    /// in the original, as recomputing the statistics of batch norms does.
    ///
    /// # Errors
    /// If the model cannot be run, or if activations are not finite.
    pub fn match_moments(&self, changed: &mut Model) -> Result<(), PassError> {
        self.run(changed, Method::Moments)
    }

    fn run(&self, changed: &mut Model, method: Method) -> Result<(), PassError> {
        let graph = &self.original.graph;
        let targets = |refits: &[Refit]| -> Vec<_> {
            refits.iter().flat_map(|r| [Some(r.target), r.sum]).flatten().collect()
        };
        let sizes = self.tools.sizes(graph);
        let bytes = |v| bytes_per_sample(graph, v, &sizes);
        let bytes = targets(self.refits).into_iter().map(bytes).max().unwrap_or(0);
        let batches = batches(graph, self.samples.clone(), 4 * bytes, self.tools.memory);
        let total = self.refits.len() as u64;
        let (mut before, mut after) = (Frontier::new(graph), Frontier::new(&changed.graph));
        for (i, refit) in self.refits.iter().enumerate() {
            self.tools.progress.step("repair", i as u64, total);
            let Some(mut target) = Target::of(graph, &changed.graph, refit, &self.refits[i..]) else {
                continue;
            };
            if let Method::Moments = method {
                (target.value, target.addend) = (refit.target, None);
            }
            let later = targets(&self.refits[i + 1..]);
            let original = ModelAt { model: self.original, frontier: &mut before };
            let current = ModelAt { model: changed, frontier: &mut after };
            let rows = TrainingRows::gather(self.tools, original, current, &target, &later, &batches)?;
            let maps = match method {
                Method::LeastSquares(options) => fit::least_squares(&changed.graph, &target, &rows, options),
                Method::Moments => fit::matching_moments(&changed.graph, &target, &rows),
            };
            let maps = maps.map_err(|e| not_finite(&changed.graph, refit.node, e))?;
            let mut patch = Patch::anchored(refit.node);
            let bias: Vec<_> = maps.iter().flat_map(|m| m.bias.iter().copied()).collect();
            let weights: Vec<_> = maps.into_iter().map(|m| m.weight).collect();
            if target.linear.store(&changed.graph, &mut patch, &weights, &bias).is_some() {
                changed.graph.apply(patch).map_err(PassError::from_error)?;
            }
        }
        self.tools.progress.step("repair", total, total);
        Ok(())
    }
}

/// The error for an operator that cannot be fitted.
pub(crate) fn not_finite(graph: &Graph, node: NodeId, error: NotFinite) -> PassError {
    PassError::refused(format!("{}: {error}", graph.describe(node)))
}

/// Returns all values that depend on these nodes.
pub(crate) fn dependents(graph: &Graph, nodes: &HashSet<NodeId>) -> HashSet<ValueId> {
    graph.downstream(nodes.iter().copied()).into_iter().flat_map(|node| graph.results(node)).collect()
}
