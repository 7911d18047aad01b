//! Proof that two models compute the same function, on samples.
//!
//! Four sessions run the same feeds: the original and the candidate, each as written and as the engine
//! deploys it.
//!
//! ```text
//!                optimizations off      on
//!     original        O0   ──floor──▶   O1
//!                      │
//!                      ├──compared──▶ candidate, off      the proof
//!                      └──compared──▶ candidate, on       loads and agrees as deployed
//! ```
//!
//! Where differences are expected, quality is that of the deployed candidate beside the deployed original.
//!
//! A candidate that deviates further than the floor is examined: the original runs again, and with perturbed
//! operands, which widens the floor ([`noise`]).

mod noise;
mod report;
mod run;
mod vacuity;
mod variants;

pub use report::{Outcome, ProofOptions, ProofReport};

use crate::{
    Batch, Engine, EngineError, ModelSource, Port, Session, StatePair,
    interface::{in_order_of, opened, port_change, undeclared},
    state::state_pairs,
};
use noise::Noise;
use run::{ProofRun, Sessions};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// Compares `candidate` with `original` on `batches`.
///
/// A run that the original rejects is skipped; one that only the candidate rejects is a difference. The
/// interface (names, order and types of inputs and outputs) must be the same.
///
/// # Errors
/// Those of `batches`. Errors of the engine are part of the report's outcome.
pub fn prove<E>(
    engine: &dyn Engine,
    original: &ModelSource,
    candidate: &ModelSource,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
    options: &ProofOptions,
) -> Result<ProofReport, E> {
    Original::new(engine, original, options).prove(candidate, batches)
}

/// A model that is loaded once and compared with several candidates.
pub struct Original<'e> {
    engine: &'e dyn Engine,
    options: &'e ProofOptions,
    sessions: Result<Sessions, EngineError>,
    noise: Noise<'e>,
}

impl<'e> Original<'e> {
    /// Loads `model`.
    pub fn new(engine: &'e dyn Engine, model: &ModelSource, options: &'e ProofOptions) -> Self {
        let noise = Noise::new(engine, &options.load, model.clone());
        Self { engine, options, sessions: Sessions::load(engine, model, options), noise }
    }

    /// Compares `candidate` with this model, as [`prove`] does.
    ///
    /// # Errors
    /// Those of `batches`.
    pub fn prove<E>(
        &mut self,
        candidate: &ModelSource,
        batches: impl IntoIterator<Item = Result<Batch, E>>,
    ) -> Result<ProofReport, E> {
        let options = self.options;
        let mut proof = match self.start(candidate) {
            Ok(proof) => proof,
            Err(report) => return Ok(*report),
        };
        if let Some(outcome) = proof.check_deployment(options) {
            return Ok(proof.report.with(outcome));
        }
        let (start, mut refusal) = (Instant::now(), None);
        for batch in batches {
            let samples = proof.report.samples;
            if options.max_samples.is_some_and(|most| samples >= most) {
                break;
            }
            if let Some(most) = options.max_time.filter(|most| samples > 0 && start.elapsed() >= *most) {
                let (seconds, noun) =
                    (most.as_secs_f64(), if samples == 1 { "sample was" } else { "samples were" });
                proof.report.notes.push(format!("{samples} {noun} compared in {seconds} s, not all"));
                break;
            }
            match proof.run(&batch?, options) {
                Ok(None) => {}
                Ok(Some(outcome)) => return Ok(proof.report.with(outcome)),
                Err(error) => {
                    proof.report.skipped += 1;
                    refusal.get_or_insert(error);
                }
            }
        }
        let outcome = proof.judge(refusal, options);
        Ok(proof.report.with(outcome))
    }

