//! Delta debugging: the smallest part of a model that still fails.
//!
//! After Zeller and Hildebrandt, "Simplifying and isolating failure-inducing input" (2002): removes ever
//! smaller chunks of nodes and outputs as long as the rest still fails. Their `ddmin` also tries the chunks
//! by themselves; this is omitted, as the nodes of a failure are seldom adjacent. The result is 1-minimal, if
//! the candidates suffice: without any one of its nodes it does not fail.

use pare_graph::{Model, NodeId};
use std::collections::HashSet;

/// Returns the smallest part of `model` for which `fails` holds that is found with `candidates` calls of it
/// at most. `fails(model)` must hold.
pub(crate) fn reduce(model: &Model, candidates: usize, mut fails: impl FnMut(&Model) -> bool) -> Model {
    let mut budget = candidates;
    let mut best = model.clone();
    loop {
        let before = size(&best);
        best = fewer_nodes(best, &mut budget, &mut fails);
        best = fewer_outputs(best, &mut budget, &mut fails);
        if size(&best) == before || budget == 0 {
            break;
        }
    }
    drop_functions(best, &mut budget, &mut fails)
}

fn size(model: &Model) -> (usize, usize) {
    (model.graph.node_count(), model.graph.outputs().len())
}

fn fewer_nodes(model: Model, budget: &mut usize, fails: &mut impl FnMut(&Model) -> bool) -> Model {
    let part = |nodes: &[NodeId]| {
        let mut part = model.extract_nodes(&nodes.iter().copied().collect::<HashSet<_>>())?;
        part.infer().ok()?;
        part.check().ok().map(|()| part)
    };
    let nodes = model.graph.nodes().to_vec();
    let kept = ddmin(nodes.clone(), budget, &mut |nodes| part(nodes).is_some_and(|part| fails(&part)));
    if kept.len() == nodes.len() { model } else { part(&kept).unwrap_or(model) }
}

fn fewer_outputs(model: Model, budget: &mut usize, fails: &mut impl FnMut(&Model) -> bool) -> Model {
    let names: Vec<_> = model.graph.outputs().iter().map(|&o| model.graph.value(o).name.clone()).collect();
    let with = |names: &[String]| model.with_outputs(|name| names.iter().any(|n| n == name));
    let kept = ddmin(names.clone(), budget, &mut |names| with(names).is_some_and(|part| fails(&part)));
    if kept.len() == names.len() { model } else { with(&kept).unwrap_or(model) }
}

fn drop_functions(model: Model, budget: &mut usize, fails: &mut impl FnMut(&Model) -> bool) -> Model {
    if model.functions.is_empty() || *budget == 0 {
        return model;
    }
    let mut without = model.clone();
    without.functions.clear();
    if without.check().is_ok() && fails(&without) { without } else { model }
}

/// Returns a 1-minimal subset of `items` that fails: removes ever smaller chunks without which it still
/// fails.
fn ddmin<T: Clone>(mut items: Vec<T>, budget: &mut usize, fails: &mut dyn FnMut(&[T]) -> bool) -> Vec<T> {
    let mut size = items.len().div_ceil(2).max(1);
    loop {
        let before = items.len();
        let mut from = 0;
        while from < items.len() && items.len() > 1 && *budget > 0 {
            let to = (from + size).min(items.len());
            let rest = [&items[..from], &items[to..]].concat();
            *budget -= 1;
            if !rest.is_empty() && fails(&rest) { items = rest } else { from = to }
        }
        if size > 1 {
            size = size.div_ceil(2);
        } else if items.len() == before || *budget == 0 {
            // A further round can remove more only if some items were needed because of others.
            return items;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text;

    #[test]
    fn keeps_the_items_that_fail_together() {
        let mut tests = 0;
        let mut fails = |items: &[u32]| {
            tests += 1;
            [3, 17, 60].iter().all(|x| items.contains(x))
        };
        assert_eq!(ddmin((0..100).collect(), &mut 1000, &mut fails), [3, 17, 60]);
        // The worst case is the square of the number of items.
        assert!(tests < 200, "{tests}");
    }

    #[test]
    fn keeps_the_nodes_at_fault() {
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
        // With too few candidates the result is larger, but fails too.
        let small = reduce(&model, 3, |m| has(m, "Tanh") && has(m, "Relu"));
        assert!(has(&small, "Tanh") && has(&small, "Relu"));
    }
}
