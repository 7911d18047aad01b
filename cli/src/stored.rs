//! What bits of weights come to: how many are zero, what a download costs, and how long a run takes.

use crate::{
    failure::Failure,
    inputs::{self, Engines},
    voice,
};
use pare_graph::{Model, onnx};
use pare_passes::Report;
use pare_runtime::{Contender, LoadOptions, ModelSource, Stopwatch, bench};
use serde_json::json;
use std::{path::Path, time::Duration};

/// Passes that change what weights hold, rather than how many there are.
const PASSES: &[&str] = &["sparsify", "apply-mask", "quantize"];
/// Different inputs that are run in turn.
const FEEDS: usize = 4;
/// The compression that a server may take time for.
const LEVEL: i32 = 9;

/// Of one model.
struct Of {
    /// Share of the elements of matrices and kernels that are not zero.
    density: f64,
    /// Bytes of the file after zstd.
    packed: u64,
}

/// Of the original and the result.
pub struct Stored {
    before: Of,
    after: Of,
    /// Seconds of a run of one sample, one thread.
    seconds: (f64, f64),
    /// How many times as fast the result is.
    speed: f64,
}

impl Stored {
    /// Measured if a pass changed what weights hold; `None` where a model cannot be measured.
    pub fn of(
        report: &Report,
        (original, model): (&Model, &Model),
        (samples, seed): (Option<&Path>, u64),
        engines: &Engines<'_>,
    ) -> Result<Option<Self>, Failure> {
        if !report.steps.iter().any(|s| s.patches > 0 && PASSES.contains(&s.pass)) {
            return Ok(None);
        }
        let (Ok(a), Ok(b)) = (onnx::to_bytes(original), onnx::to_bytes(model)) else { return Ok(None) };
        let of = |model: &Model, bytes: &[u8]| {
            let packed = zstd::encode_all(bytes, LEVEL).map_err(|e| Failure::new(e.to_string()))?;
            Ok::<_, Failure>(Of { density: density(model), packed: packed.len() as u64 })
        };
        let (before, after) = (of(original, &a)?, of(model, &b)?);
        let mut samples = inputs::samples_or_generated(samples, original, seed)?;
        let feeds =
            samples.batches(1).take(FEEDS).map(|b| Ok(b?.feed)).collect::<Result<Vec<_>, Failure>>()?;
        let options = LoadOptions { threads: 1, ..engines.load_options() };
        let mut contenders = vec![];
        for bytes in [a, b] {
            let session = engines.engine()?.load(&ModelSource::bytes(bytes), &options)?;
            contenders.push(Contender::new(session, &feeds)?);
        }
        let limits = Stopwatch { min_time: Duration::from_millis(300), ..Stopwatch::default() };
        let timing = bench(&mut contenders, &limits)?;
        let seconds = (timing.seconds[0].median, timing.seconds[1].median);
        Ok(Some(Self { before, after, seconds, speed: 1.0 / timing.ratios[1].median }))
    }

    pub fn rows(&self) -> Vec<Vec<String>> {
        let share = |x: f64| format!("{:.1} %", 100.0 * x);
        let (a, b) = self.seconds;
        vec![
            vec![
                "weights not zero".into(),
                share(self.before.density),
                share(self.after.density),
                String::new(),
            ],
            [
                vec!["file, compressed".into()],
                voice::change(self.before.packed, self.after.packed, voice::bytes),
            ]
            .concat(),
            vec!["latency".into(), voice::seconds(a), voice::seconds(b), format!("{:.2}× speed", self.speed)],
        ]
    }

    pub fn json(&self) -> serde_json::Value {
        json!({
            "density": [self.before.density, self.after.density],
            "zstd_bytes": [self.before.packed, self.after.packed],
            "seconds": [self.seconds.0, self.seconds.1], "speed": self.speed,
        })
    }
}

fn density(model: &Model) -> f64 {
    let graph = &model.graph;
    let tensors = graph.initializers().into_iter().filter_map(|v| graph.value(v).tensor());
    let (mut some, mut all) = (0_u64, 0_u64);
    for values in tensors.filter(|t| t.rank() >= 2).filter_map(|t| t.to_f64()) {
        some += values.iter().filter(|v| **v != 0.0).count() as u64;
        all += values.len() as u64;
    }
    some as f64 / all.max(1) as f64
}
