//! The effect of rounding errors on the original.
//!
//! The engine's own optimizations show a part of it. Where a candidate deviates further, the original runs with
//! perturbed operands too: operators that read numbers off by one rounding show the errors that another order
//! of the same arithmetic may have, also where the model amplifies them (`Exp`, `Log`, differences of close
//! numbers), and the decisions (`Cast` to integers, `ArgMax`) that rounding may change.

use super::variants::{declared_outputs, in_double_precision, perturbed};
use crate::{Comparison, Deviation, Engine, Feed, LoadOptions, ModelSource, Port, Session, Value, epsilon};
use pare_graph::{DataType, Tensor};
use std::cell::OnceCell;

/// Runs with operands off by one rounding. The largest of several draws is the noise.
const NEAR_RUNS: usize = 4;

/// Runs that show undecided elements, with operands off by several roundings: an element that is undecided at
/// one rounding is drawn to either side with about equal probability, so that 12 runs miss one in 4,096.
const FAR_RUNS: usize = 12;
const FAR_EPSILONS: f64 = 8.0;

/// Undecided elements that may escape [`FAR_RUNS`], as a share of those found.
const ESCAPED: f64 = 1.0 / 32.0;

/// A perturbation that is amplified further than this, by a decision within the model or a division by almost
/// nothing, is no measure of rounding.
const MAX_AMPLIFICATION: f64 = 16_384.0;

/// All integers below it are numbers of double precision.
const INTEGERS: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;

/// Batches that perturbation does not explain, after which no others are examined.
const MAX_UNEXPLAINED: usize = 4;

/// Variants of the original, loaded when first needed.
pub(super) struct Noise<'e> {
    engine: &'e dyn Engine,
    load: LoadOptions,
    model: ModelSource,
    near: Variant,
    far: Variant,
    double: Variant,
    declared: OnceCell<Vec<Port>>,
    unexplained: usize,
}

/// Perturbed runs on one feed.
pub(super) struct Draws<'f> {
    feed: &'f Feed,
    far: Option<Vec<Feed>>,
}

impl<'f> Draws<'f> {
    pub fn new(feed: &'f Feed) -> Self {
        Self { feed, far: None }
    }
}

/// A session, loaded when first needed; `None` if the engine does not load it.
type Variant = OnceCell<Option<Box<dyn Session>>>;

impl<'e> Noise<'e> {
    pub fn new(engine: &'e dyn Engine, load: &LoadOptions, model: ModelSource) -> Self {
        let load = load.as_written();
        let (near, far, double) = (Variant::new(), Variant::new(), Variant::new());
        Self { engine, load, model, near, far, double, declared: OnceCell::new(), unexplained: 0 }
    }

    /// An output as the original declares it.
    pub fn declared(&self, output: &str) -> Option<&Port> {
        let declared = self.declared.get_or_init(|| declared_outputs(&self.model));
        declared.iter().find(|port| port.name == output)
    }

    /// Returns true if the engine does not run the model with perturbed operands.
    pub fn is_unknown(&self) -> bool {
        matches!(self.near.get(), Some(None))
    }

    /// Starts with another candidate.
    pub fn reset(&mut self) {
        self.unexplained = 0;
    }

    /// Returns true if perturbation failed to explain the deviation of many batches.
    pub fn is_exhausted(&self) -> bool {
        self.unexplained >= MAX_UNEXPLAINED
    }

    /// Counts a batch whose deviation remains unexplained.
    pub fn add_unexplained(&mut self) {
        self.unexplained += 1;
    }

    fn load(&self, variant: Option<ModelSource>) -> Option<Box<dyn Session>> {
        self.engine.load(&variant?, &self.load).ok()
    }

    /// One run with operands off by one rounding.
    pub fn near(&mut self, feed: &Feed) -> Option<Feed> {
        self.near.get_or_init(|| self.load(perturbed(&self.model, 1.0)));
        self.near.get_mut()?.as_mut()?.run(feed).ok()
    }

