//! The program `pare`.

use std::process::ExitCode;

fn main() -> ExitCode {
    onnx_pare_cli::run(std::env::args_os()).into()
}
