//! The differences between two models: structure, weights, interface.

use crate::{Error, Source};
use pare_graph::{Attribute, Constant, Graph, Model, NodeId, Tensor, ValueId};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// The differences between two models.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct ModelDiff {
    /// Properties of the files that differ: versions, operator sets, producer, metadata.
    pub properties: Vec<PropertyChange>,
    /// Inputs and outputs that differ.
    pub interface: Vec<PropertyChange>,
    /// The nodes.
    pub nodes: NodeDiff,
    /// The initializers.
    pub weights: WeightDiff,
}

/// A property that differs; `None` where a model does not have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PropertyChange {
    /// The property.
    pub name: String,
    /// Its value in the first model.
    pub before: Option<String>,
    /// Its value in the second model.
    pub after: Option<String>,
}

/// The nodes of two models.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct NodeDiff {
    /// Nodes that are equal, up to the names of values.
    pub equal: u64,
    /// Nodes of the second model only.
    pub added: Vec<String>,
    /// Nodes of the first model only.
    pub removed: Vec<String>,
    /// Nodes of both that differ.
    pub changed: Vec<NodeChange>,
    /// Differences of operator counts, by operator: second model minus first.
    pub operators: BTreeMap<String, i64>,
}

/// A node that differs.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct NodeChange {
    /// Operator and name in the first model.
    pub node: String,
    /// The differences, one sentence each.
    pub changes: Vec<String>,
}

/// The initializers of two models.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct WeightDiff {
    /// Initializers with equal elements.
    pub equal: u64,
    /// Initializers of the second model only: name and type.
    pub added: Vec<String>,
    /// Initializers of the first model only: name and type.
    pub removed: Vec<String>,
    /// Equal initializers with another name: the old and the new name.
    pub renamed: Vec<(String, String)>,
    /// Initializers of both that differ.
    pub changed: Vec<WeightChange>,
}

/// An initializer that differs.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WeightChange {
    /// Its name.
    pub name: String,
    /// Its type in the first model.
    pub before: String,
    /// Its type in the second model.
    pub after: String,
    /// The largest difference of an element, if the shapes agree.
    pub max_abs: Option<f64>,
    /// The largest difference, relative to the largest element of the first model.
    pub max_rel: Option<f64>,
    /// Elements that differ.
    pub differing: Option<u64>,
}

impl ModelDiff {
    /// Returns true if the models are equal.
    pub fn is_empty(&self) -> bool {
        let Self { properties, interface, nodes, weights } = self;
        properties.is_empty() && interface.is_empty() && nodes.is_empty() && weights.is_empty()
    }
}

impl NodeDiff {
    /// Returns true if the nodes are equal.
    pub fn is_empty(&self) -> bool {
        self.added.is_empty() && self.removed.is_empty() && self.changed.is_empty()
    }
}

impl WeightDiff {
    /// Returns true if the initializers are equal, also their names.
    pub fn is_empty(&self) -> bool {
        let Self { added, removed, renamed, changed, .. } = self;
        added.is_empty() && removed.is_empty() && renamed.is_empty() && changed.is_empty()
    }
}

/// Compares the structure and the weights of two models, without running them.
///
/// Nodes are matched by name, then by the names of their outputs, then by operator and inputs; initializers by
/// name, then by content. Subgraphs and functions are compared with those of the same place or name.
///
/// ```
/// use onnx_pare::diff;
/// let model = std::path::Path::new("../fixtures/digits-fold.onnx");
/// assert!(diff(model, model)?.is_empty());
/// # Ok::<(), onnx_pare::Error>(())
/// ```
///
/// # Errors
///
/// [`Error::Read`].
pub fn diff(before: impl Into<Source>, after: impl Into<Source>) -> Result<ModelDiff, Error> {
    let (a, b) = (before.into().load()?.model, after.into().load()?.model);
    let mut diff =
        ModelDiff { properties: properties(&a, &b), interface: interface(&a, &b), ..Default::default() };
    let (first, second) = (graphs(&a), graphs(&b));
    let places: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    for place in places {
        match (first.get(place), second.get(place)) {
            (Some(a), Some(b)) => GraphPair::new(place, a, b).compare(&mut diff),
            (Some(a), None) => diff.nodes.removed.extend(all_nodes(place, a)),
            (None, Some(b)) => diff.nodes.added.extend(all_nodes(place, b)),
            (None, None) => {}
        }
    }
    let count = |graphs: &BTreeMap<String, &Graph>| {
        let mut counts = BTreeMap::<String, i64>::new();
        for graph in graphs.values() {
            for &node in graph.nodes().iter() {
                *counts.entry(graph.node(node).op.clone()).or_default() += 1;
            }
        }
        counts
    };
    diff.nodes.operators = count(&second);
    for (op, n) in count(&first) {
        *diff.nodes.operators.entry(op).or_default() -= n;
    }
    diff.nodes.operators.retain(|_, n| *n != 0);
    Ok(diff)
}

