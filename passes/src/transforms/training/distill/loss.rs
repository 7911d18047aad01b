//! The loss: a scalar that a copy of the student computes from its outputs and those of the teacher.
//!
//! | loss | of an output `y` and the teacher's `t` |
//! |---|---|
//! | error | `mean (y − t)² / Var t`; of logits, both minus the mean of their row, which a softmax does not see |
//! | divergence | `T² · mean_rows KL(softmax(t/T) ‖ softmax(y/T))` (Hinton et al. 2015) |
//! | labels | `−mean_rows ln softmax(y)_c` for the class `c` of the labels, which take the place of the teacher |
//! | cosine | `mean_rows ‖y/‖y‖ − t/‖t‖‖² = 2 − 2 mean cos(y, t)` |
//!
//! Tokens that a mask switches off have weight 0. The losses of several outputs are added, and with a factor the mean of
//! the errors of inner values, the *hints* of FitNets (Romero et al. 2015).

use crate::{
    analysis::{
        blocks::blocks,
        quality::{mask_input, token_axis},
    },
    framework::{PassError, glob::matches},
};
use pare_graph::{
    Constant, DataType, Declared, Dim, Fact, Graph, GraphError, Model, Node, Tensor, Type, Value, ValueId,
    ValueRef,
    evaluate::quality::{OutputMeasure, QualityMeasures},
    ops::Bindings,
};
use serde::{Deserialize, Serialize};
use std::collections::HashSet;

/// The distance of an output from the teacher's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DistillLoss {
    /// The squared error over the variance.
    Error,
    /// The KL divergence of softened class scores.
    Divergence,
    /// The squared distance of directions.
    Cosine,
    /// The cross entropy with the labels of the samples.
    Labels,
}

/// A value of the student that is to become equal to one of the teacher.
#[derive(Clone, Debug)]
pub struct Target {
    /// The value of the student.
    pub student: String,
    /// The value of the teacher.
    pub teacher: ValueId,
    /// The input of the training model that receives it.
    pub input: String,
    loss: DistillLoss,
    /// The factor of its loss.
    weight: f64,
    /// The axis of classes, from the front; `None` if the value holds none.
    classes: Option<usize>,
    per_token: bool,
}

impl Target {
    /// Returns true if labels take the place of the teacher.
    pub fn is_labelled(&self) -> bool {
        self.loss == DistillLoss::Labels
    }
}

/// Pairs the outputs that count: float outputs that both models have, of class scores the logits.
pub fn targets(
    teacher: &Graph,
    student: &Graph,
    quality: &QualityMeasures,
    loss: Option<DistillLoss>,
) -> Result<Vec<Target>, PassError> {
    let mut found = vec![];
    for &output in student.outputs() {
        let mine = student.value_ref(output);
        let Some(theirs) = teacher.find(mine.name()) else { continue };
        let theirs = teacher.value_ref(theirs);
        let measure = quality.measure(mine.name(), mine.dtype().unwrap_or(DataType::Float));
        if matches!(measure, OutputMeasure::Ignore | OutputMeasure::Exact)
            || mine.dtype() != Some(DataType::Float)
        {
            continue;
        }
        let per_token = quality.get(mine.name()).is_some_and(|output| output.per_token);
        let (mut mine, mut theirs, mut classes) = (mine, theirs, None);
        if let OutputMeasure::Classes { axis } = measure {
            if let (Some(a), Some(b)) = (logits(mine), logits(theirs)) {
                (mine, theirs) = (a, b);
            }
            classes = mine
                .rank()
                .ok()
                .and_then(|rank| usize::try_from(if axis < 0 { axis + rank as i64 } else { axis }).ok());
        }
        let loss = match (loss, measure) {
            (Some(DistillLoss::Divergence), _) if classes.is_none() => DistillLoss::Error,
            // Labels belong to an output with one row a sample.
            (Some(DistillLoss::Labels), _) if classes != Some(1) || mine.rank() != Ok(2) => continue,
            (Some(loss), _) => loss,
            (None, OutputMeasure::Cosine) => DistillLoss::Cosine,
            (None, _) => DistillLoss::Error,
        };
        let input = student.fresh_name(&format!("teacher_{}", mine.name()));
        found.push(Target {
            student: mine.name().into(),
            teacher: theirs.id,
            input,
            loss,
            weight: 1.0,
            classes,
            per_token,
        });
    }
    if found.is_empty() && loss == Some(DistillLoss::Labels) {
        return Err(PassError::refused(
            "no output holds the scores of one class a sample, which labels are for",
        ));
    }
    if found.is_empty() {
        return Err(PassError::refused(
            "no float output is the same in the original, so there is nothing to train towards",
        ));
    }
    Ok(found)
}

