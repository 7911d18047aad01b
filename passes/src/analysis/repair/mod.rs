//! Sequential repair: operator after operator learns to give what the original gave, from what it now gets.
//!
//! In topological order each linear operator is fitted by ridge regression: `x` comes from the changed
//! model, whose operators before it are final already, and `y` from the original (*asymmetric* reconstruction). Where
//! the operator's output is added to something that is known already, it makes up for that one's error too:
//! `y = sum_original − skip_changed`. Where a ReLU (or `Clip`) follows, only what passes it counts: for some rounds
//! the target of an element that the original clips is whatever the fit gives there, if that is clipped too.

mod frontier;

pub use frontier::{Frontier, Step};

use crate::{
    analysis::{
        calibration::{Affine, Linear, NotFinite, Ridge, batches, bytes_per_sample, choose, floats, misfit},
        samples::PLACES,
    },
    framework::{PassError, Tools},
    statistics::{Lines, Rows, Sums, covariance_with, map_rows},
};
use faer::{Mat, MatRef};
use pare_graph::{Edge, Graph, Model, NodeId, NodeRef, Patch, Tensor, ValueId, ValueRef, ops::ClipView};
use std::{collections::HashSet, ops::Range};

/// A linear operator of the changed model that is to be fitted anew.
#[derive(Clone, Debug)]
pub struct Refit {
    /// Its node (of a `MatMul` with a bias behind it, the `MatMul`).
    pub node: NodeId,
    /// The value of the original that its output should be like.
    pub target: ValueId,
    /// The value of the original that the sum of its output and what is added to that should be like; by default the
    /// sum that the target goes into there. Where it is the target itself, the output is fitted as a part of the sum only.
    pub sum: Option<ValueId>,
    /// Channels of the target that it still makes, ascending; `None`: all.
    pub kept: Option<Vec<usize>>,
    /// Which of its weights may move, `[groups, O, D]` row-major; the others stay as they are, such as zero. `None`: all.
    /// With `behind`, which entries of `T`, `[groups, O, O]`.
    pub free: Option<Vec<bool>>,
    /// Whether no more is fitted than a map of what it gives now, `W' = T·W` (ReplaceMe): `O²` numbers a group.
    pub behind: bool,
}

/// How the repair is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// The ridge, as a share of the mean variance of the inputs; toward the weights as they are.
    pub lambda: f64,
    /// Rounds that look at what follows.
    pub rounds: usize,
}

impl Setting {
    /// With as many rounds as bring something.
    pub fn new(lambda: f64) -> Self {
        Self { lambda, rounds: ROUNDS }
    }
}

/// Rounds in which a fit looks at the activation behind it.
const ROUNDS: usize = 4;

/// An operator whose turn it is.
struct Turn<'a> {
    new: Linear,
    /// What its output, or the sum with what is added to it, should be like.
    target: ValueId,
    /// What is added to its output, if that is known.
    skip: Option<Skip>,
    /// Bounds of what follows, if it does nothing but clip.
    clip: Option<(f64, f64)>,
    kept: Option<&'a [usize]>,
    free: Option<&'a [bool]>,
    behind: bool,
}

/// What is added to the output of an operator, where the sum is to be fitted.
enum Skip {
    /// A value of the changed model.
    Value(ValueId),
    /// The same for every sample.
    Constant(Tensor),
}

/// Rows of all samples: inputs, targets, and what is added to the output.
#[derive(Default)]
struct Data {
    x: Rows,
    y: Rows,
    skip: Rows,
}

/// Refit operators of `changed` one after another, each on what the ones before it now give, so that its output comes
/// near to that of the original on the samples in `range`. `refits` stand in the order in which they compute. What has
/// no weights of its own stays as it is.
///
/// Values of the two models belong together by their names.
pub fn sequential(
    tools: Tools<'_>,
    original: &Model,
    changed: &mut Model,
    refits: &[Refit],
    range: Range<usize>,
    setting: Setting,
) -> Result<(), PassError> {
    each(tools, original, changed, refits, range, true, &|graph, turn, data| fit(graph, turn, data, setting))
}

