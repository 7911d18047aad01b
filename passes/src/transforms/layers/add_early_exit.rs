use crate::{
    analysis::{
        calibration::{NotFinite, floats, observe, open_inputs},
        flow::Flow,
        linear::AffineMap,
    },
    framework::{Context, Counter, Hint, Pass, PassError},
    pass,
    statistics::{Rows, Sums, map_rows},
};
use faer::Mat;
use pare_graph::{
    Attribute, Axis, AxisSize, DataType, Declared, Dim, EvaluateError, Graph, Model, Node, Patch, Tensor,
    Type, TypeKind, Value, ValueId, ops::Bindings,
};
use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

pass! {
    /// Let easy samples leave before the last layer.
    ///
    /// At a tensor `c` that all data passes, a head `W·pool(c) + b` is fitted by ridge regression to the model's own
    /// logits. Where its highest probability exceeds a threshold it is the answer, else the rest of the model runs:
    /// `y = If(max softmax(head) > τ, head, rest)`. The threshold is the lowest at which samples that the head was not fitted to
    /// tell, with a confidence of nine tenths, that a share of `agreement` keeps its class; `c` is where this saves most.
    ///
    /// Whether to leave is decided for one sample: a model that takes several at once is refused, and one whose batch
    /// size is open unless `allow_interface_change=true` sets it to 1. Needs one output that holds scores of classes.
    #[pass("add-early-exit", Lossy)]
    pub struct AddEarlyExit {
        /// Share of the samples that keep their class.
        pub agreement: f64 = 0.995,
        /// The tensor to leave at, by name; by default the one where most is saved.
        pub at: String = String::new(),
        /// Set an open batch size to 1.
        pub allow_interface_change: bool = false,
    }
}

/// Lots of samples that take turns in not being fitted to.
const FOLDS: usize = 4;
/// Fewer samples than this tell too little.
const MIN_SAMPLES: usize = 64;
/// Ridge of a head, as a share of the mean variance.
const LAMBDA: f64 = 1e-3;

/// How a tensor becomes a row of features for each sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Pool {
    /// `[N, C, ...]`: the mean over places.
    Places,
    /// `[N, T, C]`: the first token.
    First,
    /// `[N, T, C]`: the mean over tokens.
    Tokens,
    /// `[N, C]`: it is one.
    Nothing,
}

/// An exit that could be built.
struct Exit {
    at: ValueId,
    pool: Pool,
    head: AffineMap,
    threshold: f32,
    /// Share of the samples that leave, and that keep their class.
    leaving: f64,
    agreement: f64,
    /// Multiply-accumulates a sample costs on average.
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
        let open = self.batch(model)?;
        let scores = Scores::of(&model.graph)?;
        let exit = self.choose(model, &scores, cx)?;
        if !cx.permit() {
            return Ok(());
        }
        let whole = model.cost(&Bindings::default()).macs.max(1) as f64;
        cx.count(Counter::new("exit", "exits"), 1);
        cx.figure("share leaving early", exit.leaving);
        cx.figure("agreement expected", exit.agreement);
        cx.figure("multiply-accumulates left on average", exit.macs / whole);
        cx.report.notes.push(format!(
            "samples leave at `{}` where the head is surer than {:.4}",
            model.graph.value(exit.at).name,
            exit.threshold
        ));
        let patch = build(&model.graph, &scores, &exit)?;
        model.graph.apply(patch).map_err(|e| PassError::refused(e.to_string()))?;
        if open {
            one_at_a_time(&mut model.graph);
            cx.report.interface.push("the model takes one sample at a time".into());
        }
        model.infer()?;
        Ok(())
    }
}

