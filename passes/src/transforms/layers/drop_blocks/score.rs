//! Scores of blocks. All but `loss` are computed in one run over the calibration samples.

use super::{BlockCriterion, BlockSearch, RemovedBlock, consecutive};
use crate::{
    analysis::{
        activation::{Activation, activations},
        blocks::Block,
        calibration::{JointMoments, entropy, floats, max_sliced_relative, observe, size_of},
        evaluation::HeldOut,
    },
    framework::PassError,
    statistics::Rows,
};
use pare_graph::{
    Edge, EvaluateError, Graph, Model, Tensor, ValueId, evaluate::quality::cosine, ops::ClipView,
};

/// The number of samples for scores.
const SAMPLES: usize = 256;

/// The candidates for the next removal.
#[derive(Clone, Debug)]
pub struct Scores(Vec<ScoredSpan>);

/// Blocks that are removed together.
#[derive(Clone, Debug)]
pub struct ScoredSpan {
    /// The blocks.
    pub blocks: Vec<RemovedBlock>,
    /// The number of units.
    pub units: usize,
    /// The score; low for dispensable blocks.
    pub score: f64,
}

impl Scores {
    /// The candidate with the lowest score among the longest spans of at most `max_units` units that are not
    /// removed yet.
    pub fn lowest(&self, removed: &[RemovedBlock], max_units: usize) -> Option<ScoredSpan> {
        let eligible = |s: &&ScoredSpan| {
            s.units <= max_units
                && !s.score.is_nan()
                && s.blocks.iter().all(|b| removed.iter().all(|r| r.branch != b.branch))
        };
        let longest = self.0.iter().filter(eligible).map(|s| s.units).max()?;
        let spans = self.0.iter().filter(eligible).filter(|s| s.units == longest);
        spans.min_by(|a, b| a.score.total_cmp(&b.score)).cloned()
    }
}

/// A span of the stream. Its input is the output of the first blocks without their branches.
struct Span {
    blocks: Vec<RemovedBlock>,
    units: usize,
    /// The output of the first blocks.
    first: ValueId,
    /// The branches added to it.
    branches: Vec<ValueId>,
    /// The output of the last blocks.
    last: ValueId,
    /// Bounds of the activation that is the only user of `first`.
    first_bounds: Option<Bounds>,
    /// Bounds of the activation that is the only user of `last`.
    last_bounds: Option<Bounds>,
    /// The inputs of the activations in the bodies.
    inner: Vec<ValueId>,
}

/// The range of an activation that only clips.
#[derive(Clone, Copy, PartialEq)]
struct Bounds {
    low: f32,
    high: f32,
}

impl BlockSearch<'_, '_> {
    /// The scores of the units of a model.
    pub(super) fn scores(
        &self,
        model: &Model,
        units: Vec<Vec<Block>>,
        held_out: &HeldOut<'_>,
        max_units: usize,
    ) -> Result<Scores, PassError> {
        let graph = &model.graph;
        let criterion = self.pass.criterion;
        if criterion == BlockCriterion::Loss {
            return self.losses(model, &units, held_out);
        }
        let mut spans: Vec<_> = units.iter().map(|u| span(graph, &[u.as_slice()])).collect();
        if criterion == BlockCriterion::Angular {
            spans.extend(longer_spans(graph, &units, max_units));
        }
        let mut wanted: Vec<_> = spans.iter().flat_map(|s| [s.first, s.last]).collect();
        wanted.extend(spans.iter().flat_map(|s| s.branches.iter().copied()));
        wanted.extend(spans.iter().flat_map(|s| s.inner.iter().copied()));
        wanted.sort_unstable();
        wanted.dedup();
        let mut statistics: Vec<_> = spans.iter().map(|s| SpanStatistics::new(criterion, graph, s)).collect();
        let range = 0..self.split.fit.end.min(SAMPLES);
        observe(self.tools, model, &wanted, range, "scores", &mut |_, values| {
            let at = |v: ValueId| wanted.binary_search(&v).ok().and_then(|i| values.get(i));
            for (span, statistics) in spans.iter().zip(&mut statistics) {
                statistics.add(span, &at)?;
            }
            Ok(())
        })?;
        let seed = self.tools.seed;
        let scored = spans.into_iter().zip(statistics).filter_map(|(span, statistics)| {
            let score = statistics.score(seed)?;
            Some(ScoredSpan { blocks: span.blocks, units: span.units, score })
        });
        Ok(Scores(scored.collect()))
    }