/// Scale and shift every output of the operators in `refits`, one operator after another, so that its mean and variance
/// are those in the original: what taking the statistics of batch norms anew would do.
pub fn moments(
    tools: Tools<'_>,
    original: &Model,
    changed: &mut Model,
    refits: &[Refit],
    range: Range<usize>,
) -> Result<(), PassError> {
    each(tools, original, changed, refits, range, false, &|graph, turn, data| {
        (0..turn.new.groups).map(|q| matched(graph, turn, data, q).ok_or(NotFinite)).collect()
    })
}

/// Go through the operators in order, and give each what `map` finds.
fn each(
    tools: Tools<'_>,
    original: &Model,
    changed: &mut Model,
    refits: &[Refit],
    range: Range<usize>,
    skips: bool,
    map: &dyn Fn(&Graph, &Turn<'_>, &Data) -> Result<Vec<Affine>, NotFinite>,
) -> Result<(), PassError> {
    let graph = &original.graph;
    let targets = |refits: &[Refit]| -> Vec<_> {
        refits.iter().flat_map(|r| [Some(r.target), r.sum]).flatten().collect()
    };
    let bytes = targets(refits).into_iter().map(|v| bytes_per_sample(graph, v)).max().unwrap_or(0);
    let batches = batches(graph, range.clone(), 4 * bytes, tools.memory);
    let total = refits.len() as u64;
    let (mut before, mut after) = (Frontier::new(graph), Frontier::new(&changed.graph));
    for (i, refit) in refits.iter().enumerate() {
        tools.progress.step("repair", i as u64, total);
        let Some(mut turn) = turn(graph, &changed.graph, refit, &refits[i..]) else { continue };
        if !skips {
            (turn.target, turn.skip) = (refit.target, None);
        }
        let later = targets(&refits[i + 1..]);
        let (old, new) = ((original, &mut before), (&*changed, &mut after));
        let data = gather(tools, old, new, (&turn, &later), &batches)?;
        let maps = map(&changed.graph, &turn, &data).map_err(|e| unfit(&changed.graph, refit.node, e))?;
        let mut patch = Patch::anchored(refit.node);
        let bias: Vec<_> = maps.iter().flat_map(|m| m.bias.iter().copied()).collect();
        let weights: Vec<_> = maps.into_iter().map(|m| m.weight).collect();
        if turn.new.store(&changed.graph, &mut patch, &weights, &bias).is_some() {
            changed.graph.apply(patch).map_err(|e| PassError::refused(e.to_string()))?;
        }
    }
    tools.progress.step("repair", total, total);
    Ok(())
}

/// The operator as it is now, if its weights are its own to change.
pub fn left(graph: &Graph, node: NodeId) -> Option<Linear> {
    Linear::of(graph.at(node)).ok().filter(|l| l.owns_weight(graph))
}

/// An operator that cannot be fitted.
pub fn unfit(graph: &Graph, node: NodeId, error: NotFinite) -> PassError {
    PassError::refused(format!("{}: {error}", graph.describe(node)))
}

/// All values that depend on these nodes.
pub(crate) fn behind(graph: &Graph, nodes: &HashSet<NodeId>) -> HashSet<ValueId> {
    graph.downstream(nodes.iter().copied()).into_iter().flat_map(|node| graph.results(node)).collect()
}

/// What the operator is fitted to. `pending` have not been fitted yet, itself among them.
fn turn<'a>(original: &Graph, changed: &Graph, refit: &'a Refit, pending: &[Refit]) -> Option<Turn<'a>> {
    let new = left(changed, refit.node)?;
    let output = changed.value_ref(new.output);
    let add = output.sole_user().ok().filter(|at| at.is("Add"));
    let nodes: HashSet<_> = pending.iter().map(|r| r.node).collect();
    let sum = add.and_then(|add| {
        let added = added_to(add, output)?;
        let known = match &added {
            Skip::Value(added) => !depends(changed, *added, &nodes),
            Skip::Constant(_) => true,
        };
        let sum = refit.sum.or_else(|| sum_over_there(original, changed, refit.target, &added))?;
        known.then_some((sum, added))
    });
    let (target, skip) = match sum {
        Some((sum, skip)) => (sum, Some(skip)),
        None if refit.sum == Some(refit.target) => return None,
        None => (refit.target, None),
    };
    // What the activation sees is the sum, if there is one.
    let seen = match (add, &skip) {
        (Some(add), Some(_)) => add.output().ok(),
        (Some(_), None) => None,
        (None, _) => Some(output),
    };
    let clip = seen.filter(|v| !v.value().is_output()).and_then(|v| {
        let bounds = |(at, wire): (NodeRef<'_>, Edge)| {
            ClipView::of(at).ok().filter(|_| wire == Edge::Input(0)).map(|c| (c.low, c.high))
        };
        let bounds: Vec<_> = v.users().into_iter().map(bounds).collect::<Option<_>>()?;
        bounds.first().copied().filter(|first| bounds.iter().all(|b| b == first))
    });
    let (kept, free) = (refit.kept.as_deref(), refit.free.as_deref());
    Some(Turn { new, target, skip, clip, kept, free, behind: refit.behind })
}