/// The main graph, the bodies of functions, and all subgraphs, by place.
fn graphs(model: &Model) -> BTreeMap<String, &Graph> {
    fn add<'g>(place: String, graph: &'g Graph, to: &mut BTreeMap<String, &'g Graph>) {
        for &id in graph.nodes().iter() {
            for (name, attribute) in &graph.node(id).attributes {
                for (i, inner) in attribute.graphs().iter().enumerate() {
                    let index = if i == 0 { String::new() } else { format!("[{i}]") };
                    let node = graph.describe(id);
                    add(format!("{place}{node}, {name}{index}: "), inner, to);
                }
            }
        }
        to.insert(place, graph);
    }
    let mut all = BTreeMap::new();
    add(String::new(), &model.graph, &mut all);
    for function in &model.functions {
        add(format!("function `{}`: ", function.name), &function.body, &mut all);
    }
    all
}

fn all_nodes(place: &str, graph: &Graph) -> Vec<String> {
    graph.nodes().iter().map(|&n| format!("{place}{}", graph.describe(n))).collect()
}

/// The properties that differ.
fn changes(
    before: impl IntoIterator<Item = (String, String)>,
    after: impl IntoIterator<Item = (String, String)>,
) -> Vec<PropertyChange> {
    let (before, mut after): (Vec<_>, Vec<_>) = (before.into_iter().collect(), after.into_iter().collect());
    let mut changes = vec![];
    for (name, old) in before {
        let new = after.iter().position(|(n, _)| *n == name).map(|i| after.remove(i).1);
        if new.as_ref() != Some(&old) {
            changes.push(PropertyChange { name, before: Some(old), after: new });
        }
    }
    changes.extend(after.into_iter().map(|(name, new)| PropertyChange {
        name,
        before: None,
        after: Some(new),
    }));
    changes
}

fn properties(a: &Model, b: &Model) -> Vec<PropertyChange> {
    let of = |model: &Model| {
        let text = |name: &str, value: Option<String>| value.map(|v| (name.to_owned(), v));
        let mut all: Vec<_> = [
            text("IR version", model.ir_version.map(|v| v.to_string())),
            text("producer", model.producer_name.clone()),
            text("producer version", model.producer_version.clone()),
            text("domain", model.domain.clone()),
            text("model version", model.model_version.map(|v| v.to_string())),
            text("doc string", model.doc.clone()),
        ]
        .into_iter()
        .flatten()
        .filter(|(_, value)| !value.is_empty())
        .collect();
        let domain = |d: &str| if d.is_empty() { "ai.onnx".to_owned() } else { d.to_owned() };
        all.extend(
            model.opsets.iter().map(|(d, v)| (format!("operator set of `{}`", domain(d)), v.to_string())),
        );
        all.extend(model.metadata.iter().map(|(key, value)| {
            (format!("metadata `{}`", key.as_deref().unwrap_or("")), value.clone().unwrap_or_default())
        }));
        all
    };
    changes(of(a), of(b))
}

