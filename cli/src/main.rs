//! The `pare` command: makes trained ONNX models smaller and faster, and proves it.

mod args;
mod bench;
mod calibrate;
mod config;
mod crash;
mod failure;
mod inputs;
mod inspect;
mod mask;
mod optimize;
mod passes;
mod project;
mod proof;
mod proving;
mod reduce;
mod runtime;
mod stored;
mod verify;
mod voice;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::{Done, Failure};
use std::{
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    process::ExitCode,
    sync::Mutex,
};

/// Where the last panic happened. A panic of a pass is caught and told by the runner; any other is told here.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let cli = Cli::parse();
    let voice = voice::Voice::new(cli.common.json, cli.common.quiet);
    set_hook(Box::new(|panic| {
        if let Ok(mut last) = PANIC.lock() {
            *last = panic.to_string().replace('\n', " ");
        }
    }));
    stop_cleanly();
    crash::tell();
    let ran = catch_unwind(AssertUnwindSafe(|| run(&cli, &voice))).unwrap_or_else(|_| {
        let what = PANIC.lock().map_or_else(|_| String::new(), |last| last.clone());
        Err(Failure::new(format!("this is a defect of pare: {what}")))
    });
    match ran {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::CheckFailed) => ExitCode::from(1),
        Err(failure) => {
            voice.failure(&failure);
            ExitCode::from(2)
        }
    }
}

/// Ctrl-C and SIGTERM end the command with nothing half done: what is not in its place goes.
#[allow(clippy::exit)] // there is nothing to return to
fn stop_cleanly() {
    // Without a handler the command ends all the same, and the next run clears up.
    let _ = ctrlc::set_handler(|| {
        pare_graph::onnx::abandon();
        std::process::exit(130);
    });
}

fn run(cli: &Cli, voice: &voice::Voice) -> Result<Done, Failure> {
    let common = &cli.common;
    match &cli.command {
        Command::Optimize(args) => optimize::run(args, common, voice),
        Command::Verify(args) => verify::run(args, common, voice),
        Command::Reduce(args) => reduce::run(args, common, voice),
        Command::Inspect(args) => inspect::run(args, common, voice),
        Command::Bench(args) => bench::run(args, common, voice),
        Command::Calibrate(args) => calibrate::run(args, common, voice),
        Command::Mask(args) => mask::run(args, common, voice),
        Command::Passes(args) => passes::run(args, voice),
        Command::Runtime(args) => runtime::run(args, common, voice),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "pare", &mut script);
            voice.raw(&script);
            Ok(Done::Well)
        }
    }
}
