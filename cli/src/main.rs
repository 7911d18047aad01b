//! The `pare` command: makes trained ONNX models smaller and faster, and proves it.

mod args;
mod bench;
mod calibrate;
mod failure;
mod inputs;
mod inspect;
mod mask;
mod optimize;
mod passes;
mod proof;
mod runtime;
mod stored;
mod verify;
mod voice;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use failure::{Done, Failure};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let voice = voice::Voice::new(cli.common.json, cli.common.quiet);
    match run(&cli, &voice) {
        Ok(Done::Well) => ExitCode::SUCCESS,
        Ok(Done::CheckFailed) => ExitCode::from(1),
        Err(failure) => {
            voice.failure(&failure);
            ExitCode::from(2)
        }
    }
}

fn run(cli: &Cli, voice: &voice::Voice) -> Result<Done, Failure> {
    let common = &cli.common;
    match &cli.command {
        Command::Optimize(args) => optimize::run(args, common, voice),
        Command::Verify(args) => verify::run(args, common, voice),
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
