//! Inputs and outputs of the model that belong to a block: what it remembers between runs, such as keys and values.

use crate::{
    analysis::{blocks::Block, calibration::open_inputs},
    framework::{Context, Counter},
};
use pare_graph::{Graph, Model, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The names of inputs that only this block reads, and of outputs that only it makes.
pub(super) fn own(graph: &Graph, block: &Block) -> Vec<String> {
    let mut without = graph.clone();
    let applied = block.dropped(graph).is_some_and(|patch| without.apply(patch).is_ok());
    if !applied {
        return vec![];
    }
    let made: HashSet<_> = block.outputs.iter().copied().collect();
    let mut names: Vec<_> = made.iter().map(|&v| graph.value(v).name.clone()).collect();
    remove_outputs(&mut without, &names);
    let idle = |v: &ValueId| without.use_count(*v) == 0 && graph.use_count(*v) > 0;
    names.extend(open_inputs(graph).into_iter().filter(idle).map(|v| graph.value(v).name.clone()));
    names.sort_unstable();
    names
}

fn remove_outputs(graph: &mut Graph, names: &[String]) {
    let gone: Vec<_> =
        names.iter().filter_map(|n| graph.find(n)).filter(|&v| graph.value(v).is_output()).collect();
    graph.remove_outputs(&gone);
    graph.sweep();
}

/// Take the interface of blocks that are gone out of a model, and close up the numbers of what is left.
pub(super) fn close_up(result: &mut Model, names: &[String], cx: &mut Context<'_>) {
    let graph = &mut result.graph;
    remove_outputs(graph, names);
    let idle: Vec<_> = names
        .iter()
        .filter_map(|n| graph.find(n))
        .filter(|&v| graph.value(v).is_input() && graph.use_count(v) == 0)
        .collect();
    graph.remove_inputs(&idle);
    for (old, new) in renumbered(graph, names) {
        if let Some(value) = graph.find(&old)
            && graph.rename_value(value, &new).is_ok()
        {
            cx.count(Counter::new("input or output renumbered", "inputs and outputs renumbered"), 1);
        }
    }
    if !names.is_empty() {
        cx.report
            .interface
            .push(format!("inputs and outputs are gone with their blocks: `{}`", names.join("`, `")));
    }
}

/// The places of numbers in a name.
fn numbers(name: &str) -> Vec<(&str, u64, &str)> {
    let mut found = vec![];
    let bytes = name.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let end = at + bytes[at..].iter().take_while(|b| b.is_ascii_digit()).count();
        if end > at {
            found.extend(name[at..end].parse().ok().map(|n| (&name[..at], n, &name[end..])));
        }
        at = end.max(at + 1);
    }
    found
}

/// New names for what is left of a numbered row, in an order in which each is free when its turn comes.
fn renumbered(graph: &Graph, gone: &[String]) -> Vec<(String, String)> {
    let mut rows: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    for name in gone {
        for (before, n, after) in numbers(name) {
            rows.entry((before, after)).or_default().insert(n);
        }
    }
    let mut renamed = vec![];
    for &value in graph.inputs().iter().chain(graph.outputs()) {
        let name = &graph.value(value).name;
        for (before, n, after) in numbers(name) {
            let below =
                rows.get(&(before, after)).map_or(0, |gone| gone.iter().filter(|&&g| g < n).count() as u64);
            if below > 0 {
                renamed.push((n, name.clone(), format!("{before}{}{after}", n - below)));
                break;
            }
        }
    }
    renamed.sort();
    renamed.into_iter().map(|(_, old, new)| (old, new)).collect()
}
