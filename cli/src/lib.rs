//! The `pare` command: makes trained ONNX models smaller and faster, and proves it.
//!
//! [`run`] is the command, for the program `pare` and for other programs that contain it. [`hint`] and [`event`]
//! word the remedies of errors and the events of operations, and [`json`] writes reports.

mod args;
mod bench;
mod calibrate;
mod comparison;
mod crash;
mod diff;
mod events;
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
pub use events::text as event;
use failure::{Failure, Status};
pub use hints::{Interface, text as hint};
use onnx_pare::Environment;
use std::{
    ffi::OsString,
    panic::{AssertUnwindSafe, catch_unwind, set_hook},
    sync::{Arc, Mutex},
};
use terminal::Terminal;
pub use terminal::json;

/// The last panic. The runner catches and reports the panic of a pass; any other is reported here.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Runs the command with these arguments, the first of which is its name, and returns its exit code.
///
/// It belongs to the process: it installs handlers of signals and panics, and ends the process when it is interrupted.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> u8 {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // A reader that closed the pipe is not an error.
            let _ = error.print();
            return u8::try_from(error.exit_code()).unwrap_or(2);
        }
    };
    let terminal = Arc::new(Terminal::new(&cli));
    record_panics();
    interrupt::install();
    crash::report_crashes();
    let environment = cli.common.environment(&terminal);
    let ran = catch_unwind(AssertUnwindSafe(|| dispatch(&cli.command, environment, &terminal)));
    match ran.unwrap_or_else(|_| Err(unexpected_panic())) {
        Ok(Status::Success) => 0,
        Ok(Status::CheckFailed) => 1,
        Ok(Status::Unproven) => 3,
        Err(failure) => {
            terminal.failure(&failure);
            2
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

fn dispatch(command: &Command, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
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