    /// Loads the candidate and compares the interfaces; the report if no run is needed.
    fn start(&mut self, candidate: &ModelSource) -> Result<ProofRun<'_, 'e>, Box<ProofReport>> {
        self.noise.reset();
        let (mut report, options) = (ProofReport::new(), self.options);
        let original = match &mut self.sessions {
            Ok(sessions) => sessions,
            Err(error) => return Err(Box::new(report.with(Outcome::Unproven { why: error.to_string() }))),
        };
        let candidate = match Sessions::load(self.engine, candidate, options) {
            Ok(sessions) => sessions,
            Err(error) => {
                return Err(Box::new(
                    report.with(Outcome::differs(format!("the result is broken: {error}"))),
                ));
            }
        };
        let (first, second) = (&*original.written, &*candidate.written);
        if let Some(why) = interface_change(first, second, options) {
            let outcome = if options.narrowed {
                Outcome::Unproven { why: format!("the interface changed as requested: {why}") }
            } else {
                Outcome::differs(why)
            };
            return Err(Box::new(report.with(outcome)));
        }
        report.notes.extend(changed_orders(first, second));
        let undeclared = undeclared(first.outputs(), second.outputs());
        let state = match state(first, options) {
            Ok(state) => state,
            Err(why) => return Err(Box::new(report.with(Outcome::Unproven { why }))),
        };
        if options.steps > 1 {
            let pairs: Vec<_> =
                state.iter().map(|pair| format!("`{}` from `{}`", pair.input, pair.output)).collect();
            report.notes.push(format!("{} steps, state carried on: {}", options.steps, pairs.join(", ")));
        }
        Ok(ProofRun {
            report,
            original,
            candidate,
            noise: &mut self.noise,
            undeclared,
            state,
            misdeclared: BTreeMap::new(),
            random: BTreeSet::new(),
            undecided: 0,
            more_precise: 0,
            undetermined: BTreeMap::new(),
        })
    }
}

/// The state to carry from step to step, or the reason why it is not one of the model's.
fn state(session: &dyn Session, options: &ProofOptions) -> Result<Vec<StatePair>, String> {
    if options.steps <= 1 {
        return Ok(vec![]);
    }
    let state = match &options.state[..] {
        [] => state_pairs(session.inputs(), session.outputs()),
        given => given.to_vec(),
    };
    if state.is_empty() {
        return Err("no input takes up an output, so there is no state to carry on".to_owned());
    }
    let named = |ports: &[Port], name: &str| ports.iter().any(|p| p.name == name);
    for StatePair { input, output } in &state {
        if !named(session.inputs(), input) {
            return Err(format!("there is no input `{input}` to carry state to"));
        }
        if !named(session.outputs(), output) {
            return Err(format!("there is no output `{output}` to carry state from"));
        }
    }
    Ok(state)
}

/// Notes on inputs and outputs in another order.
fn changed_orders(a: &dyn Session, b: &dyn Session) -> Vec<String> {
    let names = |ports: &[Port]| -> Vec<String> { ports.iter().map(|p| p.name.clone()).collect() };
    let pairs = [("inputs", a.inputs(), b.inputs()), ("outputs", a.outputs(), b.outputs())];
    let differ = pairs.into_iter().filter(|(_, a, b)| names(a) != names(b));
    differ.map(|(role, ..)| format!("the {role} are in another order: they were matched by name")).collect()
}

