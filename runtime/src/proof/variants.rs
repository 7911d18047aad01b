//! Variants of a model that show how it rounds, and what it draws at random.

use crate::{ModelSource, Port, epsilon, samples::declared_kind};
use pare_graph::{
    Attribute, DataType, Graph, Model, Node, NodeId, NodeRef, Patch, Ref, Tensor, ValueId, ValueRef,
    onnx::{self, ReadOptions},
    ops::{AttributeKind, Trait},
};
use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

/// The model with every operand of an operator that rounds multiplied by a random `1 + δ`, `|δ| ≤ epsilons · ε`,
/// with the machine epsilon ε of its type and another δ for each element and run.
///
/// An operator that reads operands off by one epsilon computes what another summation order, or the composition
/// of two operators, may compute (backward error: Higham, Accuracy and Stability of Numerical Algorithms, 1.5;
/// random perturbation: Parker, Monte Carlo Arithmetic, 1997). Numbers that are computed from sizes stay as they are:
/// they are rounded to sizes again, which other operators take for granted. `None` if the model cannot be read or
/// rewritten.
pub(super) fn perturbed(model: &ModelSource, epsilons: f64) -> Option<ModelSource> {
    let mut model = read(model)?;
    model.infer().ok()?;
    Perturbation { epsilons, seed: 0 }.graph(&mut model.graph, &HashSet::new());
    write(&model)
}

/// The model in double precision: the closest that an engine comes to the function of real numbers. `None` if it
/// contains no numbers of single precision.
pub(super) fn in_double_precision(model: &ModelSource) -> Option<ModelSource> {
    let mut model = read(model)?;
    model.convert_numbers(DataType::Float, DataType::Double);
    model.infer().ok()?;
    write(&model)
}

/// A model with random operators, with a seed in each that has none; `None` without random operators.
///
/// The seed follows from the name of the operator's output, so that two models draw equal numbers.
pub(super) fn seeded(model: &ModelSource) -> Option<ModelSource> {
    let mut model = read(model)?;
    let mut found = seed_graph(&mut model.graph);
    for function in &mut model.functions {
        found |= seed_graph(&mut function.body);
    }
    if found { write(&model) } else { None }
}

/// The outputs as the model declares them.
pub(super) fn declared_outputs(model: &ModelSource) -> Vec<Port> {
    let Some(model) = read(model) else { return vec![] };
    let graph = &model.graph;
    let port = |&id: &ValueId| {
        let value = graph.value(id);
        let ty = value.declared.as_ref().and_then(|d| d.ty.as_ref());
        Port { name: value.name.clone(), kind: declared_kind(ty) }
    };
    graph.outputs().iter().map(port).collect()
}

fn read(model: &ModelSource) -> Option<Model> {
    match model {
        ModelSource::File(path) => onnx::read(path, &ReadOptions::default()).ok(),
        ModelSource::Bytes { bytes, folder } => onnx::read_bytes(bytes.clone(), folder.as_deref()).ok(),
    }
}

fn write(model: &Model) -> Option<ModelSource> {
    Some(ModelSource::bytes(onnx::to_bytes(model).ok()?))
}

struct Perturbation {
    epsilons: f64,
    /// The last seed in use.
    seed: u16,
}

impl Perturbation {
    /// Perturbs a graph, but not its sizes; `sizes` are the names of those of the graph around it.
    fn graph(&mut self, graph: &mut Graph, sizes: &HashSet<String>) {
        let (sizes, mut perturbed) = (size_values(graph, sizes), HashMap::new());
        for &id in graph.nodes().iter() {
            if graph.node(id).subgraphs().next().is_some() {
                graph.with_subgraphs(id, |bodies, outer| {
                    let names = sizes.iter().map(|&value| outer.value(value).name.clone()).collect();
                    bodies.iter_mut().for_each(|body| self.graph(body, &names));
                });
            }
            // Nor are the constants that a size is computed from.
            if graph.results(id).any(|value| sizes.contains(&value)) {
                continue;
            }
            let operands = operands(graph.at(id)).into_iter().filter(|(_, value)| !sizes.contains(value));
            for operand in operands {
                self.operand(graph, id, operand, &mut perturbed);
            }
        }
    }

    /// Perturbs one operand. Values of several nodes are perturbed once.
    fn operand(
        &mut self,
        graph: &mut Graph,
        node: NodeId,
        (slot, value): (usize, ValueId),
        perturbed: &mut HashMap<ValueId, ValueId>,
    ) {
        let mut patch = Patch::anchored(node);
        if let Some(&known) = perturbed.get(&value) {
            patch.set_input(node, slot, known);
        } else if let Some(new) = self.perturb(&mut patch, graph.value_ref(value)) {
            patch.set_input(node, slot, new);
        }
        // An operand that cannot be rewritten stays exact: the noise is then an underestimate.
        if graph.apply(patch).is_ok()
            && let Some(new) = graph.input(node, slot)
        {
            perturbed.insert(value, new);
        }
    }

    /// `v · (1 + δ)`. An infinite `v` stays infinite.
    fn perturb(&mut self, patch: &mut Patch, value: ValueRef<'_>) -> Option<Ref> {
        let dtype = value.dtype()?;
        let width = (self.epsilons * epsilon(dtype)) as f32;
        self.seed = self.seed.wrapping_add(1);
        let drawn = if dtype == DataType::Double { dtype } else { DataType::Float };
        let number = |dtype: DataType| i64::from(dtype.number());
        let uniform = Node::new("RandomUniformLike")
            .with("dtype", number(drawn))
            .with("low", -width)
            .with("high", width)
            .with("seed", f32::from(self.seed));
        let mut delta = patch.node("delta", uniform, &[value.into()]);
        if drawn != dtype {
            delta = patch.node("delta", Node::new("Cast").with("to", number(dtype)), &[delta]);
        }
        let one = patch.constant("one", Tensor::from_f64(dtype, &[], &[1.0]).ok()?);
        let factor = patch.node("factor", Node::new("Add"), &[delta, one]);
        Some(patch.node("perturbed", Node::new("Mul"), &[value.into(), factor]))
    }
}

