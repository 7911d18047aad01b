//! The smallest model that still fails: delta debugging over nodes and outputs.
//!
//! After Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (2002): leave out one part after
//! another wherever the rest still fails, in ever smaller parts. Parts alone, which their `ddmin` tries first, are left
//! out of it: what fails seldom lies in one piece. What remains fails, and fails no more without any one of its nodes
//! (if the trials last).

use pare_graph::{Model, NodeId};
use std::collections::HashSet;

/// The smallest part of `model` found for which `fails` holds, in at most `trials` calls of it.
/// `fails(model)` itself should hold.
pub fn reduce(model: &Model, trials: usize, mut fails: impl FnMut(&Model) -> bool) -> Model {
    let mut left = trials;
    let mut best = model.clone();
    loop {
        let before = size(&best);
        best = fewer_nodes(best, &mut left, &mut fails);
        best = fewer_outputs(best, &mut left, &mut fails);
        if size(&best) == before || left == 0 {
            break;
        }
    }
    drop_functions(best, &mut left, &mut fails)
}

fn size(model: &Model) -> (usize, usize) {
    (model.graph.node_count(), model.graph.outputs().len())
}

fn fewer_nodes(model: Model, left: &mut usize, fails: &mut impl FnMut(&Model) -> bool) -> Model {
    let part = |nodes: &[NodeId]| {
        let mut part = model.extract_nodes(&nodes.iter().copied().collect::<HashSet<_>>())?;
        part.infer().ok()?;
        part.check().ok().map(|()| part)
    };
    let nodes = model.graph.nodes().to_vec();
    let kept = ddmin(nodes.clone(), left, &mut |nodes| part(nodes).is_some_and(|part| fails(&part)));
    if kept.len() == nodes.len() { model } else { part(&kept).unwrap_or(model) }
}

fn fewer_outputs(model: Model, left: &mut usize, fails: &mut impl FnMut(&Model) -> bool) -> Model {
    let names: Vec<_> = model.graph.outputs().iter().map(|&o| model.graph.value(o).name.clone()).collect();
    let with = |names: &[String]| model.with_outputs(|name| names.iter().any(|n| n == name));
    let kept = ddmin(names.clone(), left, &mut |names| with(names).is_some_and(|part| fails(&part)));
    if kept.len() == names.len() { model } else { with(&kept).unwrap_or(model) }
}

fn drop_functions(model: Model, left: &mut usize, fails: &mut impl FnMut(&Model) -> bool) -> Model {
    if model.functions.is_empty() || *left == 0 {
        return model;
    }
    let mut without = model.clone();
    without.functions.clear();
    if without.check().is_ok() && fails(&without) { without } else { model }
}

/// A small subset of `items` that fails: chunks that it fails without go, ever smaller ones, until each single item is
/// needed.
fn ddmin<T: Clone>(mut items: Vec<T>, left: &mut usize, fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let mut size = items.len().div_ceil(2).max(1);
    loop {
        let before = items.len();
        let mut from = 0;
        while from < items.len() && items.len() > 1 && *left > 0 {
            let to = (from + size).min(items.len());
            let rest = [&items[..from], &items[to..]].concat();
            *left -= 1;
            if !rest.is_empty() && fails(&rest) { items = rest } else { from = to }
        }
        if size > 1 {
            size = size.div_ceil(2);
        } else if items.len() == before || *left == 0 {
            // Only where some items are needed because of others can a second round find more.
            return items;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text;

    #[test]
    fn only_what_fails_together_is_left() {
        let mut tests = 0;
        let mut fails = |items: &[u32]| {
            tests += 1;
            [3, 17, 60].iter().all(|x| items.contains(x))
        };
        assert_eq!(ddmin((0..100).collect(), &mut 1000, &mut fails), [3, 17, 60]);
        // The number of items squared is the worst case.
        assert!(tests < 200, "{tests}");
    }

    #[test]
    fn a_model_shrinks_to_the_nodes_at_fault() {
        let mut lines = String::new();
        let mut last = "x".to_owned();
        for i in 0..60 {
            let op = if i == 40 { "Tanh" } else { ["Relu", "Neg", "Abs"][i % 3] };
            lines += &format!("v{i} = {op}({last}) ");
            last = format!("v{i}");
        }
        let text = format!("g (float[2] x) => (float[2] {last}, float[2] v7) {{ {lines} }}");
        let mut model = Model::of(text::parse_graph(&text, 18).unwrap());
        model.infer().unwrap();
        let has = |m: &Model, op: &str| m.graph.nodes().iter().any(|&n| m.graph.node(n).op == op);
        let small = reduce(&model, 500, |m| has(m, "Tanh") && has(m, "Relu"));
        assert_eq!(small.graph.node_count(), 2);
        small.check().unwrap();
        // Too few trials leave a model that fails all the same.
        let small = reduce(&model, 3, |m| has(m, "Tanh") && has(m, "Relu"));
        assert!(has(&small, "Tanh") && has(&small, "Relu"));
    }
}