/// The pattern of features for the streams after residual blocks.
const BLOCKS: &str = "blocks";

/// Pairs inner values whose names match one of these patterns, and that both models compute as floats of the same shape.
/// Together they have this weight.
pub fn features(
    teacher: &Graph,
    student: &Graph,
    patterns: &[String],
    weight: f64,
) -> Result<Vec<Target>, PassError> {
    let streams: HashSet<_> = match patterns.iter().any(|pattern| pattern == BLOCKS) {
        true => blocks(teacher).into_iter().map(|block| block.exit).collect(),
        false => HashSet::new(),
    };
    let mask = mask_input(student).and_then(|mask| student.value_ref(mask).shape());
    let mut found = vec![];
    for value in student.nodes().iter().flat_map(|&node| student.results(node)) {
        let mine = student.value_ref(value);
        let Some(theirs) = teacher.find(mine.name()).map(|id| teacher.value_ref(id)) else { continue };
        let is_chosen =
            streams.contains(&theirs.id) || patterns.iter().any(|pattern| matches(pattern, mine.name()));
        let Some(shape) = mine.shape().filter(|shape| is_chosen && shape.len() >= 2) else { continue };
        let is_float = [mine, theirs].iter().all(|value| value.dtype() == Some(DataType::Float));
        if mine.value().is_output() || !is_float || !theirs.shape().is_some_and(|other| fits(shape, other)) {
            continue;
        }
        found.push(Target {
            student: mine.name().into(),
            teacher: theirs.id,
            input: student.fresh_name(&format!("teacher_{}", mine.name())),
            loss: DistillLoss::Error,
            weight,
            classes: None,
            per_token: mask.is_some_and(|mask| token_axis(mask, shape) == Some(1)),
        });
    }
    if found.is_empty() {
        return Err(PassError::refused_with(
            "the original computes no value of `features` in the shape that it has here",
            "`blocks` are the streams after residual blocks, which stay where inner channels are removed",
        ));
    }
    let count = found.len() as f64;
    found.iter_mut().for_each(|target| target.weight /= count);
    Ok(found)
}

/// Returns whether shapes are the same, as far as they are known.
fn fits(a: &[Dim], b: &[Dim]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.size() == b.size())
}

