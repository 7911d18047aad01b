//! What makes a block dispensable: all figures from one run over the calibration samples, but for `loss`.

use super::{Criterion, Gone, Work, runs};
use crate::{
    analysis::{
        activation::activations,
        blocks::Block,
        calibration::{JointMoments, entropy, floats, max_sliced_relative, observe},
        evaluation::HeldOut,
    },
    framework::PassError,
    statistics::Rows,
};
use pare_graph::{Edge, EvaluateError, Graph, Model, Tensor, ValueId, ops::ClipView};

/// Samples that scores are taken from.
const SAMPLES: usize = 256;

/// What may go next.
#[derive(Clone, Debug)]
pub struct Scores(Vec<Scored>);

/// Blocks that go together.
#[derive(Clone, Debug)]
pub struct Scored {
    /// The blocks.
    pub gone: Vec<Gone>,
    /// How many units they are.
    pub units: usize,
    /// How much they are missed.
    pub score: f64,
}

impl Scores {
    /// The least missed that is not gone yet, of the longest spans there are with at most so many units.
    pub fn least(&self, gone: &[Gone], most: usize) -> Option<Scored> {
        let open = |s: &&Scored| {
            s.units <= most
                && !s.score.is_nan()
                && s.gone.iter().all(|g| gone.iter().all(|h| h.branch != g.branch))
        };
        let longest = self.0.iter().filter(open).map(|s| s.units).max()?;
        let left = self.0.iter().filter(open).filter(|s| s.units == longest);
        left.min_by(|a, b| a.score.total_cmp(&b.score)).cloned()
    }
}

/// A stretch of the stream: what goes in is what comes out of its first blocks without their branches.
struct Span {
    gone: Vec<Gone>,
    units: usize,
    /// What the first blocks leave, and the branches in it.
    first: ValueId,
    branches: Vec<ValueId>,
    /// What the last ones leave.
    last: ValueId,
    /// Bounds of the activation behind the stream, if that is all that reads it.
    clips: (Option<(f32, f32)>, Option<(f32, f32)>),
    /// What goes into the activations of the bodies.
    inner: Vec<ValueId>,
}

impl Work<'_, '_> {
    /// Scores of the units of a model.
    pub(super) fn scores(
        &self,
        model: &Model,
        units: Vec<Vec<Block>>,
        trial: &HeldOut<'_>,
        most: usize,
    ) -> Result<Scores, PassError> {
        let graph = &model.graph;
        let criterion = self.pass.criterion;
        if criterion == Criterion::Loss {
            return self.losses(model, &units, trial);
        }
        let mut spans: Vec<_> = units.iter().map(|u| span(graph, &[u.as_slice()])).collect();
        if criterion == Criterion::Angular {
            spans.extend(longer(graph, &units, most));
        }
        let mut wanted: Vec<_> = spans.iter().flat_map(|s| [s.first, s.last]).collect();
        wanted.extend(spans.iter().flat_map(|s| s.branches.iter().copied()));
        wanted.extend(spans.iter().flat_map(|s| s.inner.iter().copied()));
        wanted.sort_unstable();
        wanted.dedup();
        let mut meters: Vec<_> = spans.iter().map(|s| Meter::new(criterion, graph, s)).collect();
        let range = 0..self.split.fit.end.min(SAMPLES);
        observe(self.tools, model, &wanted, range, "scores", &mut |_, values| {
            let at = |v: ValueId| wanted.binary_search(&v).ok().and_then(|i| values.get(i));
            for (span, meter) in spans.iter().zip(&mut meters) {
                meter.add(span, &at)?;
            }
            Ok(())
        })?;
        let seed = self.tools.seed;
        let scored = spans.into_iter().zip(meters).filter_map(|(span, meter)| {
            let score = meter.score(seed)?;
            Some(Scored { gone: span.gone, units: span.units, score })
        });
        Ok(Scores(scored.collect()))
    }

    /// The drift of the outputs without each unit.
    fn losses(&self, model: &Model, units: &[Vec<Block>], trial: &HeldOut<'_>) -> Result<Scores, PassError> {
        let mut scores = vec![];
        for (i, unit) in units.iter().enumerate() {
            self.tools.progress.step("scores", i as u64, units.len() as u64);
            let mut without = model.clone();
            let gone: Vec<_> = unit.iter().map(|b| Gone::of(&model.graph, b)).collect();
            if super::take_out(&mut without, &gone).is_ok() {
                scores.push(Scored { gone, units: 1, score: trial.drift(&without)? });
            }
        }
        Ok(Scores(scores))
    }
}

/// The stretch that consecutive units make.
fn span(graph: &Graph, units: &[&[Block]]) -> Span {
    let all: Vec<&Block> = units.iter().flat_map(|u| u.iter()).collect();
    let (first, last) = (all[0].exit, all[all.len() - 1].exit);
    let inside = |a: &crate::analysis::activation::Activation| {
        a.nodes.last().is_some_and(|n| all.iter().any(|b| b.body.contains(n)))
    };
    Span {
        gone: all.iter().map(|b| Gone::of(graph, b)).collect(),
        units: units.len(),
        first,
        branches: all.iter().filter(|b| b.exit == first).map(|b| b.branch).collect(),
        last,
        clips: (clip(graph, first), clip(graph, last)),
        inner: activations(graph).iter().filter(|a| inside(a)).map(|a| a.input).collect(),
    }
}

