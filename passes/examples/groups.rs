//! Prints the channel groups of a model: `groups MODEL.onnx`.
#![allow(clippy::print_stdout, clippy::unwrap_used, missing_docs)]
use pare_graph::onnx;
use pare_passes::{Pipeline, RunOptions, analysis::groups::Groups, run};
use std::time::Instant;

fn main() {
    for path in std::env::args().skip(1) {
        let mut model = onnx::read(&path, &onnx::ReadOptions::default()).unwrap();
        let pipeline: Pipeline = "safe".parse().unwrap();
        if let Err(e) = run(&pipeline, &mut model, RunOptions::default(), &mut ()) {
            println!("{path}: {e}");
            continue;
        }
        let start = Instant::now();
        let groups = Groups::of(&model.graph);
        let time = start.elapsed();
        let open = groups.prunable().count();
        println!(
            "{path}: {} nodes, {open} groups of {}, {time:?}",
            model.graph.node_count(),
            groups.groups.len()
        );
        for g in &groups.groups {
            println!(
                "  {} {} × {} ({} axes) {}",
                g.kind.name(),
                g.width,
                g.name,
                g.members.len(),
                g.pinned.as_deref().unwrap_or("")
            );
        }
    }
}