impl AddEarlyExit {
    /// Whether the batch size is open and has to be set to 1.
    fn batch(&self, model: &Model) -> Result<bool, PassError> {
        let graph = &model.graph;
        let mut open = false;
        for input in open_inputs(graph) {
            let name = &graph.value(input).name;
            let size = graph.value(input).fact.shape().and_then(<[Dim]>::first);
            match size.map(|d| (d.size(), d)) {
                Some((Some(1), _)) => {}
                Some((Some(n), _)) => {
                    let why = format!(
                        "`{name}` takes {n} samples at once, and whether to leave early is decided for one"
                    );
                    return Err(PassError::refused(why));
                }
                Some((None, _)) if self.allow_interface_change => open = true,
                Some((None, size)) => {
                    return Err(PassError::refused_with(
                        format!(
                            "`{name}` takes any number `{size}` of samples, and whether to leave early is decided for one"
                        ),
                        "`add-early-exit{allow_interface_change=true}` sets it to 1",
                    ));
                }
                None => return Err(PassError::refused(format!("the shape of `{name}` is unknown"))),
            }
        }
        Ok(open)
    }

    /// The exit that saves most.
    fn choose(&self, model: &Model, scores: &Scores, cx: &mut Context<'_>) -> Result<Exit, PassError> {
        let graph = &model.graph;
        let places = self.places(model, scores, cx)?;
        let count = cx.tools.samples.map_or(0, pare_graph::Samples::len);
        let mut wanted: Vec<_> = places.iter().map(|p| p.0).collect();
        wanted.push(scores.logits);
        wanted.dedup();
        let mut features: Vec<Rows> = vec![Rows::default(); places.len()];
        let mut logits = Rows::default();
        observe(cx.tools, model, &wanted, 0..count, "features", &mut |_, values| {
            let at = |v: ValueId| wanted.iter().position(|w| *w == v).and_then(|i| values.get(i));
            for ((at_value, pool, _), rows) in places.iter().zip(&mut features) {
                if let Some(tensor) = at(*at_value) {
                    pool.take(tensor, rows)?;
                }
            }
            if let Some(tensor) = at(scores.logits) {
                Pool::Nothing.take(tensor, &mut logits)?;
            }
            Ok(())
        })?;
        let whole = model.cost(&Bindings::default()).macs as f64;
        let mut best: Option<Exit> = None;
        for ((at, pool, before), rows) in places.iter().zip(&features) {
            if rows.count() != logits.count() {
                continue;
            }
            let unfit = |e: NotFinite| PassError::refused(format!("`{}`: {e}", graph.value(*at).name));
            let (head, found) = fitted(rows, &logits, self.agreement).map_err(unfit)?;
            let Some((threshold, leaving, agreement)) = found else { continue };
            let own = (rows.width * logits.width) as f64;
            let macs = before + own + (1.0 - leaving) * (whole - before);
            if best.as_ref().is_none_or(|b| macs < b.macs) {
                best = Some(Exit { at: *at, pool: *pool, head, threshold, leaving, agreement, macs });
            }
        }
        let gains = |e: &Exit| !self.at.is_empty() || e.macs < whole;
        best.filter(gains).ok_or_else(|| {
            PassError::refused_with(
                format!("at no tensor could samples leave with an agreement of {}", self.agreement),
                "ask for less `agreement`, or give more samples",
            )
        })
    }