/// The values that follow from the sizes of others and constants alone. `outer` are the names of those outside.
fn size_values(graph: &Graph, outer: &HashSet<String>) -> HashSet<ValueId> {
    let captured = graph.captures().into_iter().filter(|&id| outer.contains(&graph.value(id).name));
    let mut sizes: HashSet<_> = captured.collect();
    let mut constants: HashSet<_> = graph.initializers().into_iter().collect();
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        let of_sizes = graph.operands(id).any(|value| sizes.contains(&value));
        let follows = graph.operands(id).all(|value| sizes.contains(&value) || constants.contains(&value));
        let results = graph.results(id);
        match at.op() {
            "Shape" | "Size" => sizes.extend(results),
            // A size says how many elements these have, not which.
            "Range" | "ConstantOfShape" => {}
            _ if !follows || at.node().subgraphs().next().is_some() || at.has(Trait::Random) => {}
            _ if of_sizes => sizes.extend(results),
            _ => constants.extend(results),
        }
    }
    sizes
}

/// The floating-point inputs of an operator that rounds, without those that are sizes or exponents.
fn operands(at: NodeRef<'_>) -> Vec<(usize, ValueId)> {
    const EXACT: [Trait; 6] = [
        Trait::DataMovement,
        Trait::Idempotent,
        Trait::Involution,
        Trait::Comparison,
        Trait::Quantization,
        Trait::Random,
    ];
    // Operators that compute sizes or compare with thresholds, and those that pass values on.
    const SKIPPED: [&str; 9] = [
        "Cast",
        "CastLike",
        "Range",
        "If",
        "Loop",
        "Scan",
        "TreeEnsemble",
        "TreeEnsembleClassifier",
        "TreeEnsembleRegressor",
    ];
    // Operators whose further inputs are sizes, exponents or parameters of the algorithm.
    const FIRST_ONLY: [&str; 6] = ["Pow", "Resize", "Upsample", "OneHot", "NonMaxSuppression", "RoiAlign"];
    if EXACT.iter().any(|&of| at.has(of)) || SKIPPED.contains(&at.op()) {
        return vec![];
    }
    let last = if FIRST_ONLY.contains(&at.op()) { 1 } else { usize::MAX };
    let inputs = at.inputs().into_iter().enumerate().take(last);
    let is_float = |value: &ValueRef<'_>| value.dtype().is_some_and(|d| d.is_float() && d.bits() >= 16);
    inputs.filter_map(|(slot, value)| Some((slot, value.filter(is_float)?.id))).collect()
}

/// Adds seeds; returns true if there are random operators.
fn seed_graph(graph: &mut Graph) -> bool {
    let mut found = false;
    for &id in graph.nodes().iter() {
        if graph.node(id).subgraphs().next().is_some() {
            found |= graph.with_subgraphs(id, |bodies, _| {
                bodies.iter_mut().fold(false, |found, body| found | seed_graph(body))
            });
        }
        let at = graph.at(id);
        if !at.has(Trait::Random) || pare_graph::ops::is_deterministic(at) {
            continue;
        }
        found = true;
        if let Some(seed) = missing_seed(at) {
            let mut patch = Patch::at(at);
            patch.set_attribute(id, "seed", Some(seed));
            // Without a seed the outputs are found to be random.
            let _ = graph.apply(patch);
        }
    }
    found
}

/// The seed of a random operator that takes one and has none.
fn missing_seed(at: NodeRef<'_>) -> Option<Attribute> {
    let seed = at.schema()?.attribute("seed").filter(|_| at.attr("seed").is_none())?;
    let mut hasher = DefaultHasher::new();
    at.outputs().first().copied().flatten()?.name().hash(&mut hasher);
    let number = (hasher.finish() % 65_536) as u16;
    match seed.kind {
        AttributeKind::Float => Some(f32::from(number).into()),
        AttributeKind::Int => Some(i64::from(number).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text;

    /// The number of operands that are perturbed.
    fn perturbed_operands(source: &str) -> usize {
        let model = Model::of(text::parse_graph(source, 17).unwrap());
        let model = read(&perturbed(&write(&model).unwrap(), 1.0).unwrap()).unwrap();
        model.graph.nodes().iter().filter(|&&id| model.graph.at(id).op() == "RandomUniformLike").count()
    }

    #[test]
    fn numbers_of_sizes_stay_as_they_are() {
        let sizes =
            "s = Shape(x) f = Cast<to = 1>(s) h = Mul(f, half) d = Ceil(h) t = Add(d, d) i = Cast<to = 7>(t)";
        let source = format!(
            "g (float[N,4] x) => (y) <float half = {{0.5}}> {{ {sizes} r = Reshape(x, i) y = Exp(r) }}"
        );
        assert_eq!(perturbed_operands(&source), 1);
        // Positions are numbers like others.
        let range = "s = Size(x) n = Cast<to = 1>(s) p = Range(zero, n, one) y = Exp(p)";
        let source = format!("g (float[N] x) => (y) <float zero = {{0}}, float one = {{1}}> {{ {range} }}");
        assert_eq!(perturbed_operands(&source), 1);
    }
}
