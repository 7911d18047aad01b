//! The `add-early-exit` pass: options and choice of the exit.

mod head;
mod surgery;
#[cfg(test)]
mod tests;

use crate::{
    analysis::{
        calibration::{NotFinite, observe, open_inputs},
        flow::Flow,
        linear::AffineMap,
    },
    framework::{Context, Counter, Hint, InterfaceChange, Pass, PassError},
    pass,
    statistics::Rows,
};
use head::{Pool, Threshold};
use pare_graph::{DataType, Dim, Graph, Model, ValueId};
use std::collections::HashMap;

pass! {
    /// Add an early exit for samples that are easy to classify.
    ///
    /// At a tensor `c` that all data passes through, a head `W·pool(c) + b` is fitted to the logits of the
    /// model by ridge regression. Its result is used if its highest probability exceeds a threshold:
    /// `y = If(max softmax(head) > τ, head, rest)`. `τ` is the lowest threshold at which, by cross-validation
    /// and with a confidence of 0.9, a share of `agreement` keeps its class. `c` is the tensor with the
    /// largest savings.
    ///
    /// The model must take one sample at a time: declines a fixed batch size above 1, and a symbolic one
    /// unless `allow_interface_change=true` sets it to 1. Needs a single output with class scores.
    #[pass("add-early-exit", Lossy)]
    pub struct AddEarlyExit {
        /// The share of samples that must keep their class.
        pub agreement: f64 = 0.995,
        /// The name of the tensor to exit at; by default the one with the largest savings.
        pub at: String = String::new(),
        /// Set a symbolic batch size to 1.
        pub allow_interface_change: bool = false,
    }
}

/// The smallest number of samples.
const MIN_SAMPLES: usize = 64;

/// A tensor at which samples can exit.
struct ExitPoint {
    tensor: ValueId,
    pool: Pool,
    /// Multiply-accumulates up to the tensor.
    macs_before: f64,
}

/// An exit with its head.
struct Exit {
    tensor: ValueId,
    pool: Pool,
    head: AffineMap,
    threshold: Threshold,
    /// Mean multiply-accumulates per sample.
    macs: f64,
}

impl Pass for AddEarlyExit {
    fn validate(&self) -> Result<(), String> {
        let valid = self.agreement > 0.0 && self.agreement <= 1.0;
        if valid {
            Ok(())
        } else {
            Err(format!("`agreement` is a share between 0 and 1, not {}", self.agreement))
        }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let count = cx.tools.samples.map_or(0, pare_graph::Samples::len);
        if cx.tools.engine.is_none() || count < MIN_SAMPLES {
            return Err(PassError::refused_with(
                "it needs samples, and an engine to run them",
                Hint::MoreSamples(MIN_SAMPLES),
            ));
        }
        let symbolic_batch = self.has_symbolic_batch(model)?;
        let scores = Scores::of(&model.graph)?;
        let exit = self.choose(model, &scores, cx)?;
        if !cx.permit() {
            return Ok(());
        }
        let total = model.cost(&cx.tools.sizes(&model.graph)).macs.max(1) as f64;
        cx.count(Counter::new("exit added", "exits added"), 1);
        cx.figure("share of samples exiting early", exit.threshold.exiting);
        cx.figure("expected agreement", exit.threshold.agreement);
        cx.figure("mean MACs relative to the original", exit.macs / total);
        cx.report.notes.push(format!(
            "samples exit at `{}` if the confidence of the head exceeds {:.4}",
            model.graph.value(exit.tensor).name,
            exit.threshold.confidence
        ));
        let patch = surgery::add_exit(&model.graph, &scores, &exit)?;
        model.graph.apply(patch).map_err(PassError::from_error)?;
        if symbolic_batch {
            surgery::fix_batch_size(&mut model.graph);
            cx.report.interface.push(InterfaceChange::Other("the model takes one sample at a time".into()));
        }
        model.infer()?;
        Ok(())
    }
}

impl AddEarlyExit {
    /// Returns true if the batch size is symbolic and has to be set to 1.
    fn has_symbolic_batch(&self, model: &Model) -> Result<bool, PassError> {
        let graph = &model.graph;
        let mut symbolic = false;
        for input in open_inputs(graph) {
            let name = &graph.value(input).name;
            let size = graph.value(input).fact.shape().and_then(<[Dim]>::first);
            match size.map(|d| (d.size(), d)) {
                Some((Some(1), _)) => {}
                Some((Some(n), _)) => {
                    let why = format!("`{name}` has batch size {n}, and an early exit needs batch size 1");
                    return Err(PassError::refused(why));
                }
                Some((None, _)) if self.allow_interface_change => symbolic = true,
                Some((None, size)) => {
                    return Err(PassError::refused_with(
                        format!("`{name}` has batch size `{size}`, and an early exit needs batch size 1"),
                        "`add-early-exit{allow_interface_change=true}` sets it to 1",
                    ));
                }
                None => return Err(PassError::refused(format!("the shape of `{name}` is unknown"))),
            }
        }
        Ok(symbolic)
    }

