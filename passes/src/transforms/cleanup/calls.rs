//! The functions of a model that are called.

use crate::framework::{Context, Counter};
use pare_graph::{Function, Graph, Model, standard_domain};

/// Domain, name and overload of an operator or function.
pub(super) type Key = (String, String, String);

pub(super) fn key(domain: &str, name: &str, overload: Option<&str>) -> Key {
    (standard_domain(domain).into(), name.into(), overload.unwrap_or("").into())
}

/// Returns the functions called from the main graph, directly or through other functions.
fn calls(model: &Model) -> Vec<Key> {
    fn of(graph: &Graph, found: &mut Vec<Key>) {
        for &id in graph.nodes().iter() {
            let node = graph.node(id);
            found.push(key(node.domain(), &node.op, node.overload.as_deref()));
            node.subgraphs().for_each(|inner| of(inner, found));
        }
    }
    let mut found = vec![];
    of(&model.graph, &mut found);
    let mut seen = 0;
    while seen < model.functions.len() {
        seen += 1;
        let before = found.len();
        for f in &model.functions {
            if found.contains(&key(&f.domain, &f.name, f.overload.as_deref())) {
                let mut inner = vec![];
                of(&f.body, &mut inner);
                inner.retain(|k| !found.contains(k));
                found.extend(inner);
            }
        }
        if found.len() == before {
            break;
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