/// The sum that the target alone is used for, if what is added there has the name and the shape of what is added here.
fn sum_over_there(original: &Graph, changed: &Graph, target: ValueId, added: &Skip) -> Option<ValueId> {
    let Skip::Value(added) = added else { return None };
    let target = original.value_ref(target);
    let add = target.sole_user().ok().filter(|at| at.is("Add"))?;
    let other = add.inputs().into_iter().flatten().find(|v| v.id != target.id)?;
    let same = other.name() == changed.value(*added).name && other.shape() == target.shape();
    same.then(|| add.output().ok().map(|sum| sum.id)).flatten()
}

/// The other term of a sum.
fn added_to(add: NodeRef<'_>, value: ValueRef<'_>) -> Option<Skip> {
    let other = add.inputs().into_iter().flatten().find(|v| v.id != value.id)?;
    match other.constant() {
        Ok(constant) => Some(Skip::Constant(constant.clone())),
        Err(_) => {
            (other.shape().is_some() && other.shape() == value.shape()).then_some(Skip::Value(other.id))
        }
    }
}

fn depends(graph: &Graph, value: ValueId, nodes: &HashSet<NodeId>) -> bool {
    !graph.upstream([value], |_| false).is_disjoint(nodes)
}

/// Run both models up to the operator and take rows.
fn gather(
    tools: Tools<'_>,
    (original, before): (&Model, &mut Frontier),
    (changed, after): (&Model, &mut Frontier),
    (turn, later): (&Turn<'_>, &[ValueId]),
    batches: &[Range<usize>],
) -> Result<Data, PassError> {
    let new = &turn.new;
    let mut ask_new = vec![new.input];
    if let Some(Skip::Value(skip)) = turn.skip {
        ask_new.push(skip);
    }
    let mut step_old = before.step(tools, original, &[turn.target], later)?;
    let mut step_new = after.step(tools, changed, &ask_new, &[])?;
    let samples: usize = batches.iter().map(ExactSizeIterator::len).sum();
    let bytes = step_old.bytes(&original.graph) + step_new.bytes(&changed.graph);
    // What does not fit is computed again from the last place that did.
    let hold = bytes.saturating_mul(samples as u64) <= tools.memory / 2;
    let width = new.groups * (new.width() + 3 * new.outputs);
    let rows = (tools.memory / 4 / (4 * width.max(1) as u64)) as usize;
    let places = PLACES.min(rows / samples.max(1)).max(1);
    let mut data = Data {
        x: Rows::new(new.groups * new.width()),
        y: Rows::new(new.groups * new.outputs),
        skip: Rows::new(if turn.skip.is_some() { new.groups * new.outputs } else { 0 }),
    };
    let (mut held_old, mut held_new) = (vec![], vec![]);
    for (i, batch) in batches.iter().enumerate() {
        // Neither model keeps all cores busy alone.
        let (old, new) = rayon::join(
            || before.run(tools, &mut step_old, i, batch),
            || after.run(tools, &mut step_new, i, batch),
        );
        let ((values_old, next_old), (values_new, next_new)) = (old?, new?);
        turn.take(&changed.graph, &values_old, &values_new, batch, (places, tools.seed), &mut data)?;
        if hold {
            held_old.push(next_old);
            held_new.push(next_new);
        }
    }
    if hold {
        before.advance(step_old, held_old);
        after.advance(step_new, held_new);
    }
    Ok(data)
}

impl Turn<'_> {
    fn take(
        &self,
        graph: &Graph,
        old: &[Tensor],
        new: &[Tensor],
        batch: &Range<usize>,
        (places, seed): (usize, u64),
        data: &mut Data,
    ) -> Result<(), PassError> {
        let wrong = || misfit(&self.new, graph);
        let (x, y) = (new.first().ok_or_else(wrong)?, old.first().ok_or_else(wrong)?);
        let shape = self.new.output_shape(x.shape()).ok_or_else(wrong)?;
        let axis = if self.new.is_conv() { 1 } else { shape.len() - 1 };
        let alike = |(a, (new, old)): (usize, (&usize, &usize))| a == axis || new == old;
        if shape.len() != y.rank() || !shape.iter().zip(y.shape()).enumerate().all(alike) {
            return Err(wrong());
        }
        let channels = y.shape()[axis];
        let kept = self.kept.map_or_else(|| (0..channels).collect(), <[usize]>::to_vec);
        if kept.len() != shape[axis] || kept.last().is_some_and(|&c| c >= channels) {
            return Err(wrong());
        }
        let (xs, ys) = (floats(x)?, floats(y)?);
        let skip = match (&self.skip, new.get(1)) {
            (Some(Skip::Value(_)), Some(skip)) if *skip.shape() == shape[..] => Some(floats(skip)?),
            (Some(Skip::Constant(map)), _) => Some(spread(map, &shape).ok_or_else(wrong)?.into()),
            (None, None) => None,
            _ => return Err(wrong()),
        };
        for sample in 0..x.shape()[0] {
            let at = choose(seed, batch.start + sample, self.new.places(&shape), places);
            self.new.gather_inputs(&xs, x.shape(), &shape, sample, &at, &mut data.x);
            let mut target = Rows::new(channels);
            self.new.gather_outputs(&ys, y.shape(), sample, &at, &mut target);
            let from = data.skip.data.len();
            if let Some(skip) = &skip {
                self.new.gather_outputs(skip, &shape, sample, &at, &mut data.skip);
            }
            let mut known = data.skip.data[from..].chunks_exact(kept.len().max(1));
            for row in target.data.chunks_exact(channels) {
                match known.next() {
                    Some(known) => data.y.data.extend(kept.iter().zip(known).map(|(&c, k)| row[c] - k)),
                    None => data.y.data.extend(kept.iter().map(|&c| row[c])),
                }
            }
        }
        Ok(())
    }
}

