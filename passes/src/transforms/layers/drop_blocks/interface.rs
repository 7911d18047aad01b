//! Inputs and outputs of the model that belong to a block, such as cached keys and values.

use crate::{
    analysis::{blocks::Block, calibration::open_inputs},
    framework::{Context, Counter, InterfaceChange},
};
use pare_graph::{Graph, Model, ValueId};
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The names of the inputs that only this block reads, and of the outputs that it produces.
pub(super) fn own(graph: &Graph, block: &Block) -> Vec<String> {
    let mut without = graph.clone();
    let applied = block.dropped(graph).is_some_and(|patch| without.apply(patch).is_ok());
    if !applied {
        return vec![];
    }
    let outputs: HashSet<_> = block.outputs.iter().copied().collect();
    let mut names: Vec<_> = outputs.iter().map(|&v| graph.value(v).name.clone()).collect();
    remove_outputs(&mut without, &names);
    let unused = |v: &ValueId| without.use_count(*v) == 0 && graph.use_count(*v) > 0;
    names.extend(open_inputs(graph).into_iter().filter(unused).map(|v| graph.value(v).name.clone()));
    names.sort_unstable();
    names
}

fn remove_outputs(graph: &mut Graph, names: &[String]) {
    let outputs: Vec<_> =
        names.iter().filter_map(|n| graph.find(n)).filter(|&v| graph.value(v).is_output()).collect();
    graph.remove_outputs(&outputs);
    graph.sweep();
}

/// Removes the interface of removed blocks, and renumbers the remaining inputs and outputs.
pub(super) fn close_up(result: &mut Model, names: &[String], cx: &mut Context<'_>) {
    let graph = &mut result.graph;
    remove_outputs(graph, names);
    let unused: Vec<_> = names
        .iter()
        .filter_map(|n| graph.find(n))
        .filter(|&v| graph.value(v).is_input() && graph.use_count(v) == 0)
        .collect();
    graph.remove_inputs(&unused);
    for (old, new) in renumbered(graph, names) {
        if let Some(value) = graph.find(&old)
            && graph.rename_value(value, &new).is_ok()
        {
            cx.count(Counter::new("input or output renumbered", "inputs and outputs renumbered"), 1);
        }
    }
    if !names.is_empty() {
        let removed = format!("removed with their blocks: `{}`", names.join("`, `"));
        cx.report.interface.push(InterfaceChange::Other(removed));
    }
}

/// The numbers in a name, each with the text before and after it.
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

/// New names for the remaining inputs and outputs of a numbered row, in an order in which each new name is
/// free.
fn renumbered(graph: &Graph, removed: &[String]) -> Vec<(String, String)> {
    let mut rows: BTreeMap<(&str, &str), BTreeSet<u64>> = BTreeMap::new();
    for name in removed {
        for (before, n, after) in numbers(name) {
            rows.entry((before, after)).or_default().insert(n);
        }
    }
    let mut renamed = vec![];
    for &value in graph.inputs().iter().chain(graph.outputs()) {
        let name = &graph.value(value).name;
        for (before, n, after) in numbers(name) {
            let below =
                rows.get(&(before, after)).map_or(0, |row| row.iter().filter(|&&m| m < n).count() as u64);
            if below > 0 {
                renamed.push((n, name.clone(), format!("{before}{}{after}", n - below)));
                break;
            }
        }
    }
    renamed.sort();
    renamed.into_iter().map(|(_, old, new)| (old, new)).collect()
}
