//! Batches of samples with the outputs of the teacher.

use super::{
    augment::{Augmentation, augmented, is_image},
    loss::Target,
};
use crate::{
    analysis::calibration::{
        Probe, activation_bytes, batches, bytes_per_sample, no_samples, open_inputs, run_batches,
    },
    framework::{PassError, Tools},
};
use fastrand::Rng;
use pare_graph::{Graph, Model, Samples, Tensor, ValueId};
use std::ops::Range;

/// The samples to train on.
pub struct Data<'t> {
    samples: &'t dyn Samples,
    /// The samples of this range are used.
    range: Range<usize>,
    teacher: Probe,
    /// The inputs that receive the outputs of the teacher.
    inputs: Vec<String>,
    /// The outputs of the teacher for all samples, where they fit into memory and samples do not change.
    known: Option<Vec<Tensor>>,
    augment: Vec<Augmentation>,
    /// The number of classes, if the labels take the place of the teacher.
    classes: Option<usize>,
    seed: u64,
    /// The order of the samples in the last epoch asked for.
    order: Option<(u64, Vec<usize>)>,
}

impl<'t> Data<'t> {
    /// Loads the teacher, and runs it on the samples if its outputs fit into a quarter of the memory.
    pub fn new(
        tools: Tools<'t>,
        teacher: &Model,
        targets: &[Target],
        range: Range<usize>,
        augment: &[Augmentation],
    ) -> Result<Self, PassError> {
        let samples = tools.samples.ok_or_else(no_samples)?;
        let values: Vec<ValueId> = targets.iter().map(|target| target.teacher).collect();
        let mut probe = Probe::new(tools, teacher, &open_inputs(&teacher.graph), &values)?;
        let sizes = tools.sizes(&teacher.graph);
        let classes = labelled_classes(samples, &teacher.graph, targets)?;
        let bytes: u64 = values.iter().map(|&v| bytes_per_sample(&teacher.graph, v, &sizes)).sum();
        let fits = bytes.saturating_mul(range.len() as u64) <= tools.memory / 4;
        let mut known = None;
        if fits && augment.is_empty() && classes.is_none() {
            let mut parts: Vec<Vec<Tensor>> = vec![vec![]; values.len()];
            let each = bytes + activation_bytes(teacher, &sizes);
            let batches = batches(&teacher.graph, range.clone(), each, tools.memory);
            run_batches(&mut probe, samples, &batches, &mut |batch, _, outputs| {
                parts.iter_mut().zip(outputs).for_each(|(parts, output)| parts.push(output));
                tools.progress.step("teacher", (batch.end - range.start) as u64, range.len() as u64);
                Ok(())
            })?;
            let joined = parts.iter().map(|parts| Tensor::stacked(&parts.iter().collect::<Vec<_>>()));
            // A model of a fixed batch size leaves out an incomplete batch; one that folds samples into another
            // axis cannot be taken apart.
            known = joined.collect::<Option<Vec<_>>>();
            known = known.filter(|outputs| outputs.iter().all(|o| o.shape()[0] == range.len()));
        }
        let inputs = targets.iter().map(|target| target.input.clone()).collect();
        let (augment, seed) = (augment.to_vec(), tools.seed);
        Ok(Self { samples, range, teacher: probe, inputs, known, augment, classes, seed, order: None })
    }

    /// The variance of each target over the samples, or over some of them.
    pub fn variances(&mut self, targets: &[Target], batch: usize) -> Result<Vec<f64>, PassError> {
        let rows: Vec<_> = (0..self.len().min(batch.max(1))).collect();
        let run;
        let outputs = if let Some(known) = &self.known {
            known
        } else {
            run = self.teacher.run(&self.samples.rows(&self.absolute(&rows))?)?;
            &run
        };
        let of = |(target, values): (&Target, &Tensor)| {
            let infinite =
                || PassError::refused(format!("`{}` is not finite on the samples", target.student));
            target.variance(values).ok_or_else(infinite)
        };
        targets.iter().zip(outputs).map(of).collect()
    }

    /// The labels of rows as `[rows, classes]`, with 1 at the class.
    fn one_hot(&self, rows: &[usize], classes: usize) -> Option<Vec<Tensor>> {
        let labels = self.samples.labels()?;
        let mut values = vec![0.0_f32; rows.len() * classes];
        for (row, values) in self.absolute(rows).into_iter().zip(values.chunks_mut(classes)) {
            *values.get_mut(usize::try_from(*labels.get(row)?).ok()?)? = 1.0;
        }
        Some(vec![Tensor::from_slice(&[rows.len(), classes], &values).ok()?; self.inputs.len()])
    }

    /// The samples of rows of the range.
    fn absolute(&self, rows: &[usize]) -> Vec<usize> {
        rows.iter().map(|row| self.range.start + row).collect()
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// The samples of a step: `count` many from the place `from` in the order of an epoch.
    pub fn rows(&mut self, epoch: u64, from: usize, count: usize) -> Vec<usize> {
        if self.order.as_ref().is_none_or(|(known, _)| *known != epoch) {
            let mut order: Vec<_> = (0..self.len()).collect();
            self.rng(epoch).shuffle(&mut order);
            self.order = Some((epoch, order));
        }
        let order = self.order.iter().flat_map(|(_, order)| order);
        order.skip(from).take(count).copied().collect()
    }

    /// A generator that depends on the seed and a number only, so that training can resume anywhere.
    pub fn rng(&self, number: u64) -> Rng {
        Rng::with_seed(self.seed ^ number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// The inputs of the training model for these samples in the step with this number.
    pub fn batch(&mut self, rows: &[usize], step: u64) -> Result<Vec<(String, Tensor)>, PassError> {
        let mut feeds = self.samples.rows(&self.absolute(rows))?;
        if !self.augment.is_empty() {
            let mut rng = self.rng(!step);
            for (_, tensor) in feeds.iter_mut().filter(|(_, tensor)| is_image(tensor)) {
                if let Some(changed) = augmented(tensor, &self.augment, &mut rng) {
                    *tensor = changed;
                }
            }
        }
        let outputs = match (&self.known, self.classes) {
            (_, Some(classes)) => self.one_hot(rows, classes),
            (Some(known), _) => known.iter().map(|all| all.rows(rows)).collect::<Option<Vec<_>>>(),
            (None, _) => Some(self.teacher.run(&feeds)?),
        };
        let outputs =
            outputs.ok_or_else(|| PassError::refused("the outputs of the samples differ in shape"))?;
        feeds.extend(self.inputs.iter().cloned().zip(outputs));
        Ok(feeds)
    }
}

/// The number of classes, if the targets are labelled.
fn labelled_classes(
    samples: &dyn Samples,
    graph: &Graph,
    targets: &[Target],
) -> Result<Option<usize>, PassError> {
    let Some(target) = targets.iter().find(|target| target.is_labelled()) else { return Ok(None) };
    if samples.labels().is_none() {
        return Err(PassError::refused_with("the samples have no labels", "train without `loss=labels`"));
    }
    let shape = graph.value(target.teacher).fact.shape();
    let classes = shape.and_then(|shape| shape.get(1)?.size());
    let unknown =
        || PassError::refused(format!("the number of classes of `{}` is not known", target.student));
    classes.ok_or_else(unknown).map(Some)
}