    /// Where samples could leave: tensor, pooling, multiply-accumulates before it.
    fn places(
        &self,
        model: &Model,
        scores: &Scores,
        cx: &mut Context<'_>,
    ) -> Result<Vec<(ValueId, Pool, f64)>, PassError> {
        let graph = &model.graph;
        let cuts = Flow::of(graph).cuts();
        if !self.at.is_empty() {
            let found = graph.find(&self.at).ok_or_else(|| {
                let names: Vec<_> = cuts.iter().map(|&v| format!("`{}`", graph.value(v).name)).collect();
                PassError::refused_with(
                    format!("there is no tensor `{}`", self.at),
                    format!("all data passes {}", names.join(", ")),
                )
            })?;
            if !cuts.contains(&found) {
                return Err(PassError::refused(format!("data flows around `{}`", self.at)));
            }
        }
        let cost = model.cost(&Bindings::default());
        let macs: HashMap<_, _> = cost.nodes.iter().map(|n| (n.id, n.macs.unwrap_or(0))).collect();
        let mut places = vec![];
        for &cut in cuts.iter().filter(|&&v| self.at.is_empty() || graph.value(v).name == self.at) {
            let last = cut == scores.logits || graph.value(cut).is_output();
            let fact = &graph.value(cut).fact;
            if last || graph.producer(cut).is_none() || fact.dtype() != Some(DataType::Float) {
                continue;
            }
            let before: u64 = graph.upstream([cut], |_| false).iter().filter_map(|n| macs.get(n)).sum();
            let fixed = fact.shape().is_some_and(|s| s.iter().skip(1).all(|d| d.size().is_some()));
            let pools: &[Pool] = match fact.shape().map(<[Dim]>::len) {
                Some(4..) => &[Pool::Places],
                Some(3) => &[Pool::First, Pool::Tokens],
                Some(2) => &[Pool::Nothing],
                _ => &[],
            };
            if pools.is_empty() || !fixed {
                cx.decline(format!(
                    "`{}` is no place to leave at: its shape is not fixed",
                    graph.value(cut).name
                ));
                continue;
            }
            places.extend(pools.iter().map(|&pool| (cut, pool, before as f64)));
        }
        if places.is_empty() {
            return Err(PassError::refused(
                "there is no tensor that all data passes on its way to the output",
            ));
        }
        Ok(places)
    }
}

/// The output that a head stands in for.
struct Scores {
    output: ValueId,
    /// What a softmax makes it from, or itself.
    logits: ValueId,
}

impl Scores {
    fn of(graph: &Graph) -> Result<Self, PassError> {
        let &[output] = graph.outputs() else {
            let n = graph.outputs().len();
            return Err(PassError::refused(format!(
                "the model has {n} outputs, and a head stands in for one"
            )));
        };
        let value = graph.value(output);
        let shape = value.fact.shape();
        let classes = shape.filter(|s| s.len() == 2).and_then(|s| s[1].size());
        if value.fact.dtype() != Some(DataType::Float) || classes.is_none_or(|n| n < 2) {
            return Err(PassError::refused(format!("`{}` does not hold scores of classes", value.name)));
        }
        let softmax = graph.value_ref(output).producer().filter(|at| at.is("Softmax"));
        let logits = softmax.and_then(|at| at.input(0).ok()).map_or(output, |v| v.id);
        Ok(Self { output, logits })
    }
}

impl Pool {
    /// Append the features of each sample.
    fn take(self, tensor: &Tensor, rows: &mut Rows) -> Result<(), PassError> {
        let (shape, values) = (tensor.shape(), floats(tensor)?);
        let samples = shape.first().copied().unwrap_or(0);
        let size = values.len().checked_div(samples).unwrap_or(0);
        let wrong = || EvaluateError::new("a tensor has not the shape that was inferred");
        let channels = match self {
            Self::Places => shape.get(1),
            _ => shape.last(),
        };
        let channels = channels.copied().filter(|&c| c > 0).ok_or_else(wrong)?;
        rows.width = channels;
        for sample in values.chunks_exact(size.max(1)) {
            let plane = size / channels;
            match self {
                Self::Nothing | Self::First => rows.data.extend(&sample[..channels]),
                Self::Places => {
                    let mean =
                        |c: &[f32]| (c.iter().map(|&v| f64::from(v)).sum::<f64>() / plane as f64) as f32;
                    rows.data.extend(sample.chunks_exact(plane.max(1)).map(mean));
                }
                Self::Tokens => {
                    let mean = |c: usize| {
                        let sum: f64 = (0..plane).map(|t| f64::from(sample[t * channels + c])).sum();
                        (sum / plane as f64) as f32
                    };
                    rows.data.extend((0..channels).map(mean));
                }
            }
        }
        Ok(())
    }
}