    /// Runs with operands off by several roundings, drawn when first needed.
    fn far<'d>(&mut self, draws: &'d mut Draws<'_>) -> &'d [Feed] {
        self.far.get_or_init(|| self.load(perturbed(&self.model, FAR_EPSILONS)));
        let Draws { feed, far } = draws;
        let session = self.far.get_mut().and_then(Option::as_mut);
        let run = |session: &mut Box<dyn Session>| {
            (0..FAR_RUNS).map_while(|_| session.run(feed).ok()).collect::<Vec<_>>()
        };
        far.get_or_insert_with(|| session.map_or(vec![], run))
    }

    /// The outputs in double precision, rounded to the types of `reference`; `None` if the engine cannot run the
    /// model so.
    fn double(&mut self, feed: &Feed, reference: &Feed) -> Option<Feed> {
        self.double.get_or_init(|| self.load(in_double_precision(&self.model)));
        let session = self.double.get_mut()?.as_mut()?;
        let wide = |value: &Value| cast(value, DataType::Float, DataType::Double);
        let feed: Feed = feed.iter().map(|(name, value)| (name.clone(), wide(value))).collect();
        let outputs = session.run(&feed).ok()?;
        let narrow = |(name, value): (String, Value)| {
            let is_single = get(reference, &name).and_then(float_type) == Some(DataType::Float);
            let value = if is_single { cast(&value, DataType::Double, DataType::Float) } else { value };
            (name, value)
        };
        Some(outputs.into_iter().map(narrow).collect())
    }

    /// Adds the distance of the original from double precision to `floor`: a candidate no further from the
    /// function of real numbers than the original is right. Where an element of a candidate is nearer to double
    /// precision than the original's, as after an overflow of the original, they are taken to agree. Returns the
    /// number of these elements.
    pub fn measure_error(
        &mut self,
        feed: &Feed,
        reference: &Feed,
        candidates: &mut [&mut Feed],
        floor: &mut Comparison,
    ) -> usize {
        let Some(exact) = self.double(feed, reference) else { return 0 };
        add_floats(reference, &exact, floor);
        let mut found = 0;
        for (name, value) in reference {
            let (Some(value), Some(exact)) =
                (value.as_tensor(), get(&exact, name).and_then(Value::as_tensor))
            else {
                continue;
            };
            for candidate in candidates.iter_mut() {
                let nearer = get(candidate, name)
                    .and_then(Value::as_tensor)
                    .map_or(vec![], |candidate| nearer_elements(value, candidate, exact));
                copy_elements(value, candidate, name, &nearer);
                found += nearer.len();
            }
        }
        found
    }

    /// Adds the deviation of the floating-point outputs of perturbed runs to `floor`. Elements that perturbation
    /// changes beyond rounding are not determined by the model: there the candidates are taken to agree. Returns
    /// the outputs with their numbers of such elements.
    pub fn measure(
        &mut self,
        draws: &mut Draws<'_>,
        reference: &Feed,
        candidates: &mut [&mut Feed],
        floor: &mut Comparison,
    ) -> Vec<(String, usize)> {
        let mut runs: Vec<_> = (0..NEAR_RUNS).map_while(|_| self.near(draws.feed)).collect();
        let mut found = self.settle_sizes(draws, reference, candidates, &runs);
        for (name, value) in reference {
            let Value::Tensor(tensor) = value else { continue };
            let is_settled = found.iter().any(|(other, _)| other == name);
            let Some(exact) = tensor.to_f64().filter(|_| tensor.dtype().is_float() && !is_settled) else {
                continue;
            };
            let seen = floor.get(name).map_or(0.0, |known| known.max_reference);
            let limit = largest_rounding(tensor.dtype(), largest(&exact).max(seen));
            let changed_by = |runs: &mut dyn Iterator<Item = &Feed>| {
                undetermined(&exact, tensor.shape(), name, runs, limit)
            };
            let mut changed = changed_by(&mut runs.iter());
            let doubtful = changed_by(&mut candidates.iter().map(|outputs| &**outputs));
            if changed.is_empty() && doubtful.is_empty() {
                continue;
            }
            // A decision that rounding changes, such as an order, does not change in each of a few runs.
            changed.extend(changed_by(&mut self.far(draws).iter()));
            changed.sort_unstable();
            changed.dedup();
            let is_escaped = |i: &usize| changed.binary_search(i).is_err();
            let escaped: Vec<_> = doubtful.into_iter().filter(is_escaped).collect();
            if may_escape(escaped.len(), changed.len()) {
                changed.extend(escaped);
            }
            if changed.is_empty() {
                continue;
            }
            let all = runs.iter_mut().chain(candidates.iter_mut().map(|candidate| &mut **candidate));
            for outputs in all {
                copy_elements(tensor, outputs, name, &changed);
            }
            found.push((name.clone(), changed.len()));
        }
        runs.iter().for_each(|outputs| add_floats(reference, outputs, floor));
        found
    }

