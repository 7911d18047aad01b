//! Proving that two models compute the same function, on samples.
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
//! A fifth widens the floor of models with loops: the original with its weights rounded otherwise.

use crate::{
    Batch, Comparison, Engine, EngineError, Feed, Kind, LoadOptions, Metrics, ModelSource, Optimize, Port,
    PortDim, Session, Tolerance, Value, Verdict,
    rounding::rounded_otherwise,
    state::{carry, state_pairs},
};

/// How a proof is run.
#[derive(Clone, Debug, Default)]
pub struct ProofOptions {
    /// How models are loaded; the level of optimization is set by the proof.
    pub load: LoadOptions,
    /// What counts as rounding.
    pub tolerance: Tolerance,
    /// Whether inputs and outputs may come in another order.
    pub any_order: bool,
    /// How often each sample is run, each time with the state that the last one left; 0 and 1 are once.
    pub steps: usize,
    /// Inputs with the outputs that they take up; found by names and types if there is none ([`state_pairs`]).
    pub state: Vec<(String, String)>,
    /// Whether the candidate may fix sizes of inputs and outputs that the original leaves open, and have other inputs
    /// and outputs: then nothing can be said.
    pub narrowed: bool,
    /// Samples to stop after; all are run if there is none.
    pub most: Option<usize>,
    /// Samples after which only the models as written go on.
    pub most_deployed: Option<usize>,
}

/// What a proof found.
#[derive(Clone, Debug)]
pub struct Report {
    /// The outcome.
    pub outcome: Outcome,
    /// The candidate against the original, without the engine's optimizations.
    pub drift: Comparison,
    /// The candidate with the engine's optimizations against the original without.
    pub deployed: Comparison,
    /// The original with the engine's optimizations, and with its weights rounded otherwise if it has loops, against itself
    /// without: the noise.
    pub floor: Comparison,
    /// For each output that holds class scores: agreement, accuracy, divergence.
    pub metrics: Vec<(String, Metrics)>,
    /// Samples that both models ran on.
    pub samples: usize,
    /// Whether the samples are given ones, so that shares of them say something about all inputs; the caller knows.
    pub given: bool,
    /// Runs that the original itself refused, such as sizes that it does not take.
    pub skipped: usize,
    /// What else is worth saying, one sentence each.
    pub notes: Vec<String>,
}

/// Whether the proof succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The candidate agrees with the original within its noise, as written and as deployed.
    Equal,
    /// It does not.
    Differs {
        /// The output that lies furthest off; empty if it is not one output's fault.
        output: String,
        /// What is wrong, in one sentence.
        why: String,
    },
    /// Nothing can be said: the engine cannot run the original, or there were no samples.
    Unproven {
        /// Why, in one sentence.
        why: String,
    },
}

impl From<Verdict> for Outcome {
    fn from(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Equal => Self::Equal,
            Verdict::Differs { output, why } => Self::Differs { output, why },
        }
    }
}

impl Outcome {
    fn differs(why: String) -> Self {
        Self::Differs { output: String::new(), why }
    }
}

impl Report {
    fn new() -> Self {
        Self {
            outcome: Outcome::Equal,
            drift: Comparison::new(),
            deployed: Comparison::new(),
            floor: Comparison::new(),
            metrics: Vec::new(),
            samples: 0,
            given: false,
            skipped: 0,
            notes: Vec::new(),
        }
    }

    fn with(mut self, outcome: Outcome) -> Self {
        self.outcome = outcome;
        self
    }

    /// A report without measurements, for models that could not be compared.
    pub fn unproven(why: impl Into<String>) -> Self {
        Self::new().with(Outcome::Unproven { why: why.into() })
    }

    /// Whether the candidate agrees with the original.
    pub fn is_equal(&self) -> bool {
        self.outcome == Outcome::Equal
    }