/// A head for all samples, and what it promises: threshold, share that leaves, share that keeps its class. The promise
/// comes from heads fitted without the samples they are asked about.
#[allow(clippy::type_complexity)] // three numbers, or none
fn fitted(x: &Rows, y: &Rows, agreement: f64) -> Result<(AffineMap, Option<(f32, f64, f64)>), NotFinite> {
    let n = x.count();
    let fold = |i: usize| -> Range<usize> { n * i / FOLDS..n * (i + 1) / FOLDS };
    let prior = Mat::zeros(y.width, x.width);
    let sums = |except: Option<usize>| {
        let mut sums = Sums::new(x.width, y.width);
        for i in (0..FOLDS).filter(|i| Some(*i) != except) {
            let r = fold(i);
            sums.add(x.all().some(r.start, r.len()), y.all().some(r.start, r.len()));
        }
        sums.ridge(prior.as_ref(), LAMBDA)
    };
    let mut sure = vec![];
    for i in 0..FOLDS {
        let (r, head) = (fold(i), sums(Some(i))?);
        let given = map_rows(x.all().some(r.start, r.len()), head.weight.as_ref(), &head.bias);
        for (k, scores) in given.data.chunks_exact(y.width).enumerate() {
            sure.push((confidence(scores), top(scores) == top(y.all().row(r.start + k))));
        }
    }
    Ok((sums(None)?, threshold(sure, agreement)))
}

/// The highest probability.
fn confidence(scores: &[f32]) -> f32 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    1.0 / scores.iter().map(|&s| (s - most).exp()).sum::<f32>()
}

fn top(scores: &[f32]) -> Option<usize> {
    (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]).then(b.cmp(&a)))
}

/// The lowest threshold at which few enough of those that are surer lose their class.
fn threshold(mut sure: Vec<(f32, bool)>, agreement: f64) -> Option<(f32, f64, f64)> {
    sure.sort_by(|a, b| b.0.total_cmp(&a.0));
    let n = sure.len();
    let allowed = allowed(n, 1.0 - agreement);
    let (mut wrong, mut found) = (0, None);
    for (i, &(confidence, right)) in sure.iter().enumerate() {
        wrong += usize::from(!right);
        if wrong > allowed {
            break;
        }
        // Not between two that are equally sure.
        let next = sure.get(i + 1).map_or(0.0, |s| s.0);
        if next < confidence {
            let between = next + (confidence - next) / 2.0;
            let threshold = if between < confidence { between } else { next };
            found = Some((threshold, (i + 1) as f64 / n as f64, 1.0 - wrong as f64 / n as f64));
        }
    }
    found
}

/// How many of `n` samples may be wrong so that, were a share of `share` wrong among all there are, so few would be seen
/// in one of ten draws only. None, if `n` is too small to tell.
fn allowed(n: usize, share: f64) -> usize {
    // P(X = 0) of a binomial distribution, then term by term.
    let mut term = (n as f64 * (-share).ln_1p()).exp();
    let (mut seen, mut count) = (term, 0);
    while count < n && share < 1.0 {
        term *= (n - count) as f64 / (count + 1) as f64 * share / (1.0 - share);
        seen += term;
        if seen.is_nan() || seen > 0.1 {
            break;
        }
        count += 1;
    }
    count
}

