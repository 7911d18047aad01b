//! Sequential repair: operator after operator learns to give what the original gave, from what it now gets.
//!
//! In topological order each linear operator is fitted by ridge regression: `x` comes from the changed
//! model, whose operators before it are final already, and `y` from the original (*asymmetric* reconstruction). Where
//! the operator's output is added to something that is known already, it makes up for that one's error too:
//! `y = z + skip_original − skip_changed`. Where a ReLU (or `Clip`) follows, only what passes it counts: for some rounds
//! the target of an element that the original clips is whatever the fit gives there, if that is clipped too.

use super::{
    frontier::Frontier,
    groups::{Groups, Keep},
    repair::{left, unfit},
    roles::Role,
};
use crate::{
    PassError, Tools,
    stats::{
        Affine, Linear, Lines, NotFinite, Ridge, Rows, Sums, batches, bytes_per_sample, choose,
        covariance_with, floats, map_rows, misfit,
    },
};
use faer::MatRef;
use pare_graph::{Graph, Model, NodeId, Patch, Tensor, ValueId, Wire, ops::ClipView};
use std::{collections::HashSet, ops::Range};

/// How the repair is done.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Setting {
    /// The ridge, as a share of the mean variance of the inputs; toward the weights as they are.
    pub lambda: f64,
    /// Fit every operator behind a change, depthwise ones and the last too; else only those that lost inputs.
    pub all: bool,
    /// Rounds that look at what follows.
    pub rounds: usize,
    /// Places of each sample that are looked at.
    pub places: usize,
}

/// An operator whose turn it is.
struct Turn<'a> {
    role: &'a Role,
    new: Linear,
    /// What is added to its output, if that is known.
    skip: Option<ValueId>,
    /// Bounds of what follows, if it does nothing but clip.
    clip: Option<(f64, f64)>,
    kept: Vec<usize>,
}

/// Rows of all samples: inputs, targets, and what is added to the output.
#[derive(Default)]
struct Data {
    x: Rows,
    y: Rows,
    skip: Rows,
}

/// Refit the operators of `changed`, which was cut from `original` by `keep`, on the samples in `range`.
pub fn sequential(
    tools: Tools<'_>,
    original: &Model,
    changed: &mut Model,
    roles: &[Role],
    (groups, keep): (&Groups, &Keep),
    range: Range<usize>,
    setting: Setting,
) -> Result<(), PassError> {
    let graph = &original.graph;
    let lost: HashSet<_> =
        roles.iter().filter(|r| r.kept_inputs(groups, keep).is_some()).map(|r| r.node).collect();
    let dirty = behind(graph, &lost);
    let wanted = |r: &&Role| {
        let last = graph.value(r.linear.output).is_output();
        lost.contains(&r.node)
            || setting.all && dirty.contains(&r.linear.output) && (r.linear.takes_bias() || !last)
    };
    let mut pending: Vec<_> = roles.iter().filter(wanted).collect();
    pending.reverse();
    let bytes = roles.iter().map(|r| bytes_per_sample(graph, r.linear.output)).max().unwrap_or(0);
    let batches = batches(graph, range.clone(), 4 * bytes, tools.memory);
    let total = pending.len() as u64;
    let (mut before, mut after) = (Frontier::new(graph), Frontier::new(graph));
    while let Some(role) = pending.last() {
        tools.progress.step("repair", total - pending.len() as u64, total);
        if let Some(turn) = turn(original, &changed.graph, role, (groups, keep), &pending) {
            let data =
                gather(tools, (original, &mut before), (changed, &mut after), &turn, &batches, setting)?;
            let maps = fit(&changed.graph, &turn, &data, setting).map_err(|e| unfit(graph, role, e))?;
            let mut patch = Patch::anchored(role.node);
            let bias: Vec<_> = maps.iter().flat_map(|m| m.bias.iter().copied()).collect();
            let weights: Vec<_> = maps.into_iter().map(|m| m.weight).collect();
            if turn.new.store(&changed.graph, &mut patch, &weights, &bias).is_some() {
                changed.graph.apply(patch).map_err(|e| PassError::refused(e.to_string()))?;
            }
        }
        pending.pop();
    }
    tools.progress.step("repair", total, total);
    Ok(())
}