    fn measure(
        &mut self,
        reference: &[(String, Value)],
        candidate: &[(String, Value)],
        labels: Option<&[i64]>,
    ) {
        for (name, value) in reference {
            let other = candidate.iter().find(|(other, _)| other == name);
            let (Some(a), Some(b)) = (value.as_tensor(), other.and_then(|(_, value)| value.as_tensor()))
            else {
                continue;
            };
            let mut metrics = Metrics::default();
            metrics.add(a, b, labels);
            if metrics.rows() == 0 {
                continue;
            }
            match self.metrics.iter_mut().find(|(known, _)| known == name) {
                Some((_, known)) => known.merge(&metrics),
                None => self.metrics.push((name.clone(), metrics)),
            }
        }
    }
}

/// Compare `candidate` with `original` on `batches`.
///
/// A run that the original refuses is skipped; one that only the candidate refuses is a difference. The
/// interface (names, order and types of inputs and outputs) must be the same.
///
/// # Errors
/// Only those of `batches`: what the engine says becomes the report's outcome.
pub fn prove<E>(
    engine: &dyn Engine,
    original: &ModelSource,
    candidate: &ModelSource,
    batches: impl IntoIterator<Item = Result<Batch, E>>,
    options: &ProofOptions,
) -> Result<Report, E> {
    Original::new(engine, original, options).prove(candidate, batches)
}

/// A model that several candidates are compared with: it is loaded once.
pub struct Original<'e> {
    engine: &'e dyn Engine,
    options: &'e ProofOptions,
    sessions: Result<Sessions, EngineError>,
}

/// A model as written, and as the engine deploys it.
struct Sessions {
    written: Box<dyn Session>,
    /// The engine's own optimizer may fail on a model that is sound.
    deployed: Result<Box<dyn Session>, EngineError>,
    /// As written, with other roundings: of an original with loops.
    rounded: Option<Box<dyn Session>>,
}

impl Sessions {
    fn load(engine: &dyn Engine, model: &ModelSource, options: &ProofOptions) -> Result<Self, EngineError> {
        let load = |level| engine.load(model, &options.load.with_optimize(level));
        Ok(Self { written: load(Optimize::Off)?, deployed: load(Optimize::All), rounded: None })
    }

    fn of_original(
        engine: &dyn Engine,
        model: &ModelSource,
        options: &ProofOptions,
    ) -> Result<Self, EngineError> {
        let load = |model| engine.load(&model, &options.load.with_optimize(Optimize::Off)).ok();
        Ok(Self { rounded: rounded_otherwise(model).and_then(load), ..Self::load(engine, model, options)? })
    }
}

impl<'e> Original<'e> {
    /// Load `model`.
    pub fn new(engine: &'e dyn Engine, model: &ModelSource, options: &'e ProofOptions) -> Self {
        Self { engine, options, sessions: Sessions::of_original(engine, model, options) }
    }

