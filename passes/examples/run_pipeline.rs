//! Runs a pipeline over a model without verification and prints the report of each pass:
//! `run_pipeline IN OUT PIPELINE`.
//!
//! With `--list PIPELINE`, reads tab-separated pairs of paths from stdin, one pair per line.

use pare_graph::onnx::{ReadOptions, WriteOptions, read, write};
use pare_passes::{Pipeline, Report, RunOptions, run};
use std::{error::Error, io, time::Instant};

fn optimize(from: &str, to: &str, pipeline: &Pipeline) -> Result<Report, Box<dyn Error>> {
    let mut model = read(from, &ReadOptions::default())?;
    let report = run(pipeline, &mut model, RunOptions::default(), &mut ())?;
    write(&model, to, &WriteOptions { sync: false, ..WriteOptions::default() })?;
    Ok(report)
}

#[allow(clippy::print_stdout)]
fn print(report: &Report) {
    for step in &report.steps {
        println!(
            "{:<18}{:>6} patches {:>9.1?}  {:?}",
            step.pass,
            step.patches,
            step.time,
            step.counts().collect::<Vec<_>>()
        );
        for (why, places) in step.declined() {
            println!("{:>24} {why}", format!("{places} ×"));
        }
    }
    println!("{} rounds{}", report.rounds, if report.unfinished { ", not finished" } else { "" });
}

#[allow(clippy::print_stderr, clippy::print_stdout)]
fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match &arguments[..] {
        [list, pipeline] if list == "--list" => {
            let pipeline: Pipeline = pipeline.parse()?;
            for line in io::stdin().lines() {
                let line = line?;
                let (from, to) = line.split_once('\t').ok_or("a line is `IN<tab>OUT`")?;
                if let Err(error) = optimize(from, to, &pipeline) {
                    eprintln!("{from}: {error}");
                }
            }
            Ok(())
        }
        [from, to, pipeline] => {
            let start = Instant::now();
            print(&optimize(from, to, &pipeline.parse()?)?);
            println!("{:.1?} in all", start.elapsed());
            Ok(())
        }
        _ => Err("usage: optimize IN OUT PIPELINE, or optimize --list PIPELINE".into()),
    }
}