/// All values that depend on these nodes.
fn behind(graph: &Graph, nodes: &HashSet<NodeId>) -> HashSet<ValueId> {
    let mut values = HashSet::new();
    for &node in graph.nodes().iter() {
        let inputs = graph.inputs_of(node).into_iter().flatten().chain(graph.captured_by(node));
        if nodes.contains(&node) || inputs.into_iter().any(|v| values.contains(&v)) {
            values.extend(graph.outputs_of(node).into_iter().flatten());
        }
    }
    values
}

fn turn<'a>(
    original: &Model,
    changed: &Graph,
    role: &'a Role,
    (groups, keep): (&Groups, &Keep),
    pending: &[&Role],
) -> Option<Turn<'a>> {
    let graph = &original.graph;
    let new = left(changed, role.node)?;
    let output = graph.wired(role.linear.output);
    let outputs = role.linear.groups * role.linear.outputs;
    let kept = role.kept_outputs(groups, keep).unwrap_or_else(|| (0..outputs).collect());
    let add = output.sole_user().ok().filter(|at| at.is("Add"));
    let other = add.and_then(|add| add.inputs().into_iter().flatten().find(|v| v.id != output.id));
    let nodes: HashSet<_> = pending.iter().map(|r| r.node).collect();
    let skip =
        other.filter(|o| !o.is_constant() && o.shape() == output.shape() && !depends(graph, o.id, &nodes));
    // What the activation sees is the sum, if there is one.
    let seen = match (add, skip) {
        (Some(add), Some(_)) => add.output().ok(),
        (Some(_), None) => None,
        (None, _) => Some(output),
    };
    let clip = seen.filter(|v| !v.value().is_output()).and_then(|v| {
        let bounds = |(at, wire): (pare_graph::At<'_>, Wire)| {
            ClipView::of(at).ok().filter(|_| wire == Wire::Input(0)).map(|c| (c.low, c.high))
        };
        let bounds: Vec<_> = v.users().into_iter().map(bounds).collect::<Option<_>>()?;
        bounds.first().copied().filter(|first| bounds.iter().all(|b| b == first))
    });
    Some(Turn { role, new, skip: skip.map(|v| v.id), clip, kept })
}

fn depends(graph: &Graph, value: ValueId, nodes: &HashSet<NodeId>) -> bool {
    let (mut queue, mut seen) = (vec![value], HashSet::new());
    while let Some(value) = queue.pop() {
        let Some((node, _)) = graph.producer(value) else { continue };
        if nodes.contains(&node) {
            return true;
        }
        if seen.insert(node) {
            queue.extend(graph.inputs_of(node).into_iter().flatten().chain(graph.captured_by(node)));
        }
    }
    false
}