    /// Compare `candidate` with this model, as [`prove`] does.
    ///
    /// # Errors
    /// Only those of `batches`.
    pub fn prove<E>(
        &mut self,
        candidate: &ModelSource,
        batches: impl IntoIterator<Item = Result<Batch, E>>,
    ) -> Result<Report, E> {
        let report = Report::new();
        let original = match &mut self.sessions {
            Ok(sessions) => sessions,
            Err(error) => return Ok(report.with(Outcome::Unproven { why: error.to_string() })),
        };
        let candidate = match Sessions::load(self.engine, candidate, self.options) {
            Ok(sessions) => sessions,
            Err(error) => {
                return Ok(report.with(Outcome::differs(format!("the result is broken: {error}"))));
            }
        };
        let (first, second) = (&*original.written, &*candidate.written);
        let mut report = report;
        if let Some(why) = interface_change(first, second, self.options) {
            let outcome = if self.options.narrowed {
                Outcome::Unproven { why: format!("the interface changed as asked for: {why}") }
            } else {
                Outcome::differs(why)
            };
            return Ok(report.with(outcome));
        }
        report.notes.extend(other_orders(first, second));
        let undeclared = undeclared(first.outputs(), second.outputs());
        let steps = self.options.steps.max(1);
        let state = match (steps, &self.options.state[..]) {
            (1, _) => Vec::new(),
            (_, []) => state_pairs(first.inputs(), first.outputs()),
            (_, given) => given.to_vec(),
        };
        if steps > 1 {
            if let Some(why) = no_state(&state, first) {
                return Ok(report.with(Outcome::Unproven { why }));
            }
            let pairs: Vec<_> =
                state.iter().map(|(input, output)| format!("`{input}` from `{output}`")).collect();
            report.notes.push(format!("{steps} steps, state carried on: {}", pairs.join(", ")));
        }
        let most_deployed = self.options.most_deployed.unwrap_or(usize::MAX);
        let mut proof = Proof { report, original, candidate, undeclared, steps, state, most_deployed };
        if let Some(outcome) = proof.check_deployment() {
            return Ok(proof.report.with(outcome));
        }
        let mut refusal = None;
        for batch in batches {
            if self.options.most.is_some_and(|most| proof.report.samples >= most) {
                break;
            }
            match proof.run(&batch?) {
                Ok(None) => {}
                Ok(Some(outcome)) => return Ok(proof.report.with(outcome)),
                Err(error) => {
                    proof.report.skipped += 1;
                    refusal.get_or_insert(error);
                }
            }
        }
        let outcome = proof.judge(refusal, self.options);
        Ok(proof.report.with(outcome))
    }
}

struct Proof<'o> {
    report: Report,
    original: &'o mut Sessions,
    candidate: Sessions,
    /// Outputs of whose shape the candidate says less, until the original is seen not to keep to its own.
    undeclared: Vec<(Port, Kind)>,
    steps: usize,
    state: Vec<(String, String)>,
    most_deployed: usize,
}

impl Proof<'_> {
    fn check_deployment(&mut self) -> Option<Outcome> {
        match (&self.original.deployed, &self.candidate.deployed) {
            // The candidate's fault only if the original gets through.
            (Ok(_), Err(error)) => {
                let why = format!("with the engine's optimizations on, the result does not load: {error}");
                return Some(Outcome::differs(why));
            }
            (Err(error), _) => {
                let note = format!("with the engine's optimizations on, the original does not load: {error}");
                self.report.notes.push(note);
            }
            (Ok(_), Ok(_)) => {}
        }
        None
    }

    /// Run all sessions on one batch, as many steps as are asked for. An error is the original's; `Some` is a
    /// difference found.
    fn run(&mut self, batch: &Batch) -> Result<Option<Outcome>, EngineError> {
        // Each session goes on with its own state.
        let mut feeds = Feeds::new(&batch.feed);
        for step in 0..self.steps {
            let labels = batch.labels.as_deref().filter(|_| step == 0);
            if let Some(outcome) = self.step(&mut feeds, labels)? {
                return Ok(Some(outcome));
            }
        }
        self.report.samples += batch.samples.len();
        Ok(None)
    }

    fn step(&mut self, feeds: &mut Feeds, labels: Option<&[i64]>) -> Result<Option<Outcome>, EngineError> {
        let reference = self.original.written.run(&feeds.original)?;
        let candidate = match self.candidate.written.run(&feeds.candidate) {
            Ok(outputs) => outputs,
            Err(error) => {
                let why = format!("the result does not run where the original does: {error}");
                return Ok(Some(Outcome::differs(why)));
            }
        };
        let kept = |(port, _): &(Port, Kind)| {
            reference.iter().any(|(n, v)| *n == port.name && port.kind.accepts(v).is_ok())
        };
        self.undeclared.retain(kept);
        self.report.drift.add(&reference, &candidate);
        self.report.measure(&reference, &candidate, labels);
        carry(&self.state, &candidate, &mut feeds.candidate);
        carry(&self.state, &reference, &mut feeds.original);
        if self.report.samples >= self.most_deployed {
            return Ok(None);
        }
        if let Some(Ok(outputs)) = self.original.rounded.as_mut().map(|s| s.run(&feeds.rounded)) {
            let (exact, rounded) = (floats(&reference), floats(&outputs));
            // A loop that ends otherwise says nothing about rounding.
            if same_shapes(&exact, &rounded) {
                self.report.floor.add(&exact, &rounded);
            }
            carry(&self.state, &outputs, &mut feeds.rounded);
        }
        let original = self.original.deployed.as_mut().ok().map(|s| s.run(&feeds.original_deployed));
        if let Some(Ok(outputs)) = &original {
            self.report.floor.add(&reference, outputs);
            carry(&self.state, outputs, &mut feeds.original_deployed);
        }
        match self.candidate.deployed.as_mut().ok().map(|s| s.run(&feeds.candidate_deployed)) {
            Some(Ok(outputs)) => {
                self.report.deployed.add(&reference, &outputs);
                carry(&self.state, &outputs, &mut feeds.candidate_deployed);
            }
            Some(Err(error)) if matches!(original, Some(Ok(_))) => {
                let why = format!("with the engine's optimizations on, the result does not run: {error}");
                return Ok(Some(Outcome::differs(why)));
            }
            _ => {}
        }
        Ok(None)
    }

    fn judge(&mut self, refusal: Option<EngineError>, options: &ProofOptions) -> Outcome {
        let report = &mut self.report;
        if report.samples == 0 {
            let why = match refusal {
                Some(error) => format!("the original runs on none of the samples: {error}"),
                None => "there are no samples".to_owned(),
            };
            return Outcome::Unproven { why };
        }
        if let Some((port, kind)) = self.undeclared.first() {
            return Outcome::differs(format!("output `{}` is {kind} instead of {}", port.name, port.kind));
        }
        if let Some(error) = refusal {
            report.notes.push(format!("{} runs were skipped: {error}", report.skipped));
        }
        let written = options.tolerance.judge(&report.drift, &report.floor);
        if !written.is_equal() {
            return written.into();
        }
        match options.tolerance.judge(&report.deployed, &report.floor) {
            Verdict::Equal => Outcome::Equal,
            Verdict::Differs { output, why } => {
                let why = format!("with the engine's optimizations on, {why}");
                Outcome::Differs { output, why }
            }
        }
    }
}