fn interface(a: &Model, b: &Model) -> Vec<PropertyChange> {
    let of = |graph: &Graph, role: &str, ids: &[ValueId]| -> Vec<(String, String)> {
        let entry = |&v: &ValueId| {
            let value = graph.value(v);
            let ty = value.declared.as_ref().and_then(|d| d.ty.as_ref());
            (format!("{role} `{}`", value.name), ty.map_or("untyped".into(), |ty| ty.fact().to_string()))
        };
        ids.iter().map(entry).collect()
    };
    let mut all = vec![];
    for role in ["input", "output"] {
        let ids =
            |graph: &Graph| if role == "input" { graph.inputs().to_vec() } else { graph.outputs().to_vec() };
        let (first, second) = (of(&a.graph, role, &ids(&a.graph)), of(&b.graph, role, &ids(&b.graph)));
        let order = |ports: &[(String, String)]| ports.iter().map(|p| p.0.clone()).collect::<Vec<_>>();
        let same_set = order(&first).iter().collect::<BTreeSet<_>>() == order(&second).iter().collect();
        if same_set && order(&first) != order(&second) {
            let list = |ports: &[(String, String)]| Some(order(ports).join(", "));
            all.push(PropertyChange {
                name: format!("order of {role}s"),
                before: list(&first),
                after: list(&second),
            });
        }
        all.extend(changes(first, second));
    }
    all
}

/// Two graphs at the same place.
struct GraphPair<'g> {
    place: &'g str,
    a: &'g Graph,
    b: &'g Graph,
    /// Names of values of `b`, by the names of equal values of `a`.
    names: HashMap<String, String>,
}

impl<'g> GraphPair<'g> {
    fn new(place: &'g str, a: &'g Graph, b: &'g Graph) -> Self {
        Self { place, a, b, names: HashMap::new() }
    }

    fn compare(&mut self, diff: &mut ModelDiff) {
        self.compare_weights(&mut diff.weights);
        let matched = self.match_nodes();
        let of_b: HashSet<_> = matched.values().copied().collect();
        let place = self.place;
        for &node in self.a.nodes().iter() {
            match matched.get(&node) {
                Some(&other) => {
                    let changes = self.node_changes(node, other);
                    if changes.is_empty() {
                        diff.nodes.equal += 1;
                    } else {
                        let node = format!("{place}{}", self.a.describe(node));
                        diff.nodes.changed.push(NodeChange { node, changes });
                    }
                }
                None => diff.nodes.removed.push(format!("{place}{}", self.a.describe(node))),
            }
        }
        let added = self
            .b
            .nodes()
            .iter()
            .filter(|n| !of_b.contains(n))
            .map(|&n| self.b.describe(n))
            .collect::<Vec<_>>();
        diff.nodes.added.extend(added.into_iter().map(|node| format!("{place}{node}")));
    }

    /// Matches nodes by name, by output names, then by operator and inputs.
    fn match_nodes(&mut self) -> HashMap<NodeId, NodeId> {
        let (mut matched, mut taken) = (HashMap::new(), HashSet::new());
        let keys: [fn(&Graph, NodeId) -> String; 2] = [named, by_outputs];
        for key in keys {
            let mut free: HashMap<String, Vec<NodeId>> = HashMap::new();
            for &node in self.b.nodes().iter().filter(|n| !taken.contains(*n)) {
                free.entry(key(self.b, node)).or_default().push(node);
            }
            let open: Vec<_> = self.a.nodes().iter().copied().filter(|n| !matched.contains_key(n)).collect();
            for node in open {
                let name = key(self.a, node);
                // A name that several nodes have identifies none.
                if let Some([other]) = free.get(&name).map(Vec::as_slice)
                    && !name.is_empty()
                    && self.a.node(node).op == self.b.node(*other).op
                    && taken.insert(*other)
                {
                    matched.insert(node, *other);
                }
            }
        }
        // In topological order, so that the inputs of a node are matched before it.
        let mut free: HashMap<String, Vec<NodeId>> = HashMap::new();
        for &node in self.b.nodes().iter().rev().filter(|n| !taken.contains(*n)) {
            let inputs = input_names(self.b, node);
            free.entry(structure(self.b, node, &inputs)).or_default().push(node);
        }
        for &node in self.a.nodes().iter() {
            let by_structure = || free.get_mut(&structure(self.a, node, &self.mapped(node)))?.pop();
            if let Some(other) = matched.get(&node).copied().or_else(by_structure) {
                matched.insert(node, other);
                let pairs = self.a.outputs_of(node).into_iter().zip(self.b.outputs_of(other));
                for (old, new) in pairs {
                    if let (Some(old), Some(new)) = (old, new) {
                        self.names.insert(self.a.value(old).name.clone(), self.b.value(new).name.clone());
                    }
                }
            }
        }
        matched
    }

