//! Composites against a reference that knows nothing of them.

mod build;
mod chains;
mod engine;
mod forms;
mod reference;

use super::{By, FoldLinear};
use crate::framework::{Report, testing};
use build::Net;
use pare_graph::{Graph, Model};
use reference::Array;

/// Largest difference of two arrays by the largest element.
fn distance(a: &Array, b: &Array) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let most = |v: f64, x: &f64| v.max(x.abs());
    (a - b).iter().fold(0.0, most) / a.iter().fold(f64::MIN_POSITIVE, most)
}

/// The graph after the pass, with its report.
fn folded(graph: &Graph, by: By) -> (Graph, Report) {
    let mut model = Model::of(graph.clone());
    let report = testing::run_pass(FoldLinear { by }, &mut model);
    (model.graph, report)
}

/// How often the operators appear.
fn count(graph: &Graph, op: &str) -> usize {
    graph.nodes().iter().filter(|&&id| graph.node(id).is(op)).count()
}

/// Folds, and holds the result to the reference.
fn exact(net: &Net, by: By) -> Graph {
    let (after, _) = folded(&net.graph, by);
    let before = reference::run(&net.graph, &net.input);
    let distance = distance(&before, &reference::run(&after, &net.input));
    assert!(distance <= 1e-12, "{distance:e} apart\n{}", testing::brief(&net.graph));
    after
}
