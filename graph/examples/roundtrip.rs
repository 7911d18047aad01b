//! Read a model and write it again: `roundtrip IN OUT`. The two differ in no field.
//!
//! With `--list`, pairs of paths come on stdin, separated by tabs, one pair a line.

use pare_graph::onnx::{ReadOptions, WriteOptions, read, write};
use std::{error::Error, io};

fn roundtrip(from: &str, to: &str) -> Result<(), Box<dyn Error>> {
    let model = read(from, &ReadOptions::default())?;
    write(&model, to, &WriteOptions { sync: false, ..WriteOptions::default() })?;
    Ok(())
}

#[allow(clippy::print_stderr)]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [list] if list == "--list" => {
            for line in io::stdin().lines() {
                let line = line?;
                let (from, to) = line.split_once('\t').ok_or("a line is `IN<tab>OUT`")?;
                if let Err(error) = roundtrip(from, to) {
                    eprintln!("{from}: {error}");
                }
            }
            Ok(())
        }
        [from, to] => roundtrip(from, to),
        _ => Err("usage: roundtrip IN OUT, or roundtrip --list".into()),
    }
}