/// A constant broadcast to a shape.
fn spread(constant: &Tensor, shape: &[usize]) -> Option<Vec<f32>> {
    let values =
        ndarray::ArrayD::from_shape_vec(constant.shape(), floats(constant).ok()?.into_owned()).ok()?;
    Some(values.broadcast(shape)?.iter().copied().collect())
}

/// The map of each of the operator's groups.
fn fit(graph: &Graph, turn: &Turn<'_>, data: &Data, setting: Setting) -> Result<Vec<Affine>, NotFinite> {
    let (d, o) = (turn.new.width(), turn.new.outputs);
    let bias = turn.new.bias(graph).ok_or(NotFinite)?;
    let group = |q: usize| {
        let weight = turn.new.weight(graph, q).ok_or(NotFinite)?;
        let y = data.y.columns(q * o, o);
        if !turn.behind {
            return fit_group(turn, q, data.x.columns(q * d, d), (y, data), weight, setting);
        }
        // What the operator gives now stands for what it reads.
        let now = Affine { weight, bias: bias[q * o..(q + 1) * o].to_vec() };
        let given = map_rows(data.x.columns(q * d, d), now.weight.as_ref(), &now.bias);
        let map = fit_group(turn, q, given.all(), (y, data), Mat::identity(o, o), setting)?;
        Ok(now.then(&map))
    };
    (0..turn.new.groups).map(group).collect()
}

