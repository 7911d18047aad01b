//! Runs samples through a model and observes inner values.

use super::segment;
use crate::{
    analysis::quality::Padding,
    framework::{Hint, PassError, Tools},
};
use pare_graph::{
    DataType, EvaluateError, Graph, Model, Run, Samples, Setting, Tensor, ValueId, ops::Bindings,
};
use std::{borrow::Cow, ops::Range};

/// The batch size, where the model does not fix it and memory suffices.
const BATCH: usize = 64;

/// Splits the samples `range` into batches: of the size that the first axes of the model's inputs fix (an
/// incomplete last batch is dropped), or of a size that keeps `bytes_per_sample` within a quarter of the
/// memory.
pub fn batches(graph: &Graph, range: Range<usize>, bytes_per_sample: u64, memory: u64) -> Vec<Range<usize>> {
    batches_of(
        range,
        fixed_batch(graph),
        (memory / 4 / bytes_per_sample.max(1)).clamp(1, BATCH as u64) as usize,
    )
}

/// The batch size that the first axes of the inputs fix.
pub fn fixed_batch(graph: &Graph) -> Option<usize> {
    open_inputs(graph).into_iter().filter_map(|v| graph.value(v).fact.shape()?.first()?.size()).min()
}

/// Splits a range into batches of the `fixed` size, without an incomplete last one, or of the size `otherwise`.
pub fn batches_of(range: Range<usize>, fixed: Option<usize>, otherwise: usize) -> Vec<Range<usize>> {
    let size = fixed.unwrap_or(otherwise).max(1);
    let starts = range.clone().step_by(size).map(|from| from..(from + size).min(range.end));
    starts.filter(|r| fixed.is_none() || r.len() == size).collect()
}

/// The bytes of a value at these sizes, which are those of one sample.
pub fn bytes_per_sample(graph: &Graph, value: ValueId, sizes: &Bindings) -> u64 {
    let fact = &graph.value(value).fact;
    let dims = fact.shape().unwrap_or(&[]).iter();
    let count = dims.map(|dim| sizes.size(dim).unwrap_or(1)).fold(1, u64::saturating_mul);
    count.saturating_mul(u64::from(fact.dtype().map_or(32, DataType::bits)).div_ceil(8))
}

/// The memory of a run per sample, beside that of the outputs: the tensors that are alive at the same time.
pub fn activation_bytes(model: &Model, sizes: &Bindings) -> u64 {
    model.cost(sizes).activation_peak
}

/// The inputs without default values.
pub fn open_inputs(graph: &Graph) -> Vec<ValueId> {
    graph.inputs().iter().copied().filter(|&v| graph.value(v).data.is_none()).collect()
}

/// A loaded part of a model that computes chosen values.
pub struct Probe {
    /// `None` if all chosen values are given.
    run: Option<Box<dyn Run>>,
    inputs: Vec<String>,
    /// The source of each chosen value.
    sources: Vec<Source>,
    /// The names of the given values.
    names: Vec<String>,
}

#[derive(Clone, Copy)]
enum Source {
    /// A given value.
    Given(usize),
    /// An output of the loaded part.
    Output(usize),
}

impl Probe {
    /// Loads the part of a model that computes `wanted` from `given`.
    ///
    /// # Errors
    /// If there is no engine, or it cannot load the part.
    pub fn new(
        tools: Tools<'_>,
        model: &Model,
        given: &[ValueId],
        wanted: &[ValueId],
    ) -> Result<Self, PassError> {
        let engine = tools.engine.ok_or_else(no_engine)?;
        let part = segment(model, given, wanted).map_err(EvaluateError::from_error)?;
        let named = |id: &ValueId| part.graph.value(*id).name.clone();
        let inputs: Vec<_> = part.graph.inputs().iter().map(named).collect();
        let outputs: Vec<_> = part.graph.outputs().iter().map(named).collect();
        let name = |v: &ValueId| model.graph.value(*v).name.clone();
        let find = |v: &ValueId| {
            let name = name(v);
            let output = outputs.iter().position(|o| *o == name).map(Source::Output);
            // Given values are not outputs of the part.
            let given = given.iter().position(|g| g == v).map(Source::Given);
            output.or(given).ok_or_else(|| EvaluateError::new(format!("`{name}` is not computed")))
        };
        let sources = wanted.iter().map(find).collect::<Result<Vec<_>, _>>()?;
        let computes = sources.iter().any(|s| matches!(s, Source::Output(_)));
        let run =
            computes.then(|| engine.load(&part, Setting::OPTIMIZED.threads(tools.threads))).transpose()?;
        Ok(Self { run, inputs, sources, names: given.iter().map(name).collect() })
    }

