//! The rows that an operator is fitted to, gathered from both models.

use super::{
    frontier::Frontier,
    target::{Addend, Target},
};
use crate::{
    analysis::{
        calibration::{Sampling, choose, floats, misfit},
        linear::Positions,
        samples::POSITIONS,
    },
    framework::{PassError, Tools},
    statistics::Rows,
};
use pare_graph::{Graph, Model, Tensor, ValueId};
use std::ops::Range;

/// Rows over all samples: inputs, targets, and addends of the output.
#[derive(Default)]
pub(super) struct TrainingRows {
    pub inputs: Rows,
    /// The targets, less the addends.
    pub targets: Rows,
    /// Of width 0 without an addend.
    pub addends: Rows,
}

/// A model and the part of it that has run.
pub(super) struct ModelAt<'a> {
    pub model: &'a Model,
    pub frontier: &'a mut Frontier,
}

/// The values of a batch in both models, and its first sample.
struct BatchValues<'a> {
    original: &'a [Tensor],
    changed: &'a [Tensor],
    first_sample: usize,
}

impl TrainingRows {
    /// Runs both models up to the operator and gathers rows. Values of the original in `later` are kept for
    /// later targets.
    pub fn gather(
        tools: Tools<'_>,
        original: ModelAt<'_>,
        changed: ModelAt<'_>,
        target: &Target<'_>,
        later: &[ValueId],
        batches: &[Range<usize>],
    ) -> Result<Self, PassError> {
        let linear = &target.linear;
        let mut inputs = vec![linear.input];
        if let Some(Addend::Value(addend)) = target.addend {
            inputs.push(addend);
        }
        let (before, after) = (original.frontier, changed.frontier);
        let mut segment_before = before.segment(tools, original.model, &[target.value], later)?;
        let mut segment_after = after.segment(tools, changed.model, &inputs, &[])?;
        let samples: usize = batches.iter().map(ExactSizeIterator::len).sum();
        let (old_graph, graph) = (&original.model.graph, &changed.model.graph);
        let bytes = segment_before.bytes(old_graph, &tools.sizes(old_graph))
            + segment_after.bytes(graph, &tools.sizes(graph));
        // Without enough memory, the values are computed again from the last frontier that fitted.
        let advances = bytes.saturating_mul(samples as u64) <= tools.memory / 2;
        let width = linear.groups * (linear.width() + 3 * linear.outputs);
        let rows = (tools.memory / 4 / (4 * width.max(1) as u64)) as usize;
        let positions = POSITIONS.min(rows / samples.max(1)).max(1);
        let sampling = Sampling { positions, seed: tools.seed };
        let outputs = linear.groups * linear.outputs;
        let mut rows = Self {
            inputs: Rows::new(linear.groups * linear.width()),
            targets: Rows::new(outputs),
            addends: Rows::new(if target.addend.is_some() { outputs } else { 0 }),
        };
        let (mut next_before, mut next_after) = (vec![], vec![]);
        for (i, batch) in batches.iter().enumerate() {
            // Neither model keeps all cores busy alone.
            let (original, changed) = rayon::join(
                || before.run(tools, old_graph, &mut segment_before, i, batch),
                || after.run(tools, graph, &mut segment_after, i, batch),
            );
            let (original, changed) = (original?, changed?);
            let values = BatchValues {
                original: &original.requested,
                changed: &changed.requested,
                first_sample: batch.start,
            };
            rows.add(graph, target, &values, sampling)?;
            if advances {
                next_before.push(original.next);
                next_after.push(changed.next);
            }
        }
        if advances {
            before.advance(segment_before, next_before);
            after.advance(segment_after, next_after);
        }
        Ok(rows)
    }

    fn add(
        &mut self,
        graph: &Graph,
        target: &Target<'_>,
        batch: &BatchValues<'_>,
        sampling: Sampling,
    ) -> Result<(), PassError> {
        let linear = &target.linear;
        let wrong = || misfit(linear, graph);
        let x = batch.changed.first().ok_or_else(wrong)?;
        let y = batch.original.first().ok_or_else(wrong)?;
        let shape = linear.output_shape(x.shape()).ok_or_else(wrong)?;
        let axis = if linear.is_conv() { 1 } else { shape.len() - 1 };
        let fits = |(a, (new, old)): (usize, (&usize, &usize))| a == axis || new == old;
        if shape.len() != y.rank() || !shape.iter().zip(y.shape()).enumerate().all(fits) {
            return Err(wrong());
        }
        let channels = y.shape()[axis];
        let kept = target.refit.kept.clone().unwrap_or_else(|| (0..channels).collect());
        if kept.len() != shape[axis] || kept.last().is_some_and(|&c| c >= channels) {
            return Err(wrong());
        }
        let (xs, ys) = (floats(x)?, floats(y)?);
        let addend = match (&target.addend, batch.changed.get(1)) {
            (Some(Addend::Value(_)), Some(addend)) if *addend.shape() == shape[..] => Some(floats(addend)?),
            (Some(Addend::Constant(map)), _) => Some(broadcast(map, &shape).ok_or_else(wrong)?.into()),
            (None, None) => None,
            _ => return Err(wrong()),
        };
        let count = linear.positions(&shape);
        for sample in 0..x.shape()[0] {
            let chosen = choose(sampling.seed, batch.first_sample + sample, count, sampling.positions);
            let at = Positions { sample, chosen: &chosen };
            linear.gather_inputs(&xs, x.shape(), &shape, at, &mut self.inputs);
            let mut targets = Rows::new(channels);
            linear.gather_outputs(&ys, y.shape(), at, &mut targets);
            let from = self.addends.data.len();
            if let Some(addend) = &addend {
                linear.gather_outputs(addend, &shape, at, &mut self.addends);
            }
            let mut addends = self.addends.data[from..].chunks_exact(kept.len().max(1));
            for row in targets.data.chunks_exact(channels) {
                match addends.next() {
                    Some(addend) => {
                        self.targets.data.extend(kept.iter().zip(addend).map(|(&c, a)| row[c] - a));
                    }
                    None => self.targets.data.extend(kept.iter().map(|&c| row[c])),
                }
            }
        }
        Ok(())
    }
}

/// The elements of a constant that is broadcast to a shape.
fn broadcast(constant: &Tensor, shape: &[usize]) -> Option<Vec<f32>> {
    let values =
        ndarray::ArrayD::from_shape_vec(constant.shape(), floats(constant).ok()?.into_owned()).ok()?;
    Some(values.broadcast(shape)?.iter().copied().collect())
}