    /// The drift of the outputs without each unit.
    fn losses(
        &self,
        model: &Model,
        units: &[Vec<Block>],
        held_out: &HeldOut<'_>,
    ) -> Result<Scores, PassError> {
        let mut scores = vec![];
        for (i, unit) in units.iter().enumerate() {
            self.tools.progress.step("scores", i as u64, units.len() as u64);
            let mut without = model.clone();
            let blocks: Vec<_> = unit.iter().map(|b| RemovedBlock::of(&model.graph, b)).collect();
            if super::remove_blocks(&mut without, &blocks).is_ok() {
                scores.push(ScoredSpan { blocks, units: 1, score: held_out.drift(&without)? });
            }
        }
        Ok(Scores(scores))
    }
}

/// The span of consecutive units.
fn span(graph: &Graph, units: &[&[Block]]) -> Span {
    let all: Vec<&Block> = units.iter().flat_map(|u| u.iter()).collect();
    let (first, last) = (all[0].exit, all[all.len() - 1].exit);
    let inside = |a: &Activation| a.nodes.last().is_some_and(|n| all.iter().any(|b| b.body.contains(n)));
    Span {
        blocks: all.iter().map(|b| RemovedBlock::of(graph, b)).collect(),
        units: units.len(),
        first,
        branches: all.iter().filter(|b| b.exit == first).map(|b| b.branch).collect(),
        last,
        first_bounds: bounds_after(graph, first),
        last_bounds: bounds_after(graph, last),
        inner: activations(graph).iter().filter(|a| inside(a)).map(|a| a.input).collect(),
    }
}

/// Spans of two to `max_units` units on a stream without projections.
fn longer_spans(graph: &Graph, units: &[Vec<Block>], max_units: usize) -> Vec<Span> {
    let mut spans = vec![];
    for run in consecutive(graph, units) {
        for from in 0..run.len() {
            for length in 2..=max_units.min(run.len() - from) {
                let part: Vec<_> = run[from..from + length].iter().map(|&u| units[u].as_slice()).collect();
                if part.iter().flat_map(|u| u.iter()).all(|b| b.identity) {
                    spans.push(span(graph, &part));
                }
            }
        }
    }
    spans
}

/// The bounds of the activations that read a value, if all of them only clip, to the same range.
fn bounds_after(graph: &Graph, value: ValueId) -> Option<Bounds> {
    let users = graph.value_ref(value).users();
    let bounds = |(at, edge): &(pare_graph::NodeRef<'_>, Edge)| {
        let clip = ClipView::of(*at).ok().filter(|_| *edge == Edge::Input(0))?;
        Some(Bounds { low: clip.low as f32, high: clip.high as f32 })
    };
    let bounds: Vec<_> = users.iter().map(bounds).collect::<Option<_>>()?;
    bounds
        .first()
        .copied()
        .filter(|first| !graph.value(value).is_output() && bounds.iter().all(|b| b == first))
}

/// The statistics of one span.
enum SpanStatistics {
    /// The mean of a distance.
    Distance { criterion: BlockCriterion, sum: f64, count: f64 },
    /// All inputs and outputs, one row per sample.
    Samples { before: Rows, after: Rows },
    /// The moments of the inputs of activations.
    Signs { criterion: BlockCriterion, inner: Vec<ActivationInput> },
}

/// The statistics of the input of one activation.
struct ActivationInput {
    value: ValueId,
    /// The channel axis.
    axis: usize,
    moments: JointMoments,
}

