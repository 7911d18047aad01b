//! The `pare` command: makes trained ONNX models smaller and faster, and proves it.

mod args;
mod bench;
mod calibrate;
mod comparison;
mod crash;
mod diff;
mod failure;
mod format;
mod hints;
mod inspect;
mod interrupt;
mod mask;
mod optimize;
mod passes;
mod project;
mod reduce;
mod runtime;
mod search;
mod terminal;
mod values;
mod verify;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::{Failure, Status};
use onnx_pare::Environment;
use std::{
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    process::ExitCode,
    sync::{Arc, Mutex},
};
use terminal::Terminal;

/// The last panic. The runner catches and reports the panic of a pass; any other is reported here.
static PANIC: Mutex<String> = Mutex::new(String::new());

fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Arc::new(Terminal::new(&cli));
    record_panics();
    interrupt::install();
    crash::report_crashes();
    let environment = cli.common.environment(&terminal);
    let ran = catch_unwind(AssertUnwindSafe(|| run(&cli.command, environment, &terminal)));
    match ran.unwrap_or_else(|_| Err(unexpected_panic())) {
        Ok(Status::Success) => ExitCode::SUCCESS,
        Ok(Status::CheckFailed) => ExitCode::from(1),
        Ok(Status::Unproven) => ExitCode::from(3),
        Err(failure) => {
            terminal.failure(&failure);
            ExitCode::from(2)
        }
    }
}

/// Keeps the message of a panic instead of printing it.
fn record_panics() {
    set_hook(Box::new(|panic| {
        if let Ok(mut last) = PANIC.lock() {
            *last = panic.to_string().replace('\n', " ");
        }
    }));
}

fn unexpected_panic() -> Failure {
    let message = PANIC.lock().map_or_else(|_| String::new(), |last| last.clone());
    Failure::new(format!("this is a defect of pare: {message}"))
}

fn run(command: &Command, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    match command {
        Command::Optimize(args) => optimize::run(args, environment, terminal),
        Command::Search(args) => search::run(args, environment, terminal),
        Command::Verify(args) => verify::run(args, environment, terminal),
        Command::Diff(args) => diff::run(args, terminal),
        Command::Reduce(args) => reduce::run(args, environment, terminal),
        Command::Inspect(args) => inspect::run(args, environment, terminal),
        Command::Bench(args) => bench::run(args, environment, terminal),
        Command::Calibrate(args) => calibrate::run(args, environment, terminal),
        Command::Mask(args) => mask::run(args, environment, terminal),
        Command::Passes(args) => passes::run(args, terminal),
        Command::Runtime(args) => runtime::run(args, environment, terminal),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(*shell, &mut Cli::command(), "pare", &mut script);
            terminal.write(&script);
            Ok(Status::Success)
        }
    }
}
