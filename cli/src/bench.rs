//! `pare bench`: how long models take.

use crate::{
    args::{BenchArgs, Common},
    failure::{Done, Failure},
    inputs::{self, Engines},
    voice::{self, Voice},
};
use pare_runtime::{
    Contender, Feed, LoadOptions, Optimize, Stopwatch, bench, generate, input_specs, symbol_plans,
};
use serde_json::json;
use std::{path::Path, time::Duration};

/// Different inputs that are run in turn, so that no single one decides.
const FEEDS: usize = 4;
/// Given samples that are run in turn, taken evenly from all: what a model does may depend on them.
const GIVEN: usize = 64;

pub fn run(args: &BenchArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let engines = Engines::new(common, voice);
    let optimize = match args.optimize.as_str() {
        "off" => Optimize::Off,
        "basic" => Optimize::Basic,
        "extended" => Optimize::Extended,
        _ => Optimize::All,
    };
    // One thread unless asked: what is compared are models, not schedulers.
    let threads = if common.threads == 0 { 1 } else { common.threads };
    let options = LoadOptions { threads, ..engines.load_options() }.with_optimize(optimize);
    let first = inputs::model(&args.models[0])?;
    let feeds = feeds(args.samples.as_deref(), args.batch, &args.dims, &first.model, common.seed)?;
    let mut contenders = vec![];
    for path in &args.models {
        let loaded = inputs::model(path)?;
        let session = engines
            .engine()?
            .load(&loaded.source, &options)
            .map_err(|e| Failure::from(e).of(path.display()))?;
        contenders.push(Contender::new(session, &feeds).map_err(|e| Failure::from(e).of(path.display()))?);
    }
    let min_time =
        Duration::try_from_secs_f64(args.time).map_err(|e| Failure::new(format!("`--time`: {e}")))?;
    let defaults = Stopwatch::default();
    let limits = Stopwatch {
        rounds: args.rounds,
        min_time,
        max_time: defaults.max_time.max(min_time * 2),
        ..defaults
    };
    let report = bench(&mut contenders, &limits)?;
    let names: Vec<_> = args.models.iter().map(|p| p.display().to_string()).collect();
    let engine = engines.get()?.note.clone();
    voice.report(
        || {
            let models = names.iter().zip(&report.seconds).zip(&report.ratios).map(|((name, s), r)| {
                json!({ "model": name, "median_s": s.median, "low_s": s.low, "high_s": s.high,
                        "ratio": r.median, "ratio_low": r.low, "ratio_high": r.high })
            });
            json!({ "engine": engine, "threads": threads, "batch": args.batch, "rounds": report.rounds,
                    "models": models.collect::<Vec<_>>() })
        },
        || {
            let rows = names.iter().zip(&report.seconds).zip(&report.ratios).map(|((name, s), r)| {
                let spread = format!("{} – {}", voice::seconds(s.low), voice::seconds(s.high));
                let speed = format!("{:.2}× ({:.2} – {:.2})", 1.0 / r.median, 1.0 / r.high, 1.0 / r.low);
                vec![name.clone(), voice::seconds(s.median), spread, speed]
            });
            let table = voice::table(&["model", "median", "middle half", "speed"], rows.collect());
            let (rounds, batch) = (report.rounds, args.batch);
            format!("{table}\n{rounds} rounds, interleaved, batch {batch}, threads {threads}, in {engine}\n")
        },
    );
    Ok(Done::Well)
}

/// What is run: given samples, or generated ones.
pub fn feeds(
    samples: Option<&Path>,
    batch: usize,
    dims: &[(String, i64)],
    model: &pare_graph::Model,
    seed: u64,
) -> Result<Vec<Feed>, Failure> {
    if let Some(path) = samples {
        let mut samples = inputs::samples(path, model)?;
        let size = samples.batch_size(batch);
        let runs = ((samples.len() - samples.left_over()) / size).max(1);
        let taken = runs.min(GIVEN);
        let starts = (0..taken).map(|i| i * runs / taken * size);
        return starts.map(|from| Ok(samples.batch(from..from + size)?)).collect();
    }
    let mut model = model.clone();
    model.infer().map_err(|e| Failure::new(e.to_string()))?;
    let specs = input_specs(&model);
    let mut plan = symbol_plans(&specs).into_iter().next().unwrap_or_default();
    for (name, size) in &mut plan {
        // The first axis counts samples, by the common habit, if it is open at all.
        let first_axis = specs.iter().filter_map(|s| match &s.kind {
            pare_runtime::PortKind::Tensor { dims: Some(dims), .. } => dims.first().map(|d| (s, d)),
            _ => None,
        });
        let is_batch =
            first_axis.into_iter().any(|(s, d)| d.to_string() == *name || *name == format!("{}#0", s.name));
        if is_batch {
            *size = batch;
        }
    }
    inputs::check_dims(dims, &model)?;
    for (name, size) in dims {
        plan.insert(name.clone(), usize::try_from(*size).unwrap_or(1));
    }
    Ok((0..FEEDS).map(|i| generate(&specs, &plan, seed, i)).collect())
}
