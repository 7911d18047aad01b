//! Results of passes that may run on the same model again.

use super::StepReport;
use pare_graph::{Model, onnx, ops::Bindings};
use std::{
    fmt,
    hash::{DefaultHasher, Hasher},
    sync::{Arc, Mutex, PoisonError},
};

/// The results of lossy passes, by the pass, its options and the model that it was given: a search makes its result
/// again from the pipeline without computing it again.
///
/// One memo serves runs of one original with one set of samples, of which runs may use the first ones.
pub struct Memo {
    /// Bytes of weights that the models may have.
    capacity: u64,
    /// The last used at the end.
    results: Mutex<Vec<Known>>,
}

struct Known {
    key: u64,
    bytes: u64,
    result: Arc<PassResult>,
}

/// The result of a pass.
pub(super) struct PassResult {
    /// The changed model.
    pub model: Model,
    /// Its report, after those of nested steps.
    pub reports: Vec<StepReport>,
    /// The number of patches.
    pub patches: u64,
}

impl Memo {
    /// A memo of models whose weights have at most this many bytes together.
    pub fn new(capacity: u64) -> Self {
        Self { capacity, results: Mutex::default() }
    }

    /// Identifies a pass on a model. `None` for a model beyond the limit of one message, which is not kept.
    pub(super) fn key(pass: &str, model: &Model, samples: usize) -> Option<u64> {
        let mut hasher = DefaultHasher::new();
        hasher.write(&onnx::to_bytes(model).ok()?);
        hasher.write(pass.as_bytes());
        hasher.write_usize(samples);
        Some(hasher.finish())
    }

    pub(super) fn get(&self, key: u64) -> Option<Arc<PassResult>> {
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        let at = results.iter().position(|known| known.key == key)?;
        let known = results.remove(at);
        let result = known.result.clone();
        results.push(known);
        Some(result)
    }

    pub(super) fn put(&self, key: u64, result: PassResult) {
        let bytes = result.model.cost(&Bindings::default()).bytes;
        let mut results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        results.push(Known { key, bytes, result: Arc::new(result) });
        while results.iter().map(|known| known.bytes).sum::<u64>() > self.capacity {
            results.remove(0);
        }
    }
}

impl fmt::Debug for Memo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let results = self.results.lock().unwrap_or_else(PoisonError::into_inner);
        write!(f, "Memo({} results)", results.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{
        Pipeline, Report, RunOptions, Tools, run,
        testing::{model, numbers},
    };

    fn network() -> Model {
        model(&format!(
            "g (float[N,6] x) => (float[N,4] y) <float[6,40] a = {{{}}}, float[40,4] b = {{{}}}> {{
                h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }}",
            numbers(240, 5),
            numbers(160, 6)
        ))
    }

    #[test]
    fn lossy_passes_do_not_run_twice_on_the_same_model() {
        let memo = Memo::new(1 << 20);
        let ran = |pipeline: &str| -> (Vec<u8>, Report) {
            let (pipeline, mut model): (Pipeline, _) = (pipeline.parse().unwrap(), network());
            let tools = Tools { memo: Some(&memo), ..Tools::default() };
            let report = run(&pipeline, &mut model, RunOptions::new(tools), &mut ()).unwrap();
            (onnx::to_bytes(&model).unwrap(), report)
        };
        let kept = || format!("{memo:?}");
        let (first, report) = ran("safe,prune-hidden{ratio=0.5,multiple=1}");
        assert_eq!(kept(), "Memo(1 results)");
        let (second, again) = ran("safe,prune-hidden{ratio=0.5,multiple=1}");
        // The time is that of the first run.
        let step = |report: &Report| report.steps.iter().find(|s| s.pass == "prune-hidden").unwrap().clone();
        assert_eq!((second, step(&again).time), (first, step(&report).time));
        assert_eq!((kept(), again.patches()), ("Memo(1 results)".into(), report.patches()));
        // Other options, and another model.
        ran("safe,prune-hidden{ratio=0.25,multiple=1}");
        assert_eq!(kept(), "Memo(2 results)");
        ran("safe,prune-hidden{ratio=0.5,multiple=1},prune-hidden{ratio=0.5,multiple=1}");
        assert_eq!(kept(), "Memo(3 results)");
    }

    #[test]
    fn results_that_were_not_used_for_long_are_dropped() {
        let bytes = network().cost(&Bindings::default()).bytes;
        let memo = Memo::new(2 * bytes);
        let put = |key| memo.put(key, PassResult { model: network(), reports: vec![], patches: 1 });
        (1..=2).for_each(put);
        assert!(memo.get(1).is_some());
        put(3);
        assert!(memo.get(1).is_some() && memo.get(2).is_none() && memo.get(3).is_some());
    }
}
