//! Graph surgery: the exit, its two branches, and the batch size.

use super::{Exit, Scores, head::Pool};
use crate::{
    analysis::{calibration::open_inputs, linear::AffineMap},
    framework::PassError,
};
use pare_graph::{
    Attribute, Axis, AxisSize, DataType, Declared, Dim, Graph, GraphError, Node, Patch, Ref, Tensor,
    TensorError, Type, TypeKind, Value, ValueId,
};
use std::collections::{HashMap, HashSet};

/// Adds the head, and an `If` whose other branch is the rest of the graph.
pub fn add_exit(graph: &Graph, scores: &Scores, exit: &Exit) -> Result<Patch, PassError> {
    let output = graph.value_ref(scores.output);
    let no_producer = || PassError::refused(format!("the output `{}` has no producer", output.name()));
    let (producer, _) = graph.producer(scores.output).ok_or_else(no_producer)?;
    let opset = graph.opset("").unwrap_or(1);
    if opset < 11 {
        return Err(PassError::refused(format!("operator set {opset} is too old: `If` needs 11")));
    }
    let mut patch = Patch::anchored(producer);
    let features = pooled(&mut patch, exit, opset).map_err(PassError::from_error)?;
    let logits = linear(&mut patch, &exit.head, features).map_err(PassError::from_error)?;
    let softmax = Node::new("Softmax").with("axis", Attribute::Int(1));
    let probabilities = patch.node("exit_shares", softmax, &[logits]);
    let max = Node::new("ReduceMax").with("keepdims", Attribute::Int(0));
    let confidence = patch.node("exit_confidence", max, &[probabilities]);
    let threshold = Tensor::from_slice(&[], &[exit.threshold.confidence]).map_err(PassError::from_error)?;
    let threshold = patch.constant("exit_threshold", threshold);
    let taken = patch.node("exit_taken", Node::new("Greater"), &[confidence, threshold]);

    let classes = i64::try_from(exit.head.weight.nrows()).unwrap_or(i64::MAX);
    let mut declared = Declared::default();
    declared.ty = Some(Type::tensor(DataType::Float, Some(&[Dim::from(1), Dim::from(classes)])));
    let given = graph.fresh_name("exit_given");
    let early = early_branch(graph, &given, declared.clone()).map_err(PassError::from_error)?;
    let late = late_branch(graph, exit.tensor, scores.output, declared).map_err(PassError::from_error)?;
    let node = Node::new("If")
        .with("then_branch", Attribute::Graph(Box::new(early)))
        .with("else_branch", Attribute::Graph(Box::new(late)));
    let result = if scores.logits == scores.output { logits } else { probabilities };
    let new = patch.capturing(output.name(), node, &[taken], &[(&given, result)]);
    patch.replace(output, new);
    Ok(patch)
}

/// The features of the head.
fn pooled(patch: &mut Patch, exit: &Exit, opset: i64) -> Result<Ref, TensorError> {
    let x = exit.tensor.into();
    let vector = |axis: &[i64]| Tensor::from_slice(&[axis.len()], axis);
    Ok(match exit.pool {
        Pool::Positions => {
            let pooled = patch.node("exit_pooled", Node::new("GlobalAveragePool"), &[x]);
            patch.node("exit_features", Node::new("Flatten"), &[pooled])
        }
        Pool::FirstToken => {
            let first = patch.constant("first", Tensor::from_slice(&[], &[0_i64])?);
            patch.node("exit_features", Node::new("Gather").with("axis", Attribute::Int(1)), &[x, first])
        }
        Pool::Tokens if opset < 18 => {
            let mean = Node::new("ReduceMean").with("axes", Attribute::Ints(vec![1]));
            patch.node("exit_features", mean.with("keepdims", Attribute::Int(0)), &[x])
        }
        Pool::Tokens => {
            let axes = patch.constant("axes", vector(&[1])?);
            let mean = Node::new("ReduceMean").with("keepdims", Attribute::Int(0));
            patch.node("exit_features", mean, &[x, axes])
        }
        Pool::None => x,
    })
}

/// The head as a `Gemm`.
fn linear(patch: &mut Patch, head: &AffineMap, features: Ref) -> Result<Ref, TensorError> {
    let (k, c) = (head.weight.nrows(), head.weight.ncols());
    let w: Vec<f64> = (0..c * k).map(|i| head.weight[(i % k, i / k)]).collect();
    let w = patch.constant("exit_weight", Tensor::from_f64(DataType::Float, &[c, k], &w)?);
    let b = patch.constant("exit_bias", Tensor::from_f64(DataType::Float, &[k], &head.bias)?);
    Ok(patch.node("exit_scores", Node::new("Gemm"), &[features, w, b]))
}

/// The branch that returns the captured value `given`.
fn early_branch(graph: &Graph, given: &str, declared: Declared) -> Result<Graph, GraphError> {
    let mut early = graph.nested();
    early.name = Some("early".into());
    let from = early.find_or_capture(given);
    let to = early.add_value(Value::named(&graph.fresh_name("exit_early")))?;
    early.add_node(Node::new("Identity"), &[Some(from)], &[Some(to)])?;
    early.set_declared(to, Some(declared));
    early.add_output(to);
    Ok(early)
}

/// The branch that computes `output` from `cut`, which it captures. Constants without other uses are moved
/// inside.
fn late_branch(
    graph: &Graph,
    cut: ValueId,
    output: ValueId,
    declared: Declared,
) -> Result<Graph, GraphError> {
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

/// Sets a symbolic batch size to 1 wherever it is declared.
pub fn fix_batch_size(graph: &mut Graph) {
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
        for (axis, Axis { size, .. }) in shape.iter_mut().enumerate() {
            let named = matches!(size, AxisSize::Symbol(_)) && symbols.contains(size);
            let first = axis == 0 && ends.contains(&value) && !matches!(size, AxisSize::Fixed(n) if *n > 0);
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
