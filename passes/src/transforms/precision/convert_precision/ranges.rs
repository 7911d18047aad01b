//! Values that leave the range of the type on the samples.

use super::format::Format;
use crate::{
    analysis::calibration::{floats, observe},
    framework::{PassError, Tools},
};
use pare_graph::{DataType, Model, ValueId};
use std::ops::Range;

/// The samples that are run.
const SAMPLES: usize = 64;

/// Returns the values of the main graph that exceed the range on the samples or vanish, each with the reason.
///
/// # Errors
/// If an input is NaN on the samples, or if the engine cannot run the model.
pub fn extreme_values(
    tools: Tools<'_>,
    model: &Model,
    samples: Range<usize>,
    format: Format,
    margin: f64,
) -> Result<Vec<(ValueId, String)>, PassError> {
    let graph = &model.graph;
    let is_observed = |v: &ValueId| {
        let value = graph.value(*v);
        value.fact.dtype() == Some(DataType::Float) && value.data.is_none()
    };
    let mut wanted: Vec<_> = graph.values().filter(is_observed).collect();
    wanted.sort_unstable();
    if wanted.is_empty() {
        return Ok(vec![]);
    }
    let samples = samples.start..samples.end.min(samples.start + SAMPLES);
    let mut largest = vec![0.0_f32; wanted.len()];
    observe(tools, model, &wanted, samples, "ranges", &mut |_, values| {
        for ((&id, largest), value) in wanted.iter().zip(&mut largest).zip(values) {
            let values = floats(value)?;
            let value = graph.value(id);
            if value.is_input() && values.iter().any(|v| v.is_nan()) {
                return Err(PassError::refused(format!("`{}` is NaN on the samples", value.name)));
            }
            // Infinities stay infinite.
            let finite = values.iter().filter(|v| v.is_finite());
            *largest = finite.fold(*largest, |m, v| m.max(v.abs()));
        }
        Ok(())
    })?;
    let verdict = |(&id, &largest): (&ValueId, &f32)| {
        let (name, largest) = (&graph.value(id).name, f64::from(largest));
        let why = if largest * margin > format.largest {
            format!("`{name}` reaches {largest:.3e} on the samples")
        } else if largest > 0.0 && largest < format.smallest * margin {
            format!("`{name}` is at most {largest:.3e} on the samples")
        } else {
            return None;
        };
        Some((id, why))
    };
    Ok(wanted.iter().zip(&largest).filter_map(verdict).collect())
}