    /// Returns the chosen values for given ones by name.
    pub fn run(&mut self, feeds: &[(String, Tensor)]) -> Result<Vec<Tensor>, EvaluateError> {
        let needed = feeds.iter().filter(|(name, _)| self.inputs.contains(name));
        let needed: Vec<_> = needed.map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let outputs = self.run.as_mut().map_or(Ok(vec![]), |run| run.run(&needed))?;
        let take = |source: &Source| match *source {
            Source::Output(i) => outputs.get(i).cloned(),
            Source::Given(i) => feeds.iter().find(|(n, _)| *n == self.names[i]).map(|(_, t)| t.clone()),
        };
        let missing = || EvaluateError::new("the engine returned too few outputs");
        self.sources.iter().map(|s| take(s).ok_or_else(missing)).collect()
    }
}

/// Runs batches of samples through a loaded part, and passes the inputs and the values of each to `visit`.
///
/// A model may run on one sample only, although it leaves the size of a batch open. Then each is run by itself.
///
/// # Errors
/// If the engine cannot run a batch, and those of `visit`.
pub fn run_batches(
    probe: &mut Probe,
    samples: &dyn Samples,
    batches: &[Range<usize>],
    visit: &mut dyn FnMut(Range<usize>, &[(String, Tensor)], Vec<Tensor>) -> Result<(), PassError>,
) -> Result<(), PassError> {
    let mut singly = false;
    for (i, batch) in batches.iter().enumerate() {
        if !singly {
            let feeds = samples.batch(batch.clone())?;
            match probe.run(&feeds) {
                Ok(values) => visit(batch.clone(), &feeds, values)?,
                Err(_) if i == 0 && batch.len() > 1 => singly = true,
                Err(error) => return Err(error.into()),
            }
        }
        for sample in batch.clone().filter(|_| singly) {
            let one = sample..sample + 1;
            let feeds = samples.batch(one.clone())?;
            let values = probe.run(&feeds)?;
            visit(one, &feeds, values)?;
        }
    }
    Ok(())
}

fn no_engine() -> PassError {
    PassError::refused_with("it needs an engine to run samples", Hint::NeedsEngine)
}

/// The error of an analysis that needs samples.
pub fn no_samples() -> PassError {
    PassError::refused_with("it needs samples", Hint::NeedsSamples { otherwise: None })
}

/// Runs the samples in `range` through the model, and passes the values `wanted` of each batch to `visit`. In
/// values of tokens, copies of other tokens take the place of padding ([`Padding::fill`]). Progress is reported under the name `what`.
pub fn observe(
    tools: Tools<'_>,
    model: &Model,
    wanted: &[ValueId],
    range: Range<usize>,
    what: &str,
    visit: &mut dyn FnMut(Range<usize>, &[Tensor]) -> Result<(), PassError>,
) -> Result<(), PassError> {
    let samples = tools.samples.ok_or_else(no_samples)?;
    let graph = &model.graph;
    let mut probe = Probe::new(tools, model, &open_inputs(graph), wanted)?;
    let sizes = tools.sizes(graph);
    let bytes: u64 = wanted.iter().map(|&v| bytes_per_sample(graph, v, &sizes)).sum();
    let batches = batches(graph, range.clone(), bytes + activation_bytes(model, &sizes), tools.memory);
    let padding = Padding::of(tools, graph);
    run_batches(&mut probe, samples, &batches, &mut |batch, feeds, mut values| {
        padding.fill(graph, feeds, wanted, &mut values);
        visit(batch.clone(), &values)?;
        tools.progress.step(what, (batch.end - range.start) as u64, range.len() as u64);
        Ok(())
    })
}

/// Chooses `count` of `positions` at random for a sample, ascending and without repetition; all if there are
/// no more.
pub fn choose(seed: u64, sample: usize, positions: usize, count: usize) -> Vec<usize> {
    if positions <= count {
        return (0..positions).collect();
    }
    let mut rng = fastrand::Rng::with_seed(seed ^ (sample as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    // Floyd's algorithm: `count` draws.
    let mut chosen = std::collections::BTreeSet::new();
    for last in positions - count..positions {
        if !chosen.insert(rng.usize(..=last)) {
            chosen.insert(last);
        }
    }
    chosen.into_iter().collect()
}

/// Returns the elements of a tensor as f32.
pub fn floats(tensor: &Tensor) -> Result<Cow<'_, [f32]>, EvaluateError> {
    if let Some(floats) = tensor.as_f32() {
        return Ok(floats.into());
    }
    if tensor.dtype() == DataType::Float {
        let floats = tensor.to_vec::<f32>();
        return floats.map(Cow::Owned).map_err(EvaluateError::from_error);
    }
    let values =
        tensor.to_f64().ok_or_else(|| EvaluateError::new(format!("{} activations", tensor.dtype())))?;
    Ok(values.into_iter().map(|v| v as f32).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_have_the_size_that_the_model_fixes() {
        assert_eq!(batches_of(10..74, None, 2).len(), 32);
        assert_eq!(batches_of(10..20, Some(4), 2), [10..14, 14..18]);
        assert_eq!(batches_of(10..12, Some(4), 2), []);
    }
}