/// The input of the softmax that computes a value.
fn logits(output: ValueRef<'_>) -> Option<ValueRef<'_>> {
    let producer = output.producer().filter(|at| at.is("Softmax") || at.is("LogSoftmax"))?;
    producer.input(0).ok()
}

impl Target {
    /// The variance of the teacher's values, in the form in which they are compared; 1 if it is not used.
    pub fn variance(&self, values: &Tensor) -> Option<f64> {
        if self.loss != DistillLoss::Error {
            return Some(1.0);
        }
        let mut items = values.to_f64()?;
        if let Some(axis) = self.classes {
            let classes = *values.shape().get(axis)?;
            let inner: usize = values.shape()[axis + 1..].iter().product();
            for block in items.chunks_mut((classes * inner).max(1)) {
                for i in 0..inner {
                    let row = || (0..classes).map(|c| c * inner + i);
                    let mean = row().map(|k| block[k]).sum::<f64>() / classes as f64;
                    row().for_each(|k| block[k] -= mean);
                }
            }
        }
        let count = items.len().max(1) as f64;
        let mean = items.iter().sum::<f64>() / count;
        let variance = items.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / count;
        variance.is_finite().then_some(if variance > 0.0 { variance } else { 1.0 })
    }
}

/// The student with the loss as its only output, at fixed sizes of the inputs.
pub struct LossModel {
    pub model: Model,
    /// The name of the loss.
    pub loss: String,
}

impl LossModel {
    /// Adds the loss to a copy of the student, for batches of `batch` samples. `variances` belong to the targets.
    pub fn new(
        student: &Model,
        targets: &[Target],
        variances: &[f64],
        temperature: f64,
        batch: usize,
        sizes: &Bindings,
    ) -> Result<Self, PassError> {
        let mut model = student.clone();
        let mask = mask_input(&model.graph);
        fix_sizes(&mut model.graph, batch, sizes);
        let outputs = model.graph.outputs().to_vec();
        for &output in &outputs {
            model.graph.set_declared(output, None);
        }
        model.infer()?;
        let graph = &mut model.graph;
        let mut builder = Builder { graph };
        let loss = builder.total(targets, variances, temperature, mask)?;
        graph.remove_outputs(&outputs);
        graph.add_output(loss);
        let loss = graph.value(loss).name.clone();
        graph.sweep();
        model.infer()?;
        Ok(Self { model, loss })
    }
}

fn failed(error: GraphError) -> PassError {
    PassError::refused(format!("the loss cannot be built: {error}"))
}

/// Fixes the first axis of the inputs to the batch size, and all other symbols to their sizes.
fn fix_sizes(graph: &mut Graph, batch: usize, sizes: &Bindings) {
    let inputs: Vec<_> = graph.inputs().iter().copied().filter(|&v| graph.value(v).data.is_none()).collect();
    for input in inputs {
        let fact = &graph.value(input).fact;
        let (Some(dtype), Some(shape)) = (fact.dtype(), fact.shape()) else { continue };
        let fixed = shape.iter().enumerate().map(|(axis, dim)| {
            let size = if axis == 0 { Some(batch as u64) } else { sizes.size(dim) };
            dim.size().map_or(size, |n| Some(n as u64)).map_or_else(|| dim.clone(), |n| Dim::from(n as usize))
        });
        let fact = Fact::tensor(dtype, fixed.collect());
        graph.set_declared(input, Some(declared(&fact)));
        graph.set_fact(input, fact);
    }
}

/// The declaration of a value with this fact.
fn declared(fact: &Fact) -> Declared {
    let mut declared = Declared::default();
    declared.ty = Type::of(fact);
    declared
}

/// Adds nodes to the graph of a loss.
pub struct Builder<'g> {
    pub graph: &'g mut Graph,
}

