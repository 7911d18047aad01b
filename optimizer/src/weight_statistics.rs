//! The effect of changed weights on storage.

use crate::Error;
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
}

#[cfg(not(feature = "engine"))]
impl WeightStatistics {
    /// Compression belongs to the engines' features.
    #[allow(clippy::unnecessary_wraps)]
    pub(crate) fn of(_: &Report, _: &Model, _: &Model) -> Result<Option<Self>, Error> {
        Ok(None)
    }
}

#[cfg(feature = "engine")]
impl WeightStatistics {
    /// Compares both models if a pass changed the values of weights; `None` for models too large for memory.
    pub(crate) fn of(report: &Report, original: &Model, model: &Model) -> Result<Option<Self>, Error> {
        use pare_graph::onnx;

        /// Passes that change the values of weights rather than their number.
        const PASSES: &[&str] = &["sparsify", "apply-mask", "quantize"];
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
        Ok(Some(Self { density: [density(original), density(model)], zstd_bytes }))
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