/// The head, the decision, and the rest of the graph inside the other branch.
fn build(graph: &Graph, scores: &Scores, exit: &Exit) -> Result<Patch, PassError> {
    let refused = |e: pare_graph::TensorError| PassError::refused(e.to_string());
    let output = graph.value_ref(scores.output);
    let no_producer = || PassError::refused(format!("the output `{}` is made by no node", output.name()));
    let (producer, _) = graph.producer(scores.output).ok_or_else(no_producer)?;
    let opset = graph.opset("").unwrap_or(1);
    if opset < 11 {
        return Err(PassError::refused(format!("operator set {opset} is too old: `If` needs 11")));
    }
    let mut patch = Patch::anchored(producer);
    let cut = exit.at.into();
    let vector = |axis: &[i64]| Tensor::from_slice(&[axis.len()], axis);
    let features = match exit.pool {
        Pool::Places => {
            let pooled = patch.node("exit_pooled", Node::new("GlobalAveragePool"), &[cut]);
            patch.node("exit_features", Node::new("Flatten"), &[pooled])
        }
        Pool::First => {
            let first = patch.constant("first", Tensor::from_slice(&[], &[0_i64]).map_err(refused)?);
            patch.node("exit_features", Node::new("Gather").with("axis", Attribute::Int(1)), &[cut, first])
        }
        Pool::Tokens if opset < 18 => {
            let mean = Node::new("ReduceMean").with("axes", Attribute::Ints(vec![1]));
            patch.node("exit_features", mean.with("keepdims", Attribute::Int(0)), &[cut])
        }
        Pool::Tokens => {
            let axes = patch.constant("axes", vector(&[1]).map_err(refused)?);
            let mean = Node::new("ReduceMean").with("keepdims", Attribute::Int(0));
            patch.node("exit_features", mean, &[cut, axes])
        }
        Pool::Nothing => cut,
    };
    let (k, c) = (exit.head.weight.nrows(), exit.head.weight.ncols());
    let w: Vec<f64> = (0..c * k).map(|i| exit.head.weight[(i % k, i / k)]).collect();
    let w = patch.constant("exit_weight", Tensor::from_f64(DataType::Float, &[c, k], &w).map_err(refused)?);
    let b = Tensor::from_f64(DataType::Float, &[k], &exit.head.bias).map_err(refused)?;
    let b = patch.constant("exit_bias", b);
    let head = patch.node("exit_scores", Node::new("Gemm"), &[features, w, b]);
    let shares = patch.node("exit_shares", Node::new("Softmax").with("axis", Attribute::Int(1)), &[head]);
    let most = Node::new("ReduceMax").with("keepdims", Attribute::Int(0));
    let sure = patch.node("exit_confidence", most, &[shares]);
    let threshold =
        patch.constant("exit_threshold", Tensor::from_slice(&[], &[exit.threshold]).map_err(refused)?);
    let leave = patch.node("exit_taken", Node::new("Greater"), &[sure, threshold]);

    let declared = {
        let shape = [Dim::from(1), Dim::from(i64::try_from(k).unwrap_or(i64::MAX))];
        let mut declared = Declared::default();
        declared.ty = Some(Type::tensor(DataType::Float, Some(&shape)));
        declared
    };
    let given = graph.fresh_name("exit_given");
    let mut early = graph.nested();
    early.name = Some("early".into());
    let inside = |e: pare_graph::GraphError| PassError::refused(e.to_string());
    let from = early.find_or_capture(&given);
    let to = early.add_value(Value::named(&graph.fresh_name("exit_early"))).map_err(inside)?;
    early.add_node(Node::new("Identity"), &[Some(from)], &[Some(to)]).map_err(inside)?;
    early.set_declared(to, Some(declared.clone()));
    early.add_output(to);
    let late = rest(graph, exit.at, scores.output, declared).map_err(inside)?;
    let node = Node::new("If")
        .with("then_branch", Attribute::Graph(Box::new(early)))
        .with("else_branch", Attribute::Graph(Box::new(late)));
    let answer = if scores.logits == scores.output { head } else { shares };
    let new = patch.capturing(output.name(), node, &[leave], &[(&given, answer)]);
    patch.replace(output, new);
    Ok(patch)
}