    /// The names in the second graph of the inputs of a node of the first.
    fn mapped(&self, node: NodeId) -> Vec<String> {
        let name = |name: String| self.names.get(&name).cloned().unwrap_or(name);
        input_names(self.a, node).into_iter().map(name).collect()
    }

    fn node_changes(&self, node: NodeId, other: NodeId) -> Vec<String> {
        let (a, b) = (self.a.node(node), self.b.node(other));
        let mut changes = vec![];
        if a.domain() != b.domain() {
            changes.push(format!("the domain is `{}` instead of `{}`", b.domain(), a.domain()));
        }
        let (before, after) = (self.mapped(node), input_names(self.b, other));
        let original = input_names(self.a, node);
        for slot in 0..before.len().max(after.len()) {
            let show = |names: &[String]| {
                names.get(slot).filter(|n| !n.is_empty()).map_or("nothing".into(), |n| format!("`{n}`"))
            };
            if before.get(slot).map_or("", |n| n) != after.get(slot).map_or("", |n| n) {
                changes.push(format!("input {slot} is {} instead of {}", show(&after), show(&original)));
            }
        }
        let names: BTreeSet<&String> = a.attributes.keys().chain(b.attributes.keys()).collect();
        for name in names {
            let (old, new) = (a.attributes.get(name), b.attributes.get(name));
            match (old, new) {
                (Some(old), Some(new)) if same(old, new) => {}
                (Some(old), Some(new)) => {
                    changes.push(format!("`{name}` is {} instead of {}", show(new), show(old)));
                }
                (Some(old), None) => changes.push(format!("`{name}` = {} was removed", show(old))),
                (None, Some(new)) => changes.push(format!("`{name}` = {} was added", show(new))),
                (None, None) => {}
            }
        }
        changes
    }

    /// Compares the initializers, and maps the names of renamed ones.
    fn compare_weights(&mut self, diff: &mut WeightDiff) {
        let (mut removed, mut kept) = (vec![], HashSet::new());
        for id in self.a.initializers() {
            let name = &self.a.value(id).name;
            let other = self.b.find(name).filter(|&v| self.b.value(v).data.is_some());
            match (&self.a.value(id).data, other.and_then(|v| self.b.value(v).data.as_ref())) {
                (Some(old), Some(new)) => {
                    kept.insert(name.clone());
                    match weight_change(format!("{}{name}", self.place), old, new) {
                        Some(change) => diff.changed.push(change),
                        None => diff.equal += 1,
                    }
                }
                (Some(old), None) => removed.push((name.clone(), old)),
                _ => {}
            }
        }
        let mut added: Vec<(String, &Constant)> = vec![];
        for id in self.b.initializers() {
            let value = self.b.value(id);
            if let Some(data) = value.data.as_ref().filter(|_| !kept.contains(&value.name)) {
                added.push((value.name.clone(), data));
            }
        }
        for (name, old) in removed {
            let Some(i) = added.iter().position(|(_, new)| *new == old) else {
                diff.removed.push(format!("{}{name}: {}", self.place, ty(old)));
                continue;
            };
            let (new, _) = added.remove(i);
            diff.renamed.push((format!("{}{name}", self.place), format!("{}{new}", self.place)));
            self.names.insert(name, new);
        }
        diff.added.extend(added.into_iter().map(|(name, new)| format!("{}{name}: {}", self.place, ty(new))));
    }
}

fn named(graph: &Graph, node: NodeId) -> String {
    graph.node(node).name.clone().unwrap_or_default()
}

fn by_outputs(graph: &Graph, node: NodeId) -> String {
    let names = graph.outputs_of(node).into_iter().map(|v| v.map_or("", |v| graph.value(v).name.as_str()));
    names.collect::<Vec<_>>().join("\n")
}

fn input_names(graph: &Graph, node: NodeId) -> Vec<String> {
    graph
        .inputs_of(node)
        .into_iter()
        .map(|v| v.map_or_else(String::new, |v| graph.value(v).name.clone()))
        .collect()
}

/// Operator, attributes and inputs as one key.
fn structure(graph: &Graph, node: NodeId, inputs: &[String]) -> String {
    let of = graph.node(node);
    let mut attributes: Vec<_> =
        of.attributes.iter().map(|(name, value)| format!("{name}={}", show(value))).collect();
    attributes.sort();
    format!("{}\n{}\n{}\n{}", of.domain(), of.op, attributes.join("\n"), inputs.join("\n"))
}