impl Builder<'_> {
    pub fn node(&mut self, node: Node, inputs: &[ValueId]) -> Result<ValueId, PassError> {
        self.nodes(node, inputs).map(|[output]| output)
    }

    /// Adds a node with `N` outputs.
    pub fn nodes<const N: usize>(
        &mut self,
        node: Node,
        inputs: &[ValueId],
    ) -> Result<[ValueId; N], PassError> {
        let mut outputs = vec![];
        for _ in 0..N {
            let name = self.graph.fresh_name("distill_loss");
            outputs.push(self.graph.add_value(Value::named(&name)).map_err(failed)?);
        }
        let slots = |values: &[ValueId]| values.iter().copied().map(Some).collect::<Vec<_>>();
        self.graph.add_node(node, &slots(inputs), &slots(&outputs)).map_err(failed)?;
        Ok(std::array::from_fn(|slot| outputs[slot]))
    }

    /// Adds an input with a name that is free.
    pub fn input(&mut self, name: &str, fact: Fact) -> Result<ValueId, PassError> {
        let mut input = Value::named(name);
        (input.declared, input.fact) = (Some(declared(&fact)), fact);
        let id = self.graph.add_value(input).map_err(failed)?;
        self.graph.add_input(id);
        Ok(id)
    }

    pub fn op(&mut self, op: &str, inputs: &[ValueId]) -> Result<ValueId, PassError> {
        self.node(Node::new(op), inputs)
    }

    pub fn constant(&mut self, tensor: Tensor) -> Result<ValueId, PassError> {
        let fact = Fact::of_constant(&tensor);
        let name = self.graph.fresh_name("distill_constant");
        let mut value = Value::named(&name);
        (value.fact, value.data) = (fact, Some(Constant::Dense(tensor)));
        self.graph.add_value(value).map_err(failed)
    }

    pub fn scaled(&mut self, x: ValueId, factor: f64) -> Result<ValueId, PassError> {
        let factor = self.constant(Tensor::scalar(factor as f32))?;
        self.op("Mul", &[x, factor])
    }

    pub fn reduce(
        &mut self,
        op: &str,
        x: ValueId,
        axes: &[i64],
        keepdims: bool,
    ) -> Result<ValueId, PassError> {
        let node = Node::new(op).with("keepdims", i64::from(keepdims));
        let axes = if axes.is_empty() { None } else { Some(self.constant(Tensor::vector(axes))?) };
        let inputs: Vec<_> = std::iter::once(x).chain(axes).collect();
        self.node(node, &inputs)
    }

    /// The sum of the losses of all targets.
    fn total(
        &mut self,
        targets: &[Target],
        variances: &[f64],
        temperature: f64,
        mask: Option<ValueId>,
    ) -> Result<ValueId, PassError> {
        let mut total = None;
        for (target, &variance) in targets.iter().zip(variances) {
            let loss = self.target(target, variance, temperature, mask)?;
            total = Some(match total {
                None => loss,
                Some(others) => self.op("Add", &[others, loss])?,
            });
        }
        total.ok_or_else(|| PassError::refused("there is nothing to train towards"))
    }

    fn target(
        &mut self,
        target: &Target,
        variance: f64,
        temperature: f64,
        mask: Option<ValueId>,
    ) -> Result<ValueId, PassError> {
        let missing = || PassError::refused(format!("`{}` is not computed any more", target.student));
        let y = self.graph.find(&target.student).ok_or_else(missing)?;
        let fact = Fact::tensor(DataType::Float, self.graph.value(y).fact.shape().unwrap_or(&[]).to_vec());
        let rank = fact.shape().map_or(0, <[Dim]>::len);
        let t = self.input(&target.input, fact)?;
        let last = rank.saturating_sub(1) as i64;
        // The loss of each element, and the number of elements that are averaged together.
        let each = match target.loss {
            DistillLoss::Error => {
                let mut difference = self.op("Sub", &[y, t])?;
                if let Some(axis) = target.classes {
                    let mean = self.reduce("ReduceMean", difference, &[axis as i64], true)?;
                    difference = self.op("Sub", &[difference, mean])?;
                }
                let square = self.op("Mul", &[difference, difference])?;
                self.scaled(square, target.weight / variance)?
            }
            DistillLoss::Divergence => {
                let axis = target.classes.map_or(last, |axis| axis as i64);
                let [log_y, log_t] = [y, t].map(|x| {
                    let soft = self.scaled(x, 1.0 / temperature)?;
                    self.node(Node::new("LogSoftmax").with("axis", axis), &[soft])
                });
                let (log_y, log_t) = (log_y?, log_t?);
                let p = self.op("Exp", &[log_t])?;
                let difference = self.op("Sub", &[log_t, log_y])?;
                let each = self.op("Mul", &[p, difference])?;
                let rows = self.reduce("ReduceSum", each, &[axis], true)?;
                self.scaled(rows, temperature * temperature)?
            }
            DistillLoss::Labels => {
                // Here `t` is 1 at the class of the label and 0 elsewhere.
                let log_y = self.node(Node::new("LogSoftmax").with("axis", last), &[y])?;
                let each = self.op("Mul", &[t, log_y])?;
                let rows = self.reduce("ReduceSum", each, &[last], true)?;
                self.op("Neg", &[rows])?
            }
            DistillLoss::Cosine => {
                let [y, t] = [y, t].map(|x| {
                    let square = self.op("Mul", &[x, x])?;
                    let sum = self.reduce("ReduceSum", square, &[last], true)?;
                    let least = self.constant(Tensor::scalar(1e-12_f32))?;
                    let sum = self.op("Add", &[sum, least])?;
                    let length = self.op("Sqrt", &[sum])?;
                    self.op("Div", &[x, length])
                });
                let difference = self.op("Sub", &[y?, t?])?;
                let square = self.op("Mul", &[difference, difference])?;
                self.reduce("ReduceSum", square, &[last], true)?
            }
        };
        match mask.filter(|_| target.per_token && rank >= 2) {
            None => self.reduce("ReduceMean", each, &[], false),
            Some(mask) => {
                // mean over the other axes, then Σ m·e / Σ m over tokens
                let others: Vec<i64> = (2..rank as i64).collect();
                let each =
                    if others.is_empty() { each } else { self.reduce("ReduceMean", each, &others, false)? };
                let cast = Node::new("Cast").with("to", i64::from(DataType::Float.number()));
                let weights = self.node(cast, &[mask])?;
                let weighted = self.op("Mul", &[each, weights])?;
                let sum = self.reduce("ReduceSum", weighted, &[], false)?;
                let count = self.reduce("ReduceSum", weights, &[], false)?;
                self.op("Div", &[sum, count])
            }
        }
    }
}