impl SpanStatistics {
    fn new(criterion: BlockCriterion, graph: &Graph, span: &Span) -> Self {
        match criterion {
            BlockCriterion::Wasserstein => Self::Samples { before: Rows::default(), after: Rows::default() },
            BlockCriterion::Entropy | BlockCriterion::Tlc => {
                let input = |&value: &ValueId| {
                    let shape = graph.value(value).fact.shape()?;
                    let axis = channel_axis(shape.len());
                    Some(ActivationInput {
                        value,
                        axis,
                        moments: JointMoments::new(size_of(shape.get(axis)?)?),
                    })
                };
                Self::Signs { criterion, inner: span.inner.iter().filter_map(input).collect() }
            }
            _ => Self::Distance { criterion, sum: 0.0, count: 0.0 },
        }
    }

    fn add<'v>(&mut self, span: &Span, at: &dyn Fn(ValueId) -> Option<&'v Tensor>) -> Result<(), PassError> {
        let missing = || EvaluateError::new("a value was not computed");
        let value = |v: ValueId| at(v).ok_or_else(missing);
        if let Self::Signs { inner, .. } = self {
            for ActivationInput { value: id, axis, moments } in inner {
                let tensor = value(*id)?;
                let x = floats(tensor)?;
                moments.add(&x, &x, tensor.shape(), *axis);
            }
            return Ok(());
        }
        let shape = value(span.last)?.shape().to_vec();
        let x = floats(value(span.first)?)?.into_owned();
        let (mut x, mut y) = (x, floats(value(span.last)?)?.into_owned());
        for &branch in &span.branches {
            x.iter_mut().zip(floats(value(branch)?)?.iter()).for_each(|(x, b)| *x -= b);
        }
        for (values, bounds) in [(&mut x, span.first_bounds), (&mut y, span.last_bounds)] {
            if let Some(Bounds { low, high }) = bounds {
                values.iter_mut().for_each(|v| *v = v.max(low).min(high));
            }
        }
        let samples = shape.first().copied().unwrap_or(1).max(1);
        let size = x.len() / samples;
        match self {
            Self::Samples { before, after } => {
                (before.width, after.width) = (size, size);
                before.data.extend(x);
                after.data.extend(y);
            }
            Self::Distance { criterion, sum, count } => {
                let axis = channel_axis(shape.len());
                for (x, y) in x.chunks_exact(size.max(1)).zip(y.chunks_exact(size.max(1))) {
                    let (x, y) = (positions(x, &shape, axis), positions(y, &shape, axis));
                    if *criterion == BlockCriterion::Influence {
                        *sum += x.iter().zip(&y).map(|(x, y)| 1.0 - cosine(x, y)).sum::<f64>();
                        *count += x.len() as f64;
                    } else {
                        *sum += cosine(&mean(&x), &mean(&y)).clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
                        *count += 1.0;
                    }
                }
            }
            Self::Signs { .. } => {}
        }
        Ok(())
    }

    fn score(self, seed: u64) -> Option<f64> {
        match self {
            Self::Distance { sum, count, .. } => (count > 0.0).then(|| sum / count),
            Self::Samples { before, after } => {
                (before.count() > 0).then(|| max_sliced_relative(&before, &after, seed))
            }
            Self::Signs { criterion, inner } => {
                let of = |input: &ActivationInput| match criterion {
                    BlockCriterion::Tlc => entropy::of_gaussians(&input.moments),
                    _ => entropy::of_signs(&input.moments),
                };
                let n = inner.len() as f64;
                (n > 0.0).then(|| inner.iter().map(of).sum::<f64>() / n)
            }
        }
    }
}

/// The channel axis: 1 for feature maps, else the last.
fn channel_axis(rank: usize) -> usize {
    if rank >= 4 { 1 } else { rank.saturating_sub(1) }
}

/// The channels at each position of one sample.
fn positions(values: &[f32], shape: &[usize], axis: usize) -> Vec<Vec<f32>> {
    let channels = shape[axis].max(1);
    if axis + 1 == shape.len() {
        return values.chunks_exact(channels).map(<[f32]>::to_vec).collect();
    }
    let plane = values.len() / channels;
    (0..plane).map(|p| (0..channels).map(|c| values[c * plane + p]).collect()).collect()
}

fn mean(rows: &[Vec<f32>]) -> Vec<f32> {
    let mut sum = vec![0.0; rows.first().map_or(0, Vec::len)];
    rows.iter().for_each(|row| sum.iter_mut().zip(row).for_each(|(s, v)| *s += v));
    sum
}
