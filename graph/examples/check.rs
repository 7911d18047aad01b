//! Checks and infers models and prints their cost, one line each: `check MODEL...`.

use pare_graph::{Model, onnx, ops::Bindings};
use std::time::Instant;

fn summary(path: &str) -> Result<String, String> {
    let mut model: Model =
        onnx::read(path, &onnx::ReadOptions::default()).map_err(|e| format!("read: {e}"))?;
    let start = Instant::now();
    model
        .check()
        .map_err(|e| format!("check: {e}{}", e.hint().map_or(String::new(), |h| format!(" (hint: {h})"))))?;
    let checked = start.elapsed();
    model.infer().map_err(|e| format!("infer: {e}"))?;
    model.check().map_err(|e| format!("check after infer: {e}"))?;
    let start = Instant::now();
    let cost = model.cost(&Bindings::default());
    Ok(format!(
        "{} nodes, {} params, {} bytes, {} macs, peak {} bytes, {} uncounted, {} unsized, {} guessed, {} loops (check {checked:?}, cost {:?})",
        model.graph.node_count(),
        cost.params,
        cost.bytes,
        cost.macs,
        cost.activation_peak,
        cost.uncounted,
        cost.unsized_values,
        cost.guessed_values,
        cost.loops_counted_once,
        start.elapsed()
    ))
}

#[allow(clippy::print_stdout)]
fn main() {
    for path in std::env::args().skip(1) {
        match summary(&path) {
            Ok(text) => println!("ok {path}: {text}"),
            Err(text) => println!("BAD {path}: {text}"),
        }
    }
}