    /// Replaces the outputs of `candidates` whose sizes rounding decides, as of detections above a threshold: those to
    /// which perturbed runs give other sizes. `near` are runs with operands off by one rounding. Returns these outputs
    /// with their numbers of elements, none of which is determined.
    fn settle_sizes(
        &mut self,
        draws: &mut Draws<'_>,
        reference: &Feed,
        candidates: &mut [&mut Feed],
        near: &[Feed],
    ) -> Vec<(String, usize)> {
        let is_resized = |outputs: &Feed, (name, value): &(String, Value)| {
            get(outputs, name).is_some_and(|other| is_resized(value, other))
        };
        let is_doubtful =
            candidates.iter().any(|outputs| reference.iter().any(|value| is_resized(outputs, value)));
        let far = if is_doubtful { self.far(draws) } else { &[] };
        let mut settled = vec![];
        for output in reference {
            if !near.iter().chain(far).any(|outputs| is_resized(outputs, output)) {
                continue;
            }
            let (name, value) = output;
            for (other, candidate) in candidates.iter_mut().flat_map(|outputs| outputs.iter_mut()) {
                if other == name && is_of_kind(value, candidate) {
                    *candidate = value.clone();
                }
            }
            settled.push((name.clone(), value.as_tensor().map_or(1, Tensor::len)));
        }
        settled
    }

    /// Replaces the outputs of `candidates` that make decisions and differ from `reference` only in undecided
    /// elements: those that perturbed runs change to the same value. Returns the number of these elements.
    pub fn decide(&mut self, draws: &mut Draws<'_>, reference: &Feed, candidates: &mut [&mut Feed]) -> usize {
        let undecided = |candidate: &&mut Feed| {
            let differs = |(name, value): &(String, Value)| {
                decisions(value).is_some() && get(candidate, name) != Some(value)
            };
            reference.iter().any(differs)
        };
        if !candidates.iter().any(undecided) {
            return 0;
        }
        let runs = self.far(draws);
        let mut explained = 0;
        for (name, value) in reference {
            let Some(decided) = decisions(value) else { continue };
            let drawn: Vec<_> = runs.iter().filter_map(|run| decisions(get(run, name)?)).collect();
            for candidate in candidates.iter_mut() {
                let Some((_, other)) = candidate.iter_mut().find(|(n, _)| n == name) else { continue };
                let Some(found) =
                    decisions(other).and_then(|other| undecided_changes(&decided, &other, &drawn))
                else {
                    continue;
                };
                explained += found;
                *other = value.clone();
            }
        }
        explained
    }
}

pub(super) fn get<'f>(feed: &'f Feed, name: &str) -> Option<&'f Value> {
    feed.iter().find(|(n, _)| n == name).map(|(_, value)| value)
}

/// Returns true if both are tensors of one type and rank, or both sequences.
fn is_of_kind(value: &Value, other: &Value) -> bool {
    match (value, other) {
        (Value::Tensor(a), Value::Tensor(b)) => (a.dtype(), a.rank()) == (b.dtype(), b.rank()),
        (Value::Sequence(_), Value::Sequence(_)) => true,
        _ => false,
    }
}