/// The first difference between the interfaces, as a sentence. Output types include what the engine infers,
/// which may be more for the candidate: sizes that the original leaves open are compared by running, not
/// here.
fn interface_change(
    original: &dyn Session,
    candidate: &dyn Session,
    options: &ProofOptions,
) -> Option<String> {
    let aligned = |original: &[Port], ports: &[Port]| {
        if options.any_order { in_order_of(original, ports) } else { ports.to_vec() }
    };
    let inputs = aligned(original.inputs(), candidate.inputs());
    let inputs = if options.narrowed { opened(&inputs, original.inputs()) } else { inputs };
    let outputs = opened(&aligned(original.outputs(), candidate.outputs()), original.outputs());
    port_change("input", original.inputs(), &inputs)
        .or_else(|| port_change("output", original.outputs(), &outputs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, FakeEngine};
    use crate::{LoadOptions, SamplesError};
    use pare_graph::evaluate::quality::{MeasuredOutput, OutputMeasure, QualityMeasures};
    use std::time::Duration;

    fn batches(values: &[f32]) -> Vec<Result<Batch, SamplesError>> {
        let batch = |(index, &x): (usize, &f32)| {
            let feed = crate::fake::feed("x", &[x, 1.0]);
            Ok(Batch { feed, samples: index..index + 1, labels: Some(vec![1]) })
        };
        values.iter().enumerate().map(batch).collect()
    }

    fn report(engine: &FakeEngine, values: &[f32]) -> ProofReport {
        let source = |name: &'static str| ModelSource::bytes(name);
        let scores = MeasuredOutput {
            name: "y".into(),
            measure: OutputMeasure::CLASSES,
            why: "it was set".into(),
            per_token: false,
        };
        let quality = QualityMeasures { outputs: vec![scores], mask: None };
        let options = ProofOptions { quality, ..ProofOptions::default() };
        prove(engine, &source("a"), &source("b"), batches(values), &options).unwrap()
    }

    fn why(report: &ProofReport) -> String {
        match &report.outcome {
            Outcome::Equal => "equal".to_owned(),
            Outcome::Differs { output, why } => format!("differs {output}: {why}"),
            Outcome::Unproven { why } => format!("unproven: {why}"),
        }
    }

    #[test]
    fn measures_equal_models() {
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", Fake::adding(0.0))]);
        let report = report(&engine, &[0.5, 2.0]);
        assert_eq!(why(&report), "equal");
        assert_eq!((report.samples, report.deviation.runs(), report.deployed.runs()), (2, 2, 2));
        let (name, metrics) = &report.metrics[0];
        assert_eq!((name.as_str(), metrics.reference_accuracy()), ("y", Some(0.5)));
    }

    #[test]
    fn stops_after_the_requested_samples() {
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", Fake::adding(0.0))]);
        let options = ProofOptions { max_samples: Some(3), max_written: Some(2), ..ProofOptions::default() };
        let source = |name: &'static str| ModelSource::bytes(name);
        let report = prove(&engine, &source("a"), &source("b"), batches(&[1.0; 5]), &options).unwrap();
        assert_eq!(why(&report), "equal");
        assert_eq!((report.samples, report.deviation.runs()), (3, 3));
        // The noise of the original is the difference between both forms.
        assert_eq!(report.floor.runs(), 2);
    }

    #[test]
    fn measures_differences_of_deployed_models() {
        // As a quantized model, whose integers overflow only in the engine's kernels.
        let saturated = Fake { noise: 0.5, ..Fake::adding(0.01) };
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", saturated)]);
        let source = |name: &'static str| ModelSource::bytes(name);
        for max_written in [None, Some(0), Some(1)] {
            let options = ProofOptions { measures_only: true, max_written, ..ProofOptions::default() };
            let report = prove(&engine, &source("a"), &source("b"), batches(&[1.0; 3]), &options).unwrap();
            let off_by = report.deviation.get("y").unwrap().max_abs;
            assert!((off_by - 0.51).abs() < 1e-6, "{off_by}");
        }
    }

    #[test]
    fn ends_when_its_time_is_over() {
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", Fake::adding(0.0))]);
        let source = |name: &'static str| ModelSource::bytes(name);
        let report = |seconds| {
            let options =
                ProofOptions { max_time: Some(Duration::from_secs(seconds)), ..ProofOptions::default() };
            prove(&engine, &source("a"), &source("b"), batches(&[1.0; 5]), &options).unwrap()
        };
        let (none, enough) = (report(0), report(3600));
        assert_eq!((none.samples, enough.samples), (1, 5));
        assert_eq!(none.notes, ["1 sample was compared in 0 s, not all"]);
        assert_eq!((why(&none), enough.notes.len()), ("equal".into(), 0));
    }

    #[test]
    fn judges_by_the_noise_of_the_model() {
        let off_by = Fake::adding(0.01);
        let quiet = FakeEngine::of([("a", Fake::adding(0.0)), ("b", off_by.clone())]);
        assert!(why(&report(&quiet, &[1.0])).starts_with("differs y: it is off by up to 1.0"));
        let noisy = FakeEngine::of([("a", Fake { noise: 0.005, ..Fake::adding(0.0) }), ("b", off_by)]);
        assert_eq!(why(&report(&noisy, &[1.0])), "equal");
        let deployed = Fake { noise: 0.01, ..Fake::adding(0.0) };
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", deployed)]);
        assert!(why(&report(&engine, &[1.0])).starts_with("differs y: with the engine's optimizations on, "));
    }

    #[test]
    fn deployed_models_run_on_the_provider() {
        let on = |a: Fake, b: Fake, provider: &str| {
            let engine = FakeEngine::of([("a", a), ("b", b)]);
            let load = LoadOptions { provider: provider.parse().unwrap(), ..LoadOptions::default() };
            let source = |name: &'static str| ModelSource::bytes(name);
            let options = ProofOptions { load, ..ProofOptions::default() };
            prove(&engine, &source("a"), &source("b"), batches(&[1.0]), &options).unwrap()
        };
        // The floor includes the deviation of the provider from the CPU.
        let moved = Fake { moved: 0.005, ..Fake::adding(0.0) };
        let off_by = Fake::adding(0.01);
        assert_eq!(why(&on(moved.clone(), off_by.clone(), "openvino")), "equal");
        assert!(why(&on(moved.clone(), off_by, "cpu")).starts_with("differs y: it is off by"));
        // Quality is measured there.
        let report = on(Fake::adding(0.0), moved.clone(), "cuda,device_id=1");
        assert!(why(&report).starts_with("differs y: on cuda,device_id=1, it is off by"), "{}", why(&report));
        assert!(report.metrics[0].1.drift() > 0.0);
        assert!(on(Fake::adding(0.0), moved, "cpu").metrics[0].1.drift() == 0.0);
        // Nothing is proven for a provider that does not load the original.
        let bound = Fake { is_cpu_only: true, ..Fake::adding(0.0) };
        let report = on(bound.clone(), Fake::adding(0.0), "openvino");
        assert!(
            why(&report).starts_with("unproven: on openvino, the original does not load: fake cannot load")
        );
        let report = on(Fake::adding(0.0), bound, "openvino");
        assert!(
            why(&report).starts_with("differs : on openvino, the result does not load"),
            "{}",
            why(&report)
        );
    }

    #[test]
    fn distinguishes_failures_of_both_models() {
        let sound = Fake::adding(0.0);
        let broken = Fake { fails_at: Some(f32::NEG_INFINITY), ..sound.clone() };
        let both = |a: Fake, b: Fake| FakeEngine::of([("a", a), ("b", b)]);
        let engine = FakeEngine::of([("b", sound.clone())]);
        assert!(why(&report(&engine, &[1.0])).starts_with("unproven: fake cannot load"));
        let engine = FakeEngine::of([("a", sound.clone())]);
        assert!(why(&report(&engine, &[1.0])).starts_with("differs : the result is broken: "));
        let unproven = report(&both(broken.clone(), sound.clone()), &[1.0]);
        assert!(why(&unproven).starts_with("unproven: the original runs on none"), "{}", why(&unproven));
        let differs = report(&both(sound.clone(), broken), &[1.0]);
        assert!(why(&differs).starts_with("differs : the result does not run"), "{}", why(&differs));
        // A size that the original rejects is skipped and noted.
        let picky = Fake { fails_at: Some(5.0), ..sound.clone() };
        let skipped = report(&both(picky, sound.clone()), &[1.0, 9.0]);
        assert_eq!((why(&skipped).as_str(), skipped.skipped, skipped.notes.len()), ("equal", 1, 1));
        assert_eq!(why(&report(&both(sound.clone(), sound), &[])), "unproven: there are no samples");
    }
}
