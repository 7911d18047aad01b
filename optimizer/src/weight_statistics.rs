//! The effect of changed weights on storage and latency.

use crate::{Error, runner::Runner};
use pare_graph::Model;
use pare_passes::Report;
use serde::Serialize;

/// Statistics of the weights of the original and the result, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct WeightStatistics {
    /// Share of nonzero elements of weights of at least two dimensions.
    pub density: [f64; 2],
    /// Bytes of the file after compression with zstd.
    pub zstd_bytes: [u64; 2],
    /// Median latency of one sample on one thread, in seconds.
    pub seconds: [f64; 2],
    /// Speed of the result relative to the original.
    pub speed: f64,
}

#[cfg(not(feature = "engine"))]
impl WeightStatistics {
    /// Latency needs an engine.
    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn measure(_: &Runner<'_>, _: &Report, _: &Model, _: &Model) -> Result<Option<Self>, Error> {
        Ok(None)
    }
}

#[cfg(feature = "engine")]
impl WeightStatistics {
    /// Measures both models if a pass changed the values of weights; `None` for models too large for memory.
    pub(crate) fn measure(
        runner: &Runner<'_>,
        report: &Report,
        original: &Model,
        model: &Model,
    ) -> Result<Option<Self>, Error> {
        use crate::samples::open_or_generate;
        use pare_graph::onnx;
        use pare_runtime::{Contender, LoadOptions, ModelSource, Stopwatch, bench};

        /// Passes that change the values of weights rather than their number.
        const PASSES: &[&str] = &["sparsify", "apply-mask", "quantize"];
        /// Inputs that are run in turn.
        const FEEDS: usize = 4;
        /// A compression level for files that are compressed once and downloaded often.
        const LEVEL: i32 = 9;

        if !report.steps.iter().any(|s| s.patches > 0 && PASSES.contains(&s.pass)) {
            return Ok(None);
        }
        let (Ok(before), Ok(after)) = (onnx::to_bytes(original), onnx::to_bytes(model)) else {
            return Ok(None);
        };
        let compressed = |bytes: &[u8]| {
            zstd::encode_all(bytes, LEVEL).map(|packed| packed.len() as u64).map_err(Error::invalid)
        };
        let zstd_bytes = [compressed(&before)?, compressed(&after)?];
        let mut samples = open_or_generate(runner.samples, original, runner.environment.seed)?;
        let feeds = samples.batches(1).take(FEEDS).map(|b| Ok(b?.feed)).collect::<Result<Vec<_>, Error>>()?;
        let options = LoadOptions { threads: 1, ..runner.engine.load_options() };
        let mut contenders = vec![];
        for bytes in [before, after] {
            let session = runner.engine.engine()?.load(&ModelSource::bytes(bytes), &options)?;
            contenders.push(Contender::new(session, &feeds)?);
        }
        let min_time = std::time::Duration::from_millis(300);
        let timing = bench(&mut contenders, &Stopwatch { min_time, ..Stopwatch::default() })?;
        Ok(Some(Self {
            density: [density(original), density(model)],
            zstd_bytes,
            seconds: [timing.seconds[0].median, timing.seconds[1].median],
            speed: 1.0 / timing.ratios[1].median,
        }))
    }
}

#[cfg(feature = "engine")]
fn density(model: &Model) -> f64 {
    let graph = &model.graph;
    let tensors = graph.initializers().into_iter().filter_map(|v| graph.value(v).tensor());
    let (mut nonzero, mut all) = (0_u64, 0_u64);
    for values in tensors.filter(|t| t.rank() >= 2).filter_map(|t| t.to_f64()) {
        nonzero += values.iter().filter(|v| **v != 0.0).count() as u64;
        all += values.len() as u64;
    }
    nonzero as f64 / all.max(1) as f64
}