/// What each session is fed with.
struct Feeds {
    original: Feed,
    candidate: Feed,
    original_deployed: Feed,
    candidate_deployed: Feed,
    rounded: Feed,
}

impl Feeds {
    fn new(feed: &Feed) -> Self {
        Self {
            original: feed.clone(),
            candidate: feed.clone(),
            original_deployed: feed.clone(),
            candidate_deployed: feed.clone(),
            rounded: feed.clone(),
        }
    }
}

/// The outputs that round. Others are decisions: that rounding may turn one is no leave to turn more.
fn floats(outputs: &Feed) -> Feed {
    let rounds = |(_, value): &&(String, Value)| value.as_tensor().is_some_and(|t| t.dtype().is_float());
    outputs.iter().filter(rounds).cloned().collect()
}

fn same_shapes(a: &Feed, b: &Feed) -> bool {
    let shape = |(_, value): &(String, Value)| value.as_tensor().map(|t| t.shape().to_vec());
    a.iter().map(shape).eq(b.iter().map(shape))
}

/// Why these pairs are no state of the model, as a sentence.
fn no_state(state: &[(String, String)], session: &dyn Session) -> Option<String> {
    if state.is_empty() {
        return Some("no input takes up an output, so there is no state to carry on".to_owned());
    }
    let named = |ports: &[Port], name: &str| ports.iter().any(|p| p.name == name);
    state.iter().find_map(|(input, output)| {
        if !named(session.inputs(), input) {
            return Some(format!("there is no input `{input}` to carry state to"));
        }
        (!named(session.outputs(), output))
            .then(|| format!("there is no output `{output}` to carry state from"))
    })
}