/// Returns true if both are of one kind, but not of one size.
fn is_resized(value: &Value, other: &Value) -> bool {
    is_of_kind(value, other)
        && match (value, other) {
            (Value::Tensor(a), Value::Tensor(b)) => a.shape() != b.shape(),
            (Value::Sequence(a), Value::Sequence(b)) => a.len() != b.len(),
            _ => false,
        }
}

/// A tensor of type `from` in type `to`; other values as they are.
fn cast(value: &Value, from: DataType, to: DataType) -> Value {
    let converted = value
        .as_tensor()
        .filter(|tensor| tensor.dtype() == from)
        .and_then(|tensor| Tensor::from_f64(to, tensor.shape(), &tensor.to_f64()?).ok());
    converted.map_or_else(|| value.clone(), Value::Tensor)
}

/// The elements of an output that some run changes by more than `limit`, or to or from a number that is not finite.
fn undetermined(
    exact: &[f64],
    shape: &[usize],
    name: &str,
    runs: &mut dyn Iterator<Item = &Feed>,
    limit: f64,
) -> Vec<usize> {
    let tensors = runs.filter_map(|run| get(run, name)?.as_tensor().filter(|t| t.shape() == shape));
    let runs: Vec<_> = tensors.filter_map(Tensor::to_f64).collect();
    let differs = |a: f64, b: f64| {
        let same = a == b || (a.is_nan() && b.is_nan());
        !same && !((a - b).abs() <= limit)
    };
    (0..exact.len()).filter(|&i| runs.iter().any(|run| differs(exact[i], run[i]))).collect()
}

/// The elements of a candidate that differ from the reference and are nearer to the exact ones; of integers and bools,
/// equal to them.
fn nearer_elements(reference: &Tensor, candidate: &Tensor, exact: &Tensor) -> Vec<usize> {
    let kind = |tensor: &Tensor| (tensor.dtype(), tensor.shape().to_vec());
    if [candidate, exact].iter().any(|other| kind(other) != kind(reference)) {
        return vec![];
    }
    let dtype = reference.dtype();
    let is_float = dtype.is_float();
    let [Some(reference), Some(candidate), Some(exact)] = [reference, candidate, exact].map(Tensor::to_f64)
    else {
        return vec![];
    };
    // Larger integers are not numbers of double precision.
    if !is_float && reference.iter().chain(&candidate).any(|value| value.abs() >= INTEGERS) {
        return vec![];
    }
    // The error of an infinite reference is infinite, so there a candidate has to be close.
    let close = largest_rounding(dtype, largest(&exact));
    let is_nearer = |&i: &usize| {
        let error = |value: f64| (value - exact[i]).abs();
        let allowed = if reference[i].is_finite() { error(reference[i]) } else { close };
        candidate[i] != reference[i]
            && error(candidate[i]) <= allowed
            && (is_float || candidate[i] == exact[i])
    };
    (0..reference.len()).filter(is_nearer).collect()
}

/// The largest deviation that rounding explains of values up to `scale`.
fn largest_rounding(dtype: DataType, scale: f64) -> f64 {
    MAX_AMPLIFICATION * epsilon(dtype) * scale
}

/// The largest finite |value|.
fn largest(values: &[f64]) -> f64 {
    values.iter().filter(|value| value.is_finite()).fold(0.0, |most, value| most.max(value.abs()))
}

/// Sets elements of an output to those of `reference`.
fn copy_elements(reference: &Tensor, outputs: &mut Feed, name: &str, elements: &[usize]) {
    let Some((_, Value::Tensor(tensor))) = outputs.iter_mut().find(|(n, _)| n == name) else { return };
    if (tensor.dtype(), tensor.shape()) != (reference.dtype(), reference.shape()) {
        return;
    }
    let (Some(from), Some(mut to)) = (reference.to_f64(), tensor.to_f64()) else { return };
    elements.iter().for_each(|&i| to[i] = from[i]);
    if let Ok(changed) = Tensor::from_f64(tensor.dtype(), tensor.shape(), &to) {
        *tensor = changed;
    }
}

