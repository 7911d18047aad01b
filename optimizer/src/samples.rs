//! Samples: given as files, or generated from the types of the inputs.

use crate::{Error, Hint, QualityOptions};
use pare_graph::{Model, ops::Bindings};
use pare_runtime::{
    Feed, MeasuredOutput, OutputMeasure, Port, PortKind, SampleLimits, SampleSet, beyond_generation,
    generate, input_specs, symbol_plans,
};
use std::path::Path;

/// Generated inputs that are run in turn.
const GENERATED_FEEDS: usize = 4;
/// Given inputs that are run in turn, taken evenly from all: latency may depend on them.
const GIVEN_FEEDS: usize = 64;

/// The sessions of a comparison: two models, each as written and as deployed.
const SESSIONS: u64 = 4;

/// Reads samples for the inputs of `model`.
pub(crate) fn open(path: &Path, model: &Model) -> Result<SampleSet, Error> {
    let ports: Vec<_> =
        input_specs(model).into_iter().map(|spec| Port { name: spec.name, kind: spec.kind }).collect();
    let samples = SampleSet::open(path, &ports, SampleLimits::default())?;
    if samples.labels().is_some() {
        check_labels(&samples, model)?;
    }
    Ok(samples)
}

/// Keeps runs of `model` to as many samples as the activations of a comparison's sessions leave memory for: engines
/// keep what the largest run needed.
pub(crate) fn fit_batches(samples: &mut SampleSet, model: &Model, memory: u64) {
    if !samples.has_open_batches() {
        return;
    }
    let Ok(first) = samples.batch(0..1) else { return };
    let mut model = model.clone();
    let _ = model.infer();
    let shapes = first.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_tensor()?.shape())));
    let activations = model.cost(&Bindings::of_inputs(&model.graph, shapes)).activation_peak;
    let most = memory / activations.saturating_mul(SESSIONS).max(1);
    samples.limit_batches(usize::try_from(most).unwrap_or(usize::MAX).max(1));
}

/// Splits samples: the last `share` of them is held out of calibration.
pub(crate) fn split(
    mut samples: SampleSet,
    path: &Path,
    model: &Model,
    share: f64,
) -> Result<(SampleSet, SampleSet), Error> {
    let mut held_out = open(path, model)?;
    let kept = samples.len() - (share * samples.len() as f64).round() as usize;
    if kept == 0 || kept == samples.len() {
        let message = format!("{} samples are too few to hold out a share of {share}", samples.len());
        return Err(Error::invalid(message));
    }
    samples.truncate(kept);
    held_out.skip(kept);
    Ok((samples, held_out))
}

/// Checks that the labels are among the classes of an output, if their number is known.
fn check_labels(samples: &SampleSet, model: &Model) -> Result<(), Error> {
    let quality = QualityOptions::default().choose(model, true)?;
    let classes = |output: &MeasuredOutput| {
        let OutputMeasure::Classes { axis } = output.measure else { return None };
        let id = model.graph.find(&output.name)?;
        let shape = model.graph.value_ref(id).shape()?;
        let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
        Some((shape.get(usize::try_from(axis).ok()?)?.size()?, output.name.clone()))
    };
    let Some((count, output)) = quality.outputs.iter().filter_map(classes).max() else { return Ok(()) };
    let is_foreign = |label: &i64| usize::try_from(*label).map_or(true, |label| label >= count);
    match samples.labels().unwrap_or_default().iter().enumerate().find(|(_, label)| is_foreign(label)) {
        None => Ok(()),
        Some((sample, label)) => Err(Error::invalid(format!(
            "label {label} of sample {sample} is not one of the {count} classes of `{output}`, 0 to {}",
            count - 1
        ))),
    }
}

/// Reads samples, or generates them without a path.
pub(crate) fn open_or_generate(path: Option<&Path>, model: &Model, seed: u64) -> Result<SampleSet, Error> {
    if let Some(path) = path {
        return open(path, model);
    }
    let specs = input_specs(model);
    if let Some(spec) = beyond_generation(&specs) {
        let message = format!("no samples can be generated for input `{}` of type {}", spec.name, spec.kind);
        return Err(Error::invalid_with(message, Hint::NeedsSamples));
    }
    Ok(SampleSet::for_model(model, seed))
}

/// Checks that `dims` are symbolic dimensions of the inputs.
pub(crate) fn check_dims(dims: &[(String, i64)], model: &Model) -> Result<(), Error> {
    let open = symbol_plans(&input_specs(model)).into_iter().next().unwrap_or_default();
    let Some((name, _)) = dims.iter().find(|(name, _)| !open.contains_key(name)) else { return Ok(()) };
    let message = format!("the inputs have no dimension `{name}`");
    let known: Vec<_> = open.into_keys().collect();
    let hint = (!known.is_empty()).then_some(Hint::Dimensions(known));
    Err(Error::Invalid { message, hint })
}

/// The inputs of timed runs.
pub(crate) struct FeedOptions<'f> {
    pub samples: Option<&'f Path>,
    /// Samples per run, where the model leaves it open.
    pub batch: usize,
    /// Sizes of symbolic dimensions of generated inputs.
    pub dims: &'f [(String, i64)],
    pub seed: u64,
}

impl FeedOptions<'_> {
    /// Reads or generates the inputs.
    pub fn feeds(&self, model: &Model) -> Result<Vec<Feed>, Error> {
        let Some(path) = self.samples else { return self.generated(model) };
        let mut samples = open(path, model)?;
        let size = samples.batch_size(self.batch);
        let runs = ((samples.len() - samples.left_over()) / size).max(1);
        let taken = runs.min(GIVEN_FEEDS);
        let starts = (0..taken).map(|i| i * runs / taken * size);
        starts.map(|from| Ok(samples.batch(from..from + size)?)).collect()
    }

    fn generated(&self, model: &Model) -> Result<Vec<Feed>, Error> {
        let mut model = model.clone();
        model.infer().map_err(Error::invalid)?;
        let specs = input_specs(&model);
        let mut plan = symbol_plans(&specs).into_iter().next().unwrap_or_default();
        // By convention the first axis of an input is the batch, if it is symbolic.
        let is_batch = |name: &str| {
            specs.iter().any(|spec| match &spec.kind {
                PortKind::Tensor { dims: Some(dims), .. } => dims
                    .first()
                    .is_some_and(|dim| dim.to_string() == name || format!("{}#0", spec.name) == name),
                _ => false,
            })
        };
        for (name, size) in &mut plan {
            if is_batch(name) {
                *size = self.batch;
            }
        }
        check_dims(self.dims, &model)?;
        for (name, size) in self.dims {
            plan.insert(name.clone(), usize::try_from(*size).unwrap_or(1));
        }
        Ok((0..GENERATED_FEEDS).map(|i| generate(&specs, &plan, self.seed, i)).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text::parse_model;

    const SOURCE: &str = "<ir_version: 8, opset_import: [\"\" : 17]> \
                          main (float[N,1,8,8] image) => (float[N,1,8,8] y) { y = Relu(image) }";

    #[test]
    fn batches_leave_memory_for_all_sessions() {
        let model = parse_model(SOURCE).unwrap();
        let mut samples = open(Path::new("../fixtures/digits-calibration.npz"), &model).unwrap();
        // 64 floats are read, and as many written.
        let each = 2 * 64 * 4;
        for (memory, most) in [(0, 1), (4 * each - 1, 1), (4 * each, 1), (12 * each, 3), (1 << 30, 32)] {
            fit_batches(&mut samples, &model, memory);
            assert_eq!(samples.batch_size(32), most, "{memory} bytes");
        }
    }
}