/// What is to be said of inputs and outputs that come in another order.
fn other_orders(a: &dyn Session, b: &dyn Session) -> Vec<String> {
    let names = |ports: &[Port]| -> Vec<String> { ports.iter().map(|p| p.name.clone()).collect() };
    let pairs = [("inputs", a.inputs(), b.inputs()), ("outputs", a.outputs(), b.outputs())];
    let differ = pairs.into_iter().filter(|(_, a, b)| names(a) != names(b));
    differ.map(|(role, ..)| format!("the {role} come in another order: they were matched by name")).collect()
}

/// The first difference between the interfaces, as a sentence. Of outputs an engine tells what it inferred too, and
/// it may infer more of the candidate: sizes that the original leaves open are held to by running, not here.
fn interface_change(
    original: &dyn Session,
    candidate: &dyn Session,
    options: &ProofOptions,
) -> Option<String> {
    let aligned = |wanted: &[Port], ports: &[Port]| {
        let mut ports = ports.to_vec();
        if options.any_order {
            let place = |port: &Port| wanted.iter().position(|w| w.name == port.name).unwrap_or(usize::MAX);
            ports.sort_by_key(place);
        }
        ports
    };
    let open = |candidate: &[Port], original: &[Port]| -> Vec<Port> {
        let rest = candidate.iter().skip(original.len()).cloned();
        candidate.iter().zip(original).map(opened).chain(rest).collect()
    };
    let inputs = aligned(original.inputs(), candidate.inputs());
    let inputs = if options.narrowed { open(&inputs, original.inputs()) } else { inputs };
    let outputs = open(&aligned(original.outputs(), candidate.outputs()), original.outputs());
    port_change("input", original.inputs(), &inputs)
        .or_else(|| port_change("output", original.outputs(), &outputs))
}

/// The original's outputs of whose shape the candidate says less, and what it says. An engine forgets what the file
/// declares where it infers another size, and it may infer more of the candidate.
fn undeclared(original: &[Port], candidate: &[Port]) -> Vec<(Port, Kind)> {
    let silent = |port: &Port, other: &Port| match (port.dims(), other.dims()) {
        (Some(wanted), Some(dims)) if wanted.len() == dims.len() => {
            let open = |(w, d): (&PortDim, &PortDim)| matches!((w, d), (PortDim::Fixed(_), PortDim::Unknown));
            wanted.iter().zip(dims).any(open)
        }
        (wanted, dims) => wanted.is_some() && dims.is_none(),
    };
    let less = |port: &Port| {
        let other = candidate.iter().find(|other| other.name == port.name && silent(port, other))?;
        Some((port.clone(), other.kind.clone()))
    };
    original.iter().filter_map(less).collect()
}

/// The candidate's port with the dimensions left open that the original leaves open, and with the original's for those that
/// it leaves open itself: [`undeclared`] tells these.
fn opened((candidate, original): (&Port, &Port)) -> Port {
    let mut port = candidate.clone();
    let Kind::Tensor { dims, .. } = &mut port.kind else { return port };
    match (dims.as_mut(), original.dims()) {
        (Some(dims), Some(wanted)) if wanted.len() == dims.len() => {
            let open = |(dim, wanted): &(&mut PortDim, &PortDim)| {
                !matches!(wanted, PortDim::Fixed(_)) || **dim == PortDim::Unknown
            };
            dims.iter_mut().zip(wanted).filter(open).for_each(|(dim, wanted)| dim.clone_from(wanted));
        }
        (Some(_), None) => *dims = None,
        (None, Some(wanted)) => *dims = Some(wanted.to_vec()),
        _ => {}
    }
    port
}

