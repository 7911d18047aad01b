//! Runs a pipeline over a model: `prune MODEL.onnx OUT.onnx PIPELINE [SAMPLES.npz]`.
#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used, missing_docs)]
use pare_graph::{Evaluate, Setting, onnx};
use pare_passes::{Pipeline, Progress, RunOptions, Tools, run};
use pare_runtime::{EngineChoice, Evaluator, SampleLimits, SampleSet, SharedSamples, resolve};
use std::{sync::Mutex, time::Instant};

struct Clock(Mutex<(String, Instant)>);

impl Progress for Clock {
    fn step(&self, what: &str, done: u64, total: u64) {
        let mut last = self.0.lock().unwrap();
        if last.0 != what {
            *last = (what.into(), Instant::now());
        }
        if done == total {
            eprintln!("  {what}: {:.1} s", last.1.elapsed().as_secs_f64());
        }
    }
}

fn main() {
    let args: Vec<_> = std::env::args().collect();
    let mut model = onnx::read(&args[1], &onnx::ReadOptions::default()).unwrap();
    let pipeline: Pipeline = args[3].parse().unwrap();
    let engine = resolve(&EngineChoice::default(), &mut |_| {}).unwrap().engine;
    let evaluator = Evaluator::new(engine.clone());
    let samples = args.get(4).map(|path| {
        let _ = evaluator.load(&model, Setting::PLAIN).unwrap();
        let bytes = onnx::to_bytes(&model).unwrap();
        let source = pare_runtime::ModelSource::bytes(bytes);
        let session = engine.load(&source, &pare_runtime::LoadOptions::default()).unwrap();
        SharedSamples::from(
            SampleSet::open(path.as_ref(), session.inputs(), SampleLimits::default()).unwrap(),
        )
    });
    let clock = Clock(Mutex::new((String::new(), Instant::now())));
    let start = Instant::now();
    let tools = Tools {
        engine: Some(&evaluator),
        samples: samples.as_ref().map(|s| s as _),
        progress: &clock,
        threads: 2,
        ..Tools::default()
    };
    match run(&pipeline, &mut model, RunOptions::new(tools), &mut ()) {
        Ok(report) => {
            for step in report.steps {
                println!(
                    "{}: {:?} {:?}",
                    step.pass,
                    step.counts().collect::<Vec<_>>(),
                    step.figures().collect::<Vec<_>>()
                );
                step.declined().take(12).for_each(|(why, n)| println!("  {n} × {why}"));
            }
        }
        Err(e) => {
            return println!("error: {e}; hint: {}", e.hint().map(ToString::to_string).unwrap_or_default());
        }
    }
    let cost = model.cost(&pare_graph::ops::Bindings::default());
    println!("{} MACs, {} params, {:.1} s", cost.macs, cost.params, start.elapsed().as_secs_f64());
    onnx::write(&model, &args[2], &onnx::WriteOptions::default()).unwrap();
}