/// Run both models up to the operator and take rows.
fn gather(
    tools: Tools<'_>,
    (original, before): (&Model, &mut Frontier),
    (changed, after): (&Model, &mut Frontier),
    turn: &Turn<'_>,
    batches: &[Range<usize>],
    setting: Setting,
) -> Result<Data, PassError> {
    let (old, new) = (&turn.role.linear, &turn.new);
    let mut ask_old = vec![old.output];
    let mut ask_new = vec![new.input];
    ask_old.extend(turn.skip);
    ask_new.extend(turn.skip);
    let mut step_old = before.step(tools, original, &ask_old)?;
    let mut step_new = after.step(tools, changed, &ask_new)?;
    let samples: usize = batches.iter().map(ExactSizeIterator::len).sum();
    let bytes = step_old.bytes(&original.graph) + step_new.bytes(&changed.graph);
    // What does not fit is computed again from the last place that did.
    let hold = bytes.saturating_mul(samples as u64) <= tools.memory / 2;
    let width = new.groups * (new.width() + 3 * new.outputs);
    let rows = (tools.memory / 4 / (4 * width.max(1) as u64)) as usize;
    let places = setting.places.min(rows / samples.max(1)).max(1);
    let mut data = Data {
        x: Rows::new(new.groups * new.width()),
        y: Rows::new(new.groups * new.outputs),
        skip: Rows::new(if turn.skip.is_some() { new.groups * new.outputs } else { 0 }),
    };
    let (mut held_old, mut held_new) = (vec![], vec![]);
    for (i, batch) in batches.iter().enumerate() {
        let (values_old, next_old) = before.run(tools, &mut step_old, i, batch)?;
        let (values_new, next_new) = after.run(tools, &mut step_new, i, batch)?;
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
        let (xs, ys) = (floats(x)?, floats(y)?);
        let skip = match (old.get(1), new.get(1)) {
            (Some(a), Some(b)) if a.shape() == y.shape() && *b.shape() == shape[..] => {
                Some((floats(a)?, floats(b)?))
            }
            (None, None) => None,
            _ => return Err(wrong()),
        };
        for sample in 0..x.shape()[0] {
            let at = choose(seed, batch.start + sample, self.new.places(&shape), places);
            self.new.gather_inputs(&xs, x.shape(), &shape, sample, &at, &mut data.x);
            let of_old = |values: &[f32]| {
                let mut rows = Rows::new(y.shape()[self.channel_axis(y.shape())]);
                self.role.linear.gather_outputs(values, y.shape(), sample, &at, &mut rows);
                rows
            };
            let target = of_old(&ys);
            let Some((skip_old, skip_new)) = &skip else {
                let pick =
                    target.data.chunks_exact(target.width).flat_map(|row| self.kept.iter().map(|&c| row[c]));
                data.y.data.extend(pick);
                continue;
            };
            let added = of_old(skip_old);
            let from = data.skip.data.len();
            self.new.gather_outputs(skip_new, &shape, sample, &at, &mut data.skip);
            let rows = target.data.chunks_exact(target.width).zip(added.data.chunks_exact(target.width));
            let sum = rows.flat_map(|(z, s)| self.kept.iter().map(|&c| z[c] + s[c]));
            let known = &data.skip.data[from..];
            data.y.data.extend(sum.zip(known).map(|(sum, known)| sum - known));
        }
        Ok(())
    }

    fn channel_axis(&self, shape: &[usize]) -> usize {
        if self.role.linear.is_conv() { 1 } else { shape.len() - 1 }
    }
}

/// The map of each of the operator's groups.
fn fit(graph: &Graph, turn: &Turn<'_>, data: &Data, setting: Setting) -> Result<Vec<Affine>, NotFinite> {
    let (d, o) = (turn.new.width(), turn.new.outputs);
    let group = |q: usize| {
        let (x, y) = (data.x.columns(q * d, d), data.y.columns(q * o, o));
        let prior = turn.new.weight(graph, q).ok_or(NotFinite)?;
        let mut sums = Sums::new(d, o);
        sums.add(x, y);
        if !turn.new.takes_bias() {
            return sums.about_zero().ridge(prior.as_ref(), setting.lambda);
        }
        let map = sums.ridge(prior.as_ref(), setting.lambda)?;
        let Some(bounds) = turn.clip.filter(|_| setting.rounds > 0) else { return Ok(map) };
        let skip = (data.skip.width > 0).then(|| data.skip.columns(q * o, o));
        let ridge = Ridge::new(&sums, setting.lambda)?;
        Ok(through(&ridge, (x, y, skip), prior.as_ref(), bounds, setting.rounds, map))
    };
    (0..turn.new.groups).map(group).collect()
}

/// Rounds of majorisation for `Σ (clip(z) - clip(p))²`: where the original is clipped, `p` may be anything that is
/// clipped to the same.
fn through(
    ridge: &Ridge,
    (x, y, skip): (Lines<'_>, Lines<'_>, Option<Lines<'_>>),
    prior: MatRef<'_, f64>,
    (low, high): (f64, f64),
    rounds: usize,
    mut map: Affine,
) -> Affine {
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
        map = ridge.solve(cross.as_ref(), &mean, prior);
    }
    map
}