/// The map of an operator's group `q`, `a·(W·x + b) + c`, with the moments of its target.
fn matched(graph: &Graph, turn: &Turn<'_>, data: &Data, q: usize) -> Option<Affine> {
    let (d, o) = (turn.new.width(), turn.new.outputs);
    let (weight, bias) = (turn.new.weight(graph, q)?, turn.new.bias(graph)?);
    let mut sums = Sums::new(d, o);
    sums.add(data.x.columns(q * d, d), data.y.columns(q * o, o));
    if !turn.new.takes_bias() {
        sums = sums.about_zero();
    }
    let now = sums.through(weight.as_ref(), &bias[q * o..(q + 1) * o], &[]);
    let factor = |i: usize| if now.yy[i] > 0.0 { (sums.yy[i] / now.yy[i]).sqrt() } else { 1.0 };
    let factors: Vec<_> = (0..o).map(factor).collect();
    let shifted = |i: usize| sums.y_mean[i] - factors[i] * (now.y_mean[i] - bias[q * o + i]);
    let map = Affine {
        weight: Mat::from_fn(o, d, |i, j| factors[i] * weight[(i, j)]),
        bias: (0..o).map(shifted).collect(),
    };
    map.bias.iter().chain(&factors).all(|v| v.is_finite()).then_some(map)
}

/// The map from `x` to what a group is to give, toward `prior`.
fn fit_group(
    turn: &Turn<'_>,
    q: usize,
    x: Lines<'_>,
    (y, data): (Lines<'_>, &Data),
    prior: Mat<f64>,
    setting: Setting,
) -> Result<Affine, NotFinite> {
    let (d, o) = (x.width, y.width);
    let mut sums = Sums::new(d, o);
    sums.add(x, y);
    if !turn.new.takes_bias() {
        sums = sums.about_zero();
    }
    let free = turn.free.map(|all| &all[q * o * d..(q + 1) * o * d]);
    let fit = Fit { ridge: Ridge::new(&sums, setting.lambda)?, prior, free };
    let cross = sums.xy.as_ref() * faer::Scale(1.0 / sums.count.max(1) as f64);
    let map = fit.solve(cross.as_ref(), &sums.y_mean)?;
    let Some(bounds) = turn.clip.filter(|_| setting.rounds > 0 && turn.new.takes_bias()) else {
        return Ok(map);
    };
    let skip = (data.skip.width > 0).then(|| data.skip.columns(q * o, o));
    through(&fit, (x, y, skip), bounds, setting.rounds, map)
}

/// The least squares of one group of an operator, for any targets.
struct Fit<'a> {
    ridge: Ridge,
    prior: Mat<f64>,
    free: Option<&'a [bool]>,
}

impl Fit<'_> {
    fn solve(&self, cross: MatRef<'_, f64>, y_mean: &[f64]) -> Result<Affine, NotFinite> {
        let prior = self.prior.as_ref();
        match self.free {
            None => self.ridge.solve(cross, y_mean, prior),
            Some(free) => self.ridge.solve_free(cross, y_mean, prior, free),
        }
    }
}

/// Rounds of majorisation for `Σ (clip(z) - clip(p))²`: where the original is clipped, `p` may be anything that is
/// clipped to the same.
fn through(
    fit: &Fit<'_>,
    (x, y, skip): (Lines<'_>, Lines<'_>, Option<Lines<'_>>),
    (low, high): (f64, f64),
    rounds: usize,
    mut map: Affine,
) -> Result<Affine, NotFinite> {
    let (low, high) = (low as f32, high as f32);
    let wanted = |z: f32, p: f32| {
        if z <= low {
            p.min(low)
        } else if z >= high {
            p.max(high)
        } else {
            z
        }
    };
    for _ in 0..rounds {
        let mut target = map_rows(x, map.weight.as_ref(), &map.bias);
        let width = target.width;
        for (i, row) in target.data.chunks_exact_mut(width).enumerate() {
            match skip {
                Some(skip) => {
                    for ((p, &z), &s) in row.iter_mut().zip(y.row(i)).zip(skip.row(i)) {
                        *p = wanted(z + s, *p + s) - s;
                    }
                }
                None => row.iter_mut().zip(y.row(i)).for_each(|(p, &z)| *p = wanted(z, *p)),
            }
        }
        let (cross, mean) = covariance_with(x, target.all());
        map = fit.solve(cross.as_ref(), &mean)?;
    }
    Ok(map)
}
