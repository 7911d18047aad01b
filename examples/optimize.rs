//! Optimizes a model, and prints the report: `cargo run -p onnx-pare --example optimize -- model.onnx
//! small.onnx`.
//!
//! With `--no-default-features` no engine is compiled in, and the result is not proven.

#![allow(clippy::print_stdout)]

use onnx_pare::{OptimizeOptions, Outcome, Progress, optimize};
use std::{env, error::Error, path::PathBuf};

/// Prints the passes as they run.
struct Log;

impl Progress for Log {
    fn after_pass(&self, pass: &str, _: &onnx_pare::Model) {
        println!("{pass}");
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = env::args().skip(1).map(PathBuf::from);
    let (Some(input), Some(output)) = (args.next(), args.next()) else {
        return Err("usage: optimize INPUT OUTPUT".into());
    };
    let environment = onnx_pare::Environment::default().progress(Log);
    let mut small = optimize(input, OptimizeOptions::from("safe").environment(environment))?;
    small.write(&output)?;
    let (before, after) = (small.report.before, small.report.after);
    println!(
        "{} of {} nodes, {} of {} parameters",
        after.nodes, before.nodes, after.parameters, before.parameters
    );
    match small.report.proof.as_ref().map(|proof| proof.overall.outcome()) {
        Some(Outcome::Equal) => println!("proven equal"),
        Some(Outcome::Unproven { why }) => println!("not proven: {why}"),
        other => println!("{other:?}"),
    }
    Ok(())
}