/// Attributes are equal; subgraphs are compared as graphs of their own.
fn same(a: &Attribute, b: &Attribute) -> bool {
    use Attribute as A;
    match (a, b) {
        (A::Graph(_), A::Graph(_)) | (A::Undefined, A::Undefined) => true,
        (A::Graphs(a), A::Graphs(b)) => a.len() == b.len(),
        (A::Float(a), A::Float(b)) => a.to_bits() == b.to_bits(),
        (A::Floats(a), A::Floats(b)) => a.iter().map(|v| v.to_bits()).eq(b.iter().map(|v| v.to_bits())),
        (A::Int(a), A::Int(b)) => a == b,
        (A::Ints(a), A::Ints(b)) => a == b,
        (A::String(a), A::String(b)) => a == b,
        (A::Strings(a), A::Strings(b)) => a == b,
        (A::Tensor(a), A::Tensor(b)) => a == b,
        (A::Tensors(a), A::Tensors(b)) => a == b,
        (A::SparseTensor(a), A::SparseTensor(b)) => a == b,
        (A::SparseTensors(a), A::SparseTensors(b)) => a == b,
        (A::Type(a), A::Type(b)) => a == b,
        (A::Types(a), A::Types(b)) => a == b,
        (A::Reference { name: a, kind: x }, A::Reference { name: b, kind: y }) => (a, x) == (b, y),
        _ => false,
    }
}

/// An attribute for people; long ones are abbreviated.
fn show(attribute: &Attribute) -> String {
    const LONGEST: usize = 60;
    let text = match attribute {
        Attribute::Float(v) => v.to_string(),
        Attribute::Int(v) => v.to_string(),
        Attribute::String(v) => format!("`{}`", String::from_utf8_lossy(v)),
        Attribute::Floats(v) => format!("{v:?}"),
        Attribute::Ints(v) => format!("{v:?}"),
        Attribute::Strings(v) => {
            format!("{:?}", v.iter().map(|s| String::from_utf8_lossy(s)).collect::<Vec<_>>())
        }
        Attribute::Tensor(v) => match v.to_f64().filter(|v| v.len() <= 8) {
            Some(values) => format!("{} {values:?}", tensor_type(v)),
            None => tensor_type(v),
        },
        Attribute::Graph(_) | Attribute::Graphs(_) => "a graph".into(),
        Attribute::Reference { name, .. } => format!("@{name}"),
        _ => "a value".into(),
    };
    if text.chars().count() > LONGEST {
        return text.chars().take(LONGEST).chain("…".chars()).collect();
    }
    text
}

fn tensor_type(tensor: &Tensor) -> String {
    let sizes: Vec<_> = tensor.shape().iter().map(ToString::to_string).collect();
    format!("{}[{}]", tensor.dtype(), sizes.join(","))
}

fn ty(constant: &Constant) -> String {
    match constant {
        Constant::Dense(tensor) => tensor_type(tensor),
        Constant::Sparse(sparse) => format!("sparse {}{:?}", sparse.values.dtype(), sparse.dims),
    }
}

