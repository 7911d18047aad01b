//! Latency of layers and of their composite, measured on small models in interleaved rounds.

use crate::analysis::timing_inputs::random_inputs;
use pare_graph::{
    DataType, Declared, Decline, Evaluate, EvaluateError, Graph, Model, Setting, Tensor, Type, ValueRef,
    evaluate::stopwatch,
};
use std::{cell::RefCell, collections::HashMap};

/// Times layers against their composite, and caches the results.
pub struct CompositionTimer<'e> {
    engine: &'e dyn Evaluate,
    setting: Setting,
    seed: u64,
    known: RefCell<HashMap<String, Option<Timing>>>,
    failed: RefCell<Option<EvaluateError>>,
}

/// Median latencies in seconds, and the number of rounds in which the composite was faster.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Timing {
    pub before: f64,
    pub after: f64,
    wins: usize,
}

/// Rounds in which each form is timed once. Of two equally fast forms, one wins 8 of 9 in 2 % of all cases.
const ROUNDS: usize = 9;
const ENOUGH: usize = 8;
/// Seconds that a form is run per round, and the largest number of runs.
const TURN: f64 = 0.02;
const MOST_RUNS: usize = 200;

impl Timing {
    /// Returns true if the composite is faster beyond noise.
    pub fn is_faster(&self) -> bool {
        self.wins >= ENOUGH && self.after < self.before
    }

    /// The ratio, for reports.
    pub fn describe(&self) -> String {
        let [a, b] = [self.before, self.after].map(|t| t * 1e3);
        format!("{:.2}× the time ({a:.3} to {b:.3} ms)", self.after / self.before)
    }
}

impl<'e> CompositionTimer<'e> {
    pub fn new(engine: &'e dyn Evaluate, threads: usize, seed: u64) -> Self {
        let (known, failed) = (RefCell::default(), RefCell::default());
        Self { engine, setting: Setting::DEPLOYED.threads(threads), seed, known, failed }
    }

    /// Returns the first error of a measurement.
    pub fn failure(&self) -> Result<(), EvaluateError> {
        self.failed.borrow().clone().map_or(Ok(()), Err)
    }

    /// Times the nodes that compute `outputs` from `input` before and after `change`. Equal keys are timed
    /// once. `None` if the nodes cannot be extracted from their graph.
    pub fn time(
        &self,
        key: &str,
        input: ValueRef<'_>,
        outputs: &[ValueRef<'_>],
        change: impl FnOnce(&mut Graph) -> Result<(), Decline>,
    ) -> Option<Timing> {
        if let Some(known) = self.known.borrow().get(key) {
            return *known;
        }
        let timing = extracted(input, outputs).and_then(|before| {
            let inputs = random_inputs(&before, 1, self.seed).ok()?;
            let mut after = before.clone();
            change(&mut after).ok()?;
            match self.measure(before, after, &inputs) {
                Ok(timing) => Some(timing),
                Err(error) => {
                    self.failed.borrow_mut().get_or_insert(error);
                    None
                }
            }
        });
        self.known.borrow_mut().insert(key.into(), timing);
        timing
    }

    fn measure(
        &self,
        before: Graph,
        after: Graph,
        inputs: &[(String, Tensor)],
    ) -> Result<Timing, EvaluateError> {
        let feeds: Vec<_> = inputs.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let load = |graph| self.engine.load(&Model::of(graph), self.setting);
        let mut forms = [load(before)?, load(after)?];
        let stopwatch = stopwatch::Stopwatch::rounds(ROUNDS, TURN, 3..=MOST_RUNS);
        let timings = stopwatch.measure(&mut forms, |form, runs| form.time(&feeds, runs))?;
        let [before, after] = [0, 1].map(|form| timings.seconds[form].median);
        Ok(Timing { before, after, wins: timings.wins[1] })
    }
}

/// The graph that computes `outputs` from `input`, with the type and shape of `input`: one sample, and
/// [`super::cost::NOMINAL`] for sizes that are not fixed.
fn extracted(input: ValueRef<'_>, outputs: &[ValueRef<'_>]) -> Option<Graph> {
    let nominal = |(axis, dim): (usize, &pare_graph::Dim)| {
        dim.size().unwrap_or(if axis == 0 { 1 } else { super::cost::NOMINAL })
    };
    let dtype = input.dtype()?;
    let ids: Vec<_> = outputs.iter().map(|output| output.id).collect();
    let mut small = input.graph.extract(&[input.id], &ids).ok()?;
    let &[x] = small.inputs() else { return None };
    if small.outputs().len() != outputs.len() {
        return None;
    }
    let dims: Vec<_> = input.shape()?.iter().enumerate().map(nominal).map(pare_graph::Dim::from).collect();
    small.set_declared(x, Some(declared(dtype, Some(&dims))));
    small.set_fact(x, pare_graph::Fact::tensor(dtype, dims));
    for (id, output) in small.outputs().to_vec().into_iter().zip(outputs) {
        small.set_declared(id, Some(declared(output.dtype()?, None)));
    }
    small.reinfer().ok()?;
    Some(small)
}

fn declared(dtype: DataType, shape: Option<&[pare_graph::Dim]>) -> Declared {
    let mut declared = Declared::default();
    declared.ty = Some(Type::tensor(dtype, shape));
    declared
}
