//! Composites compared with an independent reference.

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

/// The largest difference of two arrays, relative to the largest element.
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

/// The number of nodes with this operator.
fn count(graph: &Graph, op: &str) -> usize {
    graph.nodes().iter().filter(|&&id| graph.node(id).is(op)).count()
}

/// Runs the pass and compares the result with the reference.
fn exact(net: &Net, by: By) -> Graph {
    let (after, _) = folded(&net.graph, by);
    let before = reference::run(&net.graph, &net.input);
    let distance = distance(&before, &reference::run(&after, &net.input));
    assert!(distance <= 1e-12, "{distance:e} apart\n{}", testing::brief(&net.graph));
    after
}