/// The first difference between two lists of ports, as a sentence; `role` is what to call one of them.
pub fn port_change(role: &str, original: &[Port], candidate: &[Port]) -> Option<String> {
    let name = |ports: &[Port], place: usize| ports.get(place).map(|port| port.name.clone());
    for place in 0..original.len().max(candidate.len()) {
        let number = place + 1;
        match (name(original, place), name(candidate, place)) {
            (Some(a), Some(b)) if a == b => {
                let (before, after) = (&original[place].kind, &candidate[place].kind);
                if before != after {
                    return Some(format!("{role} `{a}` is {after} instead of {before}"));
                }
            }
            (Some(a), Some(b)) => return Some(format!("{role} {number} is `{b}` instead of `{a}`")),
            (Some(a), None) => return Some(format!("{role} `{a}` is gone")),
            (None, Some(b)) => return Some(format!("{role} `{b}` is new")),
            (None, None) => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SamplesError;
    use crate::fake::{Fake, FakeEngine};
    use pare_graph::DataType;

    fn batches(values: &[f32]) -> Vec<Result<Batch, SamplesError>> {
        let batch = |(index, &x): (usize, &f32)| {
            let feed = crate::fake::feed("x", &[x, 1.0]);
            Ok(Batch { feed, samples: index..index + 1, labels: Some(vec![1]) })
        };
        values.iter().enumerate().map(batch).collect()
    }

    fn report(engine: &FakeEngine, values: &[f32]) -> Report {
        let source = |name: &'static str| ModelSource::bytes(name);
        prove(engine, &source("a"), &source("b"), batches(values), &ProofOptions::default()).unwrap()
    }

    fn why(report: &Report) -> String {
        match &report.outcome {
            Outcome::Equal => "equal".to_owned(),
            Outcome::Differs { output, why } => format!("differs {output}: {why}"),
            Outcome::Unproven { why } => format!("unproven: {why}"),
        }
    }

    #[test]
    fn equal_models_are_proven_and_measured() {
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", Fake::adding(0.0))]);
        let report = report(&engine, &[0.5, 2.0]);
        assert_eq!(why(&report), "equal");
        assert_eq!((report.samples, report.drift.runs(), report.deployed.runs()), (2, 2, 2));
        let (name, metrics) = &report.metrics[0];
        assert_eq!((name.as_str(), metrics.reference_accuracy()), ("y", Some(0.5)));
    }

    #[test]
    fn a_proof_stops_after_as_many_samples_as_are_asked_for() {
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", Fake::adding(0.0))]);
        let options = ProofOptions { most: Some(3), most_deployed: Some(2), ..ProofOptions::default() };
        let source = |name: &'static str| ModelSource::bytes(name);
        let report = prove(&engine, &source("a"), &source("b"), batches(&[1.0; 5]), &options).unwrap();
        assert_eq!(why(&report), "equal");
        assert_eq!((report.samples, report.drift.runs()), (3, 3));
        assert_eq!((report.deployed.runs(), report.floor.runs()), (2, 2));
    }

    #[test]
    fn the_models_noise_is_the_yardstick() {
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
    fn what_cannot_run_is_told_apart() {
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
        // A size that the original refuses is left out, and said so.
        let picky = Fake { fails_at: Some(5.0), ..sound.clone() };
        let skipped = report(&both(picky, sound.clone()), &[1.0, 9.0]);
        assert_eq!((why(&skipped).as_str(), skipped.skipped, skipped.notes.len()), ("equal", 1, 1));
        assert_eq!(why(&report(&both(sound.clone(), sound), &[])), "unproven: there are no samples");
    }

    #[test]
    fn interfaces_must_be_the_same() {
        let port = |name: &str, dim| Port::tensor(name, DataType::Float, &[dim]);
        let (a, b) = (port("a", PortDim::Fixed(1)), port("b", PortDim::Unknown));
        let one = std::slice::from_ref(&a);
        let change = |x: &[Port], y: &[Port]| port_change("output", x, y);
        assert_eq!(change(one, one), None);
        assert_eq!(
            change(&[a.clone(), b.clone()], &[b.clone(), a.clone()]).unwrap(),
            "output 1 is `b` instead of `a`"
        );
        assert_eq!(change(one, &[]).unwrap(), "output `a` is gone");
        assert_eq!(change(&[], one).unwrap(), "output `a` is new");
        let wide = port("a", PortDim::Fixed(2));
        assert_eq!(change(one, &[wide]).unwrap(), "output `a` is float[2] instead of float[1]");
    }
}