/// Adds the deviation of every floating-point output that rounding explains.
pub(super) fn add_floats(reference: &Feed, perturbed: &Feed, floor: &mut Comparison) {
    let mut pairs = (Feed::new(), Feed::new());
    for (name, value) in reference {
        let Some(other) = get(perturbed, name) else { continue };
        let Some(dtype) = float_type(value) else { continue };
        let deviation = Deviation::between(value, other);
        let scale = deviation.max_reference.max(floor.get(name).map_or(0.0, |known| known.max_reference));
        let is_rounding = deviation.max_abs <= largest_rounding(dtype, scale);
        if deviation.mismatch.is_none() && deviation.misplaced == 0 && is_rounding {
            pairs.0.push((name.clone(), value.clone()));
            pairs.1.push((name.clone(), other.clone()));
        }
    }
    floor.add(&pairs.0, &pairs.1);
}

/// The type of a value that consists of floating-point numbers.
fn float_type(value: &Value) -> Option<DataType> {
    let dtype = match value {
        Value::Tensor(tensor) | Value::Map { values: tensor, .. } => tensor.dtype(),
        Value::Sequence(items) => return items.first().and_then(float_type),
        Value::Optional(inner) => return inner.as_deref().and_then(float_type),
    };
    dtype.is_float().then_some(dtype)
}

/// The elements of a tensor of integers, bools or strings.
struct Decisions<'v> {
    shape: &'v [usize],
    elements: Elements<'v>,
}

#[derive(PartialEq)]
enum Elements<'v> {
    Integers(Vec<i64>),
    Strings(&'v [bytes::Bytes]),
}

fn decisions(value: &Value) -> Option<Decisions<'_>> {
    let tensor: &Tensor = value.as_tensor().filter(|tensor| !tensor.dtype().is_float())?;
    let elements = match tensor.as_strings() {
        Some(strings) => Elements::Strings(strings),
        None => Elements::Integers(tensor.to_i64()?),
    };
    Some(Decisions { shape: tensor.shape(), elements })
}

/// The number of differing elements, if (almost) all of them are undecided.
fn undecided_changes(
    reference: &Decisions<'_>,
    candidate: &Decisions<'_>,
    drawn: &[Decisions<'_>],
) -> Option<usize> {
    let drawn: Vec<_> =
        drawn.iter().filter(|run| run.shape == reference.shape).map(|run| &run.elements).collect();
    if candidate.shape != reference.shape {
        return None;
    }
    match (&reference.elements, &candidate.elements) {
        (Elements::Integers(a), Elements::Integers(b)) => {
            let drawn = drawn
                .iter()
                .filter_map(|run| if let Elements::Integers(x) = run { Some(&x[..]) } else { None });
            count_undecided(a, b, &drawn.collect::<Vec<_>>())
        }
        (Elements::Strings(a), Elements::Strings(b)) => {
            let drawn =
                drawn.iter().filter_map(|run| if let Elements::Strings(x) = run { Some(*x) } else { None });
            count_undecided(a, b, &drawn.collect::<Vec<_>>())
        }
        _ => None,
    }
}

fn count_undecided<T: PartialEq>(reference: &[T], candidate: &[T], drawn: &[&[T]]) -> Option<usize> {
    let is_undecided = |&i: &usize| drawn.iter().any(|run| run[i] != reference[i]);
    let is_drawn = |i: usize| drawn.iter().any(|run| run[i] == candidate[i]);
    let all = || 0..reference.len();
    let differing = all().filter(|&i| reference[i] != candidate[i]);
    let (explained, other): (Vec<_>, Vec<_>) = differing.partition(|&i| is_drawn(i));
    let found = all().filter(is_undecided).count();
    may_escape(other.len(), found).then_some(explained.len() + other.len())
}

/// Returns true if so few elements may have escaped the runs that found the others.
fn may_escape(others: usize, found: usize) -> bool {
    others as f64 <= ESCAPED * found as f64
}
