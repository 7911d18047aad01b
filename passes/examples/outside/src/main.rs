//! A pass written outside of `pare`: it runs in a pipeline with the others.
//!
//! `cargo run --manifest-path passes/examples/outside/Cargo.toml -- in.onnx out.onnx`

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command of its own

use pare_graph::{Decline, Model, NodeRef, Patch, ValueRef, expect, onnx};
use pare_passes::{Context, Counter, Pass, PassError, Pipeline, RunOptions, pass, run};
use std::{env::args, error::Error, process::ExitCode};

pass! {
    /// Drop a negation of a negation.
    ///
    /// `-(-x) = x`, to the bit.
    ///
    /// Declines where `x` is an input or output of the model: interfaces keep nodes of their own.
    #[pass("drop-double-negation", Exact)]
    pub struct DropDoubleNegation {}
}

impl Pass for DropDoubleNegation {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let before = cx.report.patches;
        cx.rewrite(model, &["Neg"], negated_twice)?;
        let dropped = cx.report.patches - before;
        cx.count(Counter::new("double negation dropped", "double negations dropped"), dropped);
        Ok(())
    }
}

fn negated_twice(at: NodeRef<'_>) -> Result<Patch, Decline> {
    expect(at.is("Neg"))?;
    let (inner, y): (NodeRef<'_>, ValueRef<'_>) = (at.input(0)?.produced_by("Neg")?, at.output()?);
    let x = inner.input(0)?;
    if y.value().is_output() && (x.value().is_input() || x.value().is_output()) {
        return Err(Decline::because(format!("`{}` is the interface", x.name())));
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