fn weight_change(name: String, old: &Constant, new: &Constant) -> Option<WeightChange> {
    if old == new {
        return None;
    }
    let mut change =
        WeightChange { name, before: ty(old), after: ty(new), max_abs: None, max_rel: None, differing: None };
    if let (Constant::Dense(a), Constant::Dense(b)) = (old, new)
        && a.shape() == b.shape()
        && let (Some(x), Some(y)) = (a.to_f64(), b.to_f64())
    {
        let difference = |(x, y): (&f64, &f64)| if x == y { 0.0 } else { (x - y).abs() };
        let max_abs = x
            .iter()
            .zip(&y)
            .map(difference)
            .fold(0.0, |m: f64, d| if d.is_nan() { f64::INFINITY } else { m.max(d) });
        let largest = x.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
        change.max_abs = Some(max_abs);
        change.max_rel = (largest > 0.0).then_some(max_abs / largest);
        change.differing = Some(x.iter().zip(&y).filter(|(x, y)| x != y).count() as u64);
    }
    Some(change)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text::parse_graph;

    const BEFORE: &str =
        "g (float[N,2] x) => (float[N,2] y) <float[2] w = {1, 2}, float[2] b = {0, 1}, float[2] c = {5, 6}> {
        m = Mul(x, w) a = Add(m, b) r = Relu(a) l = LeakyRelu<alpha = 0.1>(r) y = Add(l, c) }";

    fn of(before: &str, after: &str) -> ModelDiff {
        let model = |text: &str| Model::of(parse_graph(text, 18).unwrap());
        diff(model(before), model(after)).unwrap()
    }

    #[test]
    fn equal_models_do_not_differ() {
        let same = of(BEFORE, BEFORE);
        assert!(same.is_empty());
        assert_eq!((same.nodes.equal, same.weights.equal), (5, 3));
    }

    #[test]
    fn names_of_values_do_not_matter_for_nodes() {
        let renamed = BEFORE
            .replace("m = ", "m2 = ")
            .replace("(m,", "(m2,")
            .replace("float[2] b", "float[2] bias")
            .replace(", b)", ", bias)");
        let diff = of(BEFORE, &renamed);
        assert!(diff.nodes.is_empty(), "{:?}", diff.nodes);
        assert_eq!(diff.weights.renamed, [("b".to_owned(), "bias".to_owned())]);
    }

    #[test]
    fn lists_nodes_weights_and_types() {
        let after = "g (float[4,2] x) => (float[4,2] y) <float[2] w = {1, 2.5}, float[1,2] b = {0, 1}, float[2] d = {7, 8}> {
            m = Mul(x, w) a = Add(m, b) t = Tanh(a) l = LeakyRelu<alpha = 0.2>(t) y = Add(l, d) }";
        let diff = of(BEFORE, after);
        let texts = |changes: &[PropertyChange]| {
            changes.iter().map(|c| format!("{}: {:?} {:?}", c.name, c.before, c.after)).collect::<Vec<_>>()
        };
        assert_eq!(
            texts(&diff.interface),
            [
                "input `x`: Some(\"float[N,2]\") Some(\"float[4,2]\")",
                "output `y`: Some(\"float[N,2]\") Some(\"float[4,2]\")"
            ]
        );
        assert_eq!(diff.nodes.removed, ["Relu producing `r`"]);
        assert_eq!(diff.nodes.added, ["Tanh producing `t`"]);
        assert_eq!(diff.nodes.operators, [("Relu".to_owned(), -1), ("Tanh".to_owned(), 1)].into());
        let changed: Vec<_> =
            diff.nodes.changed.iter().map(|c| format!("{}: {}", c.node, c.changes.join("; "))).collect();
        assert_eq!(
            changed,
            [
                "LeakyRelu producing `l`: input 0 is `t` instead of `r`; `alpha` is 0.2 instead of 0.1",
                "Add producing `y`: input 1 is `d` instead of `c`"
            ]
        );
        let weights: Vec<_> = diff
            .weights
            .changed
            .iter()
            .map(|w| (w.name.as_str(), w.before.as_str(), w.after.as_str(), w.max_abs, w.differing))
            .collect();
        assert_eq!(
            weights,
            [("w", "float[2]", "float[2]", Some(0.5), Some(1)), ("b", "float[2]", "float[1,2]", None, None)]
        );
        assert_eq!(diff.weights.changed[0].max_rel, Some(0.25));
        assert_eq!(
            (diff.weights.removed, diff.weights.added),
            (vec!["c: float[2]".to_owned()], vec!["d: float[2]".to_owned()])
        );
    }

    #[test]
    fn compares_subgraphs() {
        let branches = |op: &str| {
            format!(
                "g (bool c, float[2] x) => (float[2] y) {{ y = If(c) <then_branch = t () => (float[2] p) {{ p = {op}(x) }}, else_branch = e () => (float[2] q) {{ q = Exp(x) }}> }}"
            )
        };
        let diff = of(&branches("Abs"), &branches("Neg"));
        assert_eq!(diff.nodes.removed, ["If producing `y`, then_branch: Abs producing `p`"]);
        assert_eq!(diff.nodes.added, ["If producing `y`, then_branch: Neg producing `p`"]);
        assert_eq!(diff.nodes.equal, 2);
    }
}
