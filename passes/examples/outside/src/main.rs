//! A pass declared outside the workspace, in a pipeline with built-in passes.
//!
//! `cargo run --manifest-path passes/examples/outside/Cargo.toml -- in.onnx out.onnx`

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command-line program

use pare_graph::{Decline, Model, NodeRef, Patch, ValueRef, expect, onnx};
use pare_passes::{Context, Pass, PassError, Pipeline, RunOptions, pass, run};
use std::{env::args, error::Error, process::ExitCode};

pass! {
    /// Drop a negation of a negation.
    ///
    /// `-(-x) = x`, to the bit.
    ///
    /// Declines if the result is a graph output and `x` an input or output, which keep their names.
    #[pass("drop-double-negation", Exact, "double negation dropped", "double negations dropped")]
    pub struct DropDoubleNegation {}
}

impl Pass for DropDoubleNegation {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Neg"], double_negation)
    }
}

fn double_negation(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Neg"))?;
    let (inner, y): (NodeRef<'_>, ValueRef<'_>) = (at.input(0)?.produced_by("Neg")?, at.output()?);
    let x = inner.input(0)?;
    if y.value().is_output() && (x.value().is_input() || x.value().is_output()) {
        return Err(Decline::because(format!("`{}` and `{}` are inputs or outputs", x.name(), y.name())));
    }
    let mut patch = Patch::at(at);
    patch.replace(y, x);
    Ok(patch)
}

fn main() -> ExitCode {
    let paths: Vec<_> = args().skip(1).collect();
    let [input, output] = &paths[..] else {
        eprintln!("usage: outside IN.onnx OUT.onnx");
        return ExitCode::from(2);
    };
    match improve(input, output) {
        Ok(dropped) => {
            println!("{dropped} changes");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

fn improve(input: &str, output: &str) -> Result<u64, Box<dyn Error>> {
    let mut model = onnx::read(input, &onnx::ReadOptions::default())?;
    let mut pipeline: Pipeline = "drop-noops".parse()?;
    pipeline.push(DropDoubleNegation {});
    let report = run(&pipeline, &mut model, RunOptions::default(), &mut ())?;
    onnx::write(&model, output, &onnx::WriteOptions::default())?;
    Ok(report.patches())
}
