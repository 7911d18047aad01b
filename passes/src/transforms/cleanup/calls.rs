//! The functions of a model that are called.

use crate::framework::{Context, Counter};
use pare_graph::{Function, Graph, Model, standard_domain};
use std::collections::{HashMap, HashSet};

/// Domain, name and overload of an operator or function.
pub(super) type Key = (String, String, String);

pub(super) fn key(domain: &str, name: &str, overload: Option<&str>) -> Key {
    (standard_domain(domain).into(), name.into(), overload.unwrap_or("").into())
}

/// The functions called from the main graph, directly or through other functions, among other operators.
fn calls(model: &Model) -> HashSet<Key> {
    fn of(graph: &Graph, found: &mut Vec<Key>) {
        for &id in graph.nodes().iter() {
            let node = graph.node(id);
            found.push(key(node.domain(), &node.op, node.overload.as_deref()));
            node.subgraphs().for_each(|inner| of(inner, found));
        }
    }
    let bodies: HashMap<_, _> =
        model.functions.iter().map(|f| (key(&f.domain, &f.name, f.overload.as_deref()), &f.body)).collect();
    let (mut found, mut queue) = (HashSet::new(), vec![]);
    of(&model.graph, &mut queue);
    while let Some(call) = queue.pop() {
        if !found.contains(&call) {
            bodies.get(&call).into_iter().for_each(|body| of(body, &mut queue));
            found.insert(call);
        }
    }
    found
}

/// Removes the functions that are never called.
pub(super) fn drop_uncalled(model: &mut Model, cx: &mut Context<'_>) {
    if model.functions.is_empty() {
        return;
    }
    let called = calls(model);
    let used = |f: &Function| called.contains(&key(&f.domain, &f.name, f.overload.as_deref()));
    let dropped = model.functions.iter().filter(|f| !used(f)).count();
    if dropped > 0 && cx.permit() {
        model.functions.retain(used);
        cx.count(Counter::new("function dropped", "functions dropped"), dropped as u64);
    }
}