/// What computes `output` from `cut`, as a graph of its own that captures the rest. Constants that nothing else reads
/// move inside.
fn rest(
    graph: &Graph,
    cut: ValueId,
    output: ValueId,
    declared: Declared,
) -> Result<Graph, pare_graph::GraphError> {
    let before = graph.upstream([cut], |_| false);
    let moved: HashSet<_> = graph.upstream([output], |_| false).difference(&before).copied().collect();
    let mut inner = graph.nested();
    inner.name = Some("rest".into());
    let mut copies = HashMap::new();
    graph.copy_nodes(&moved, &mut inner, &mut copies, |inner, id| {
        let value = graph.value(id);
        let is_computed = graph.producer(id).is_some_and(|(node, _)| moved.contains(&node));
        let is_own = value.tensor().is_some() && graph.users(id).iter().all(|(node, _)| moved.contains(node));
        if !is_computed && !is_own {
            return Ok(inner.find_or_capture(&value.name));
        }
        let name = if id == output { graph.fresh_name(&value.name) } else { value.name.clone() };
        let mut copy = Value::named(&name);
        copy.fact = value.fact.clone();
        copy.data = value.data.clone();
        inner.add_value(copy)
    })?;
    if let Some(&last) = copies.get(&output) {
        inner.set_declared(last, Some(declared));
        inner.add_output(last);
    }
    Ok(inner)
}

