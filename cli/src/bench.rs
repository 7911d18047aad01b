//! `pare bench`.

use crate::{
    args::{BenchArgs, source},
    failure::{Failure, Status},
    format::{seconds, table},
    terminal::Terminal,
};
use onnx_pare::{BenchOptions, BenchReport, EngineOptimizations, Environment, bench};
use std::time::Duration;

pub fn run(args: &BenchArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let optimizations = match args.optimize.as_str() {
        "off" => EngineOptimizations::Off,
        "basic" => EngineOptimizations::Basic,
        "extended" => EngineOptimizations::Extended,
        _ => EngineOptimizations::All,
    };
    let min_time =
        Duration::try_from_secs_f64(args.time).map_err(|e| Failure::new(format!("`--time`: {e}")))?;
    let mut options = BenchOptions::default()
        .batch(args.batch)
        .dims(args.dims.clone())
        .rounds(args.rounds)
        .min_time(min_time)
        .optimizations(optimizations)
        .environment(environment);
    options.samples.clone_from(&args.samples);
    let models = args.models.iter().map(|path| source(path)).collect::<Result<Vec<_>, _>>()?;
    let mut report = bench(&models, &options)?;
    for (timing, path) in report.models.iter_mut().zip(&args.models) {
        timing.model = Some(path.clone());
    }
    terminal.report_with_page(&report, args.report.as_deref(), || text(&report))?;
    Ok(Status::Success)
}

fn text(report: &BenchReport) -> String {
    let rows = report.models.iter().map(|m| {
        let name = m.model.as_ref().map_or_else(String::new, |path| path.display().to_string());
        let spread = format!("{} – {}", seconds(m.low_s), seconds(m.high_s));
        let speed = format!("{:.2}× ({:.2} – {:.2})", 1.0 / m.ratio, 1.0 / m.ratio_high, 1.0 / m.ratio_low);
        vec![name, seconds(m.median_s), spread, speed]
    });
    let table = table(&["model", "median", "middle half", "speed"], rows.collect());
    let BenchReport { engine, threads, batch, rounds, .. } = report;
    format!("{table}\n{rounds} rounds, interleaved, batch {batch}, threads {threads}, in {engine}\n")
}
