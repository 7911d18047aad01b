//! `safe` against other tools: on each graph of `peers.txt` it leaves no more nodes than their passes do.

use crate::support::{after, brief, same_outputs};
use pare_graph::{Model, text};
use pare_passes::Effect;

/// Checks one graph of the list.
fn no_more_than(nodes: usize, source: &str) -> Result<(), String> {
    let model = Model::of(text::parse_graph(source, 17).map_err(|e| e.to_string())?);
    let (changed, _) = after(&"safe".parse().unwrap(), &model)?;
    if changed.node_count() > nodes {
        return Err(format!("{} nodes instead of {nodes} in\n{}", changed.node_count(), brief(&changed)));
    }
    same_outputs(&model, &changed, Effect::Rounding, 2)
}

#[test]
fn safe_leaves_no_more_nodes_than_other_tools() {
    let list = include_str!("../peers.txt");
    let (mut seen, mut short) = (0, vec![]);
    for case in list.split("\n\n").skip(1) {
        let (head, source) = case.split_once('\n').unwrap();
        let (pass, nodes) = head.split_once(' ').unwrap();
        seen += 1;
        if let Err(why) = no_more_than(nodes.parse().unwrap(), source) {
            short.push(format!("{pass}: {why}"));
        }
    }
    assert_eq!(seen, 61);
    assert!(short.is_empty(), "{}", short.join("\n"));
}