/// Spans of two units and more on a stream that no projection changes.
fn longer(graph: &Graph, units: &[Vec<Block>], most: usize) -> Vec<Span> {
    let mut spans = vec![];
    for run in runs(graph, units) {
        for from in 0..run.len() {
            for length in 2..=most.min(run.len() - from) {
                let part: Vec<_> = run[from..from + length].iter().map(|&u| units[u].as_slice()).collect();
                if part.iter().flat_map(|u| u.iter()).all(|b| b.identity) {
                    spans.push(span(graph, &part));
                }
            }
        }
    }
    spans
}

/// Bounds of the activation that alone reads a value, if it does nothing but clip.
fn clip(graph: &Graph, value: ValueId) -> Option<(f32, f32)> {
    let users = graph.value_ref(value).users();
    let bounds = |(at, wire): &(pare_graph::NodeRef<'_>, Edge)| {
        ClipView::of(*at).ok().filter(|_| *wire == Edge::Input(0)).map(|c| (c.low as f32, c.high as f32))
    };
    let bounds: Vec<_> = users.iter().map(bounds).collect::<Option<_>>()?;
    bounds
        .first()
        .copied()
        .filter(|first| !graph.value(value).is_output() && bounds.iter().all(|b| b == first))
}

/// What is added up for one span.
enum Meter {
    /// Sum of a distance, and how many there were.
    Mean(Criterion, f64, f64),
    /// Samples, whole.
    Clouds(Rows, Rows),
    /// What goes into each activation.
    Signs(Criterion, Vec<(ValueId, usize, JointMoments)>),
}

impl Meter {
    fn new(criterion: Criterion, graph: &Graph, span: &Span) -> Self {
        match criterion {
            Criterion::Wasserstein => Self::Clouds(Rows::default(), Rows::default()),
            Criterion::Entropy | Criterion::Tlc => {
                let channels = |&v: &ValueId| {
                    let shape = graph.value(v).fact.shape()?;
                    let axis = channel_axis(shape.len());
                    Some((
                        v,
                        axis,
                        JointMoments::new(crate::analysis::calibration::size_of(shape.get(axis)?)?),
                    ))
                };
                Self::Signs(criterion, span.inner.iter().filter_map(channels).collect())
            }
            _ => Self::Mean(criterion, 0.0, 0.0),
        }
    }

    fn add<'v>(&mut self, span: &Span, at: &dyn Fn(ValueId) -> Option<&'v Tensor>) -> Result<(), PassError> {
        let missing = || EvaluateError::new("a value was not computed");
        let value = |v: ValueId| at(v).ok_or_else(missing);
        if let Self::Signs(_, inner) = self {
            for (v, axis, pairs) in inner {
                let tensor = value(*v)?;
                let x = floats(tensor)?;
                pairs.add(&x, &x, tensor.shape(), *axis);
            }
            return Ok(());
        }
        let shape = value(span.last)?.shape().to_vec();
        let x = floats(value(span.first)?)?.into_owned();
        let (mut x, mut y) = (x, floats(value(span.last)?)?.into_owned());
        for &branch in &span.branches {
            x.iter_mut().zip(floats(value(branch)?)?.iter()).for_each(|(x, b)| *x -= b);
        }
        for (values, clip) in [(&mut x, span.clips.0), (&mut y, span.clips.1)] {
            if let Some((low, high)) = clip {
                values.iter_mut().for_each(|v| *v = v.max(low).min(high));
            }
        }
        let samples = shape.first().copied().unwrap_or(1).max(1);
        let size = x.len() / samples;
        match self {
            Self::Clouds(before, after) => {
                (before.width, after.width) = (size, size);
                before.data.extend(x);
                after.data.extend(y);
            }
            Self::Mean(criterion, sum, count) => {
                let axis = channel_axis(shape.len());
                for (x, y) in x.chunks_exact(size.max(1)).zip(y.chunks_exact(size.max(1))) {
                    let (x, y) = (places(x, &shape, axis), places(y, &shape, axis));
                    if *criterion == Criterion::Influence {
                        *sum += x.iter().zip(&y).map(|(x, y)| 1.0 - cosine(x, y)).sum::<f64>();
                        *count += x.len() as f64;
                    } else {
                        *sum += cosine(&mean(&x), &mean(&y)).clamp(-1.0, 1.0).acos() / std::f64::consts::PI;
                        *count += 1.0;
                    }
                }
            }
            Self::Signs(..) => {}
        }
        Ok(())
    }

    fn score(self, seed: u64) -> Option<f64> {
        match self {
            Self::Mean(_, sum, count) => (count > 0.0).then(|| sum / count),
            Self::Clouds(x, y) => (x.count() > 0).then(|| max_sliced_relative(&x, &y, seed)),
            Self::Signs(criterion, inner) => {
                let of = |(_, _, pairs): &(ValueId, usize, JointMoments)| match criterion {
                    Criterion::Tlc => entropy::of_gaussians(pairs),
                    _ => entropy::of_signs(pairs),
                };
                let n = inner.len() as f64;
                (n > 0.0).then(|| inner.iter().map(of).sum::<f64>() / n)
            }
        }
    }
}

/// Where channels lie: along axis 1 of feature maps, else along the last.
fn channel_axis(rank: usize) -> usize {
    if rank >= 4 { 1 } else { rank.saturating_sub(1) }
}

/// The channels of each place of one sample.
fn places(values: &[f32], shape: &[usize], axis: usize) -> Vec<Vec<f32>> {
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

/// 1 where both are zero, 0 where one is.
fn cosine(x: &[f32], y: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>();
    let (xx, yy) = (dot(x, x), dot(y, y));
    match (xx > 0.0, yy > 0.0) {
        (true, true) => dot(x, y) / (xx * yy).sqrt(),
        (false, false) => 1.0,
        _ => 0.0,
    }
}