    /// The exit with the fewest multiply-accumulates on average.
    fn choose(&self, model: &Model, scores: &Scores, cx: &mut Context<'_>) -> Result<Exit, PassError> {
        let graph = &model.graph;
        let points = self.exit_points(model, scores, cx)?;
        let (features, logits) = collect_features(model, &points, scores, cx)?;
        let total = model.cost(&cx.tools.sizes(&model.graph)).macs as f64;
        let mut best: Option<Exit> = None;
        for (point, rows) in points.iter().zip(&features) {
            if rows.count() != logits.count() {
                continue;
            }
            let name = &graph.value(point.tensor).name;
            let not_finite = |e: NotFinite| PassError::refused(format!("`{name}`: {e}"));
            let (head, threshold) = head::fit(rows, &logits, self.agreement).map_err(not_finite)?;
            let Some(threshold) = threshold else { continue };
            let head_macs = (rows.width * logits.width) as f64;
            let macs =
                point.macs_before + head_macs + (1.0 - threshold.exiting) * (total - point.macs_before);
            if best.as_ref().is_none_or(|b| macs < b.macs) {
                best = Some(Exit { tensor: point.tensor, pool: point.pool, head, threshold, macs });
            }
        }
        let pays = |e: &Exit| !self.at.is_empty() || e.macs < total;
        best.filter(pays).ok_or_else(|| {
            PassError::refused_with(
                format!("no early exit reaches an agreement of {}", self.agreement),
                "give a lower `agreement` or more samples",
            )
        })
    }

    /// The tensors at which samples can exit, with each pooling.
    fn exit_points(
        &self,
        model: &Model,
        scores: &Scores,
        cx: &mut Context<'_>,
    ) -> Result<Vec<ExitPoint>, PassError> {
        let graph = &model.graph;
        let cuts = Flow::of(graph).cuts();
        if !self.at.is_empty() {
            let found = graph.find(&self.at).ok_or_else(|| {
                let names: Vec<_> = cuts.iter().map(|&v| format!("`{}`", graph.value(v).name)).collect();
                PassError::refused_with(
                    format!("there is no tensor `{}`", self.at),
                    format!("all data passes through {}", names.join(", ")),
                )
            })?;
            if !cuts.contains(&found) {
                return Err(PassError::refused(format!("not all data passes through `{}`", self.at)));
            }
        }
        let cost = model.cost(&cx.tools.sizes(&model.graph));
        let macs: HashMap<_, _> = cost.nodes.iter().map(|n| (n.id, n.macs.unwrap_or(0))).collect();
        let mut points = vec![];
        for &cut in cuts.iter().filter(|&&v| self.at.is_empty() || graph.value(v).name == self.at) {
            let last = cut == scores.logits || graph.value(cut).is_output();
            let fact = &graph.value(cut).fact;
            if last || graph.producer(cut).is_none() || fact.dtype() != Some(DataType::Float) {
                continue;
            }
            let before: u64 = graph.upstream([cut], |_| false).iter().filter_map(|n| macs.get(n)).sum();
            let fixed = fact.shape().is_some_and(|s| s.iter().skip(1).all(|d| d.size().is_some()));
            let pools: &[Pool] = match fact.shape().map(<[Dim]>::len) {
                Some(4..) => &[Pool::Positions],
                Some(3) => &[Pool::FirstToken, Pool::Tokens],
                Some(2) => &[Pool::None],
                _ => &[],
            };
            if pools.is_empty() || !fixed {
                cx.decline(format!("the shape of `{}` is not fixed", graph.value(cut).name));
                continue;
            }
            let macs_before = before as f64;
            points.extend(pools.iter().map(|&pool| ExitPoint { tensor: cut, pool, macs_before }));
        }
        if points.is_empty() {
            return Err(PassError::refused("there is no tensor that all data passes through"));
        }
        Ok(points)
    }
}

/// The output that is replaced.
struct Scores {
    output: ValueId,
    /// The input of the final `Softmax`, or the output itself.
    logits: ValueId,
}

impl Scores {
    fn of(graph: &Graph) -> Result<Self, PassError> {
        let &[output] = graph.outputs() else {
            let n = graph.outputs().len();
            return Err(PassError::refused(format!(
                "the model has {n} outputs, and an early exit needs a single one"
            )));
        };
        let value = graph.value(output);
        let shape = value.fact.shape();
        let classes = shape.filter(|s| s.len() == 2).and_then(|s| s[1].size());
        if classes.is_none_or(|n| n < 2) || !value.fact.dtype().is_some_and(DataType::is_float) {
            return Err(PassError::refused(format!("`{}` does not hold class scores", value.name)));
        }
        if let Some(dtype) = value.fact.dtype().filter(|&dtype| dtype != DataType::Float) {
            let why = format!("`{}` is of type {dtype}, and an early exit needs float", value.name);
            return Err(PassError::refused(why));
        }
        let softmax = graph.value_ref(output).producer().filter(|at| at.is("Softmax"));
        let logits = softmax.and_then(|at| at.input(0).ok()).map_or(output, |v| v.id);
        Ok(Self { output, logits })
    }
}

/// The features of each exit point, and the logits, on all samples.
fn collect_features(
    model: &Model,
    points: &[ExitPoint],
    scores: &Scores,
    cx: &Context<'_>,
) -> Result<(Vec<Rows>, Rows), PassError> {
    let count = cx.tools.samples.map_or(0, pare_graph::Samples::len);
    let mut wanted: Vec<_> = points.iter().map(|p| p.tensor).collect();
    wanted.push(scores.logits);
    wanted.dedup();
    let (mut features, mut logits) = (vec![Rows::default(); points.len()], Rows::default());
    observe(cx.tools, model, &wanted, 0..count, "features", &mut |_, values| {
        let at = |v: ValueId| wanted.iter().position(|w| *w == v).and_then(|i| values.get(i));
        for (point, rows) in points.iter().zip(&mut features) {
            if let Some(tensor) = at(point.tensor) {
                point.pool.append(tensor, rows)?;
            }
        }
        if let Some(tensor) = at(scores.logits) {
            Pool::None.append(tensor, &mut logits)?;
        }
        Ok(())
    })?;
    Ok((features, logits))
}