/// Set the open batch size to 1 wherever it is declared.
fn one_at_a_time(graph: &mut Graph) {
    let batch = |declared: &Declared| match &declared.ty.as_ref()?.kind {
        TypeKind::Tensor { shape: Some(shape), .. } => shape.first().map(|axis| axis.size.clone()),
        _ => None,
    };
    let symbols: Vec<_> =
        open_inputs(graph).into_iter().filter_map(|v| batch(graph.value(v).declared.as_ref()?)).collect();
    let ends: HashSet<_> = graph.inputs().iter().chain(graph.outputs()).copied().collect();
    for value in graph.values().collect::<Vec<_>>() {
        let Some(mut declared) = graph.value(value).declared.clone() else { continue };
        let Some(ty) = declared.ty.as_mut() else { continue };
        let TypeKind::Tensor { shape: Some(shape), .. } = &mut ty.kind else { continue };
        for (place, Axis { size, .. }) in shape.iter_mut().enumerate() {
            let named = matches!(size, AxisSize::Symbol(_)) && symbols.contains(size);
            let first = place == 0 && ends.contains(&value) && !matches!(size, AxisSize::Fixed(n) if *n > 0);
            if named || first {
                *size = AxisSize::Fixed(1);
            }
        }
        let fact = ty.fact();
        graph.set_declared(value, Some(declared));
        if graph.value(value).is_input() {
            graph.set_fact(value, fact);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{
        Pipeline, Report, RunError, RunOptions, Tools, run,
        testing::{model, tools},
    };
    use pare_graph::onnx;
    use pare_runtime::{Port, PortDim, SampleLimits, SampleSet, SharedSamples};
    use std::path::PathBuf;

    fn fixtures(name: &str) -> PathBuf {
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
    }

    fn samples() -> SharedSamples {
        let dims = [PortDim::Unknown, PortDim::Fixed(1), PortDim::Fixed(8), PortDim::Fixed(8)];
        let ports = [Port::tensor("image", DataType::Float, &dims)];
        let file = fixtures("digits-calibration.npz");
        SharedSamples::from(SampleSet::open(&file, &ports, SampleLimits::default()).unwrap())
    }

    fn added(pass: AddEarlyExit, model: &mut Model) -> Result<Report, RunError> {
        let samples = samples();
        let mut pipeline = Pipeline::default();
        pipeline.push(pass);
        let tools = Tools { samples: Some(&samples), threads: 1, ..tools() };
        run(&pipeline, model, RunOptions { tools, stop_after: None }, &mut ())
    }

    /// Logits of the first samples, one run each.
    fn logits(model: &Model, count: usize) -> Vec<Vec<f32>> {
        let samples = samples();
        let tools = Tools { samples: Some(&samples), threads: 1, ..tools() };
        let mut rows = vec![];
        for i in 0..count {
            observe(tools, model, model.graph.outputs(), i..i + 1, "", &mut |_, values| {
                rows.push(floats(&values[0])?.into_owned());
                Ok(())
            })
            .unwrap();
        }
        rows
    }

    #[test]
    fn some_leave_early_and_the_others_get_the_answer_of_the_whole() {
        for name in ["digits-cnn.onnx", "digits-vit.onnx"] {
            let original = onnx::read(fixtures(name), &onnx::ReadOptions::default()).unwrap();
            let mut changed = original.clone();
            let pass = AddEarlyExit { allow_interface_change: true, ..AddEarlyExit::default() };
            let report = added(pass, &mut changed).unwrap();
            let step = &report.steps[0];
            assert!(step.figure("share leaving early").unwrap() > 0.1, "{name} {step:?}");
            assert!(step.figure("multiply-accumulates left on average").unwrap() < 1.0, "{name} {step:?}");
            assert_eq!(step.interface, ["the model takes one sample at a time"]);
            let shape = changed.graph.value(changed.graph.inputs()[0]).fact.fixed_shape();
            assert_eq!(shape.unwrap(), [1, 1, 8, 8]);
            let (whole, early) = (logits(&original, 200), logits(&changed, 200));
            let same = whole.iter().zip(&early).filter(|(a, b)| top(a) == top(b)).count();
            let stayed = whole.iter().zip(&early).filter(|(a, b)| {
                a.iter().zip(b.iter()).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs()))
            });
            let stayed = stayed.count();
            // Those that stay are answered by the rest of the model, unchanged.
            assert!(same >= 197 && stayed > 0 && stayed < 190, "{name}: {same} of 200, {stayed} stayed");
        }
    }

    #[test]
    fn thresholds_count_the_wrong_and_keep_clear_of_ties() {
        let sure = |n: usize, wrong: &[usize]| -> Vec<_> {
            (0..n).map(|i| (1.0 - i as f32 / 1000.0, !wrong.contains(&i))).collect()
        };
        // Of 99 drawn where 5 % are wrong, less than two are in 4 % of the draws, less than three in 12 %.
        assert_eq!((allowed(99, 0.05), allowed(99, 0.001), allowed(10_000, 0.005)), (1, 0, 40));
        let (least, leaving, agreement) = threshold(sure(99, &[50, 70]), 0.95).unwrap();
        assert_eq!((leaving, agreement), (70.0 / 99.0, 1.0 - 1.0 / 99.0));
        assert!(least < 1.0 - 0.069 && least > 1.0 - 0.070);
        assert_eq!(threshold(vec![(0.9, true), (0.9, false), (0.8, true)], 0.9), None);
        assert_eq!(threshold(sure(10, &[0]), 0.99), None);
    }

    #[test]
    fn what_cannot_leave_is_refused() {
        let cnn = onnx::read(fixtures("digits-cnn.onnx"), &onnx::ReadOptions::default()).unwrap();
        let why =
            |pass: AddEarlyExit, model: &Model| added(pass, &mut model.clone()).unwrap_err().to_string();
        assert_eq!(
            why(AddEarlyExit::default(), &cnn),
            "`add-early-exit`: `image` takes any number `N` of samples, and whether to leave early is decided for one"
        );
        let open = AddEarlyExit { allow_interface_change: true, ..AddEarlyExit::default() };
        let four = model("g (float[4,1,8,8] image) => (float[4,64] y) { y = Flatten(image) }");
        assert_eq!(
            why(open.clone(), &four),
            "`add-early-exit`: `image` takes 4 samples at once, and whether to leave early is decided for one"
        );
        let maps = model("g (float[1,1,8,8] image) => (float[1,1,8,8] y) { y = Relu(image) }");
        assert_eq!(why(open.clone(), &maps), "`add-early-exit`: `y` does not hold scores of classes");
        let nowhere = AddEarlyExit { at: "nowhere".into(), ..open };
        assert_eq!(why(nowhere, &cnn), "`add-early-exit`: there is no tensor `nowhere`");
        assert!(AddEarlyExit { agreement: 1.5, ..AddEarlyExit::default() }.validate().is_err());
    }
}
