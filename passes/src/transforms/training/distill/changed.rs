//! The weights that passes changed, and those that depend on a change.
//!
//! A value is the original's if it is an input of the same name, a constant of the same content, or the same output
//! of a node with the same operator and attributes whose inputs are the original's. All others are changed: those
//! that other weights or operators compute, and everything computed from them.

use crate::{
    analysis::flow::Flow,
    framework::{Context, PassError},
};
use pare_graph::{DataType, Graph, Model, NodeRef, ValueId};
use std::collections::{HashMap, HashSet};

/// The initializers of a student that passes changed, and those that depend on a change, by name. What `safe` makes
/// of the original is not a change.
pub fn changed_weights(
    original: &Model,
    student: &Model,
    cx: &Context<'_>,
) -> Result<HashSet<String>, PassError> {
    let (mut plain, mut safe) = (original.clone(), original.clone());
    cx.scratch().run("inline-functions,lift-constants", &mut plain)?;
    cx.scratch().run("safe,inline-functions,lift-constants", &mut safe)?;
    let mut known = Known::default();
    known.add(&plain.graph);
    known.add(&safe.graph);
    Ok(known.changed(&student.graph))
}

/// The content that determines a value.
#[derive(PartialEq, Eq, Hash)]
enum Key<'g> {
    Input(&'g str),
    Constant {
        dtype: DataType,
        shape: &'g [usize],
        bytes: &'g [u8],
    },
    /// The node is its operator and its attributes as text.
    Output {
        node: String,
        inputs: Vec<Option<usize>>,
        slot: usize,
    },
}

/// The values of originals, numbered.
#[derive(Default)]
struct Known<'g>(HashMap<Key<'g>, usize>);

impl<'g> Known<'g> {
    /// Adds the values of a graph.
    fn add(&mut self, graph: &'g Graph) {
        number(graph, |key| {
            let next = self.0.len();
            Some(*self.0.entry(key).or_insert(next))
        });
    }

    /// The initializers of a graph that nodes with changed outputs read, by name: also through nodes that depend on
    /// no input, such as those that dequantize weights.
    fn changed(&self, graph: &'g Graph) -> HashSet<String> {
        let numbers = number(graph, |key| self.0.get(&key).copied());
        let flow = Flow::of(graph);
        let is_changed = |node: NodeRef<'_>| graph.results(node.id).any(|v| !numbers.contains_key(&v));
        let nodes = graph.nodes();
        let changed = nodes.iter().map(|&node| graph.at(node)).filter(|&at| is_changed(at));
        let mut queue: Vec<_> = changed.flat_map(|at| graph.operands(at.id)).collect();
        let (mut seen, mut names) = (HashSet::new(), HashSet::new());
        while let Some(value) = queue.pop() {
            if !seen.insert(value) || flow.flows(value) {
                continue;
            }
            match graph.producer(value) {
                Some((node, _)) => queue.extend(graph.operands(node)),
                None => drop(names.insert(graph.value(value).name.clone())),
            }
        }
        names
    }
}

/// The number of each value to which `find` gives one.
fn number<'g>(graph: &'g Graph, mut find: impl FnMut(Key<'g>) -> Option<usize>) -> HashMap<ValueId, usize> {
    let mut numbers = HashMap::new();
    let mut set = |numbers: &mut HashMap<_, _>, value, key| {
        if let Some(number) = find(key) {
            numbers.insert(value, number);
        }
    };
    for value in graph.values() {
        let known = graph.value(value);
        if known.is_input() {
            set(&mut numbers, value, Key::Input(&known.name));
        } else if let Some(tensor) = known.tensor() {
            let (dtype, shape, bytes) = (tensor.dtype(), tensor.shape(), tensor.bytes());
            set(&mut numbers, value, Key::Constant { dtype, shape, bytes });
        }
    }
    for &node in &*graph.nodes() {
        let at = graph.at(node);
        // A body is not compared.
        if at.node().subgraphs().next().is_some() {
            continue;
        }
        let inputs: Option<Vec<_>> = graph
            .inputs_of(node)
            .into_iter()
            .map(|v| v.map_or(Some(None), |v| numbers.get(&v).copied().map(Some)))
            .collect();
        let Some(inputs) = inputs else { continue };
        let mut attributes: Vec<_> =
            at.node().attributes.iter().map(|(name, value)| format!("{name} = {value:?}")).collect();
        attributes.sort_unstable();
        let text = format!("{}::{} {}", at.node().domain(), at.op(), attributes.join(", "));
        for (slot, output) in graph.outputs_of(node).into_iter().enumerate() {
            if let Some(output) = output {
                set(&mut numbers, output, Key::Output { node: text.clone(), inputs: inputs.clone(), slot });
            }
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::model;

    /// The initializers that are changed, sorted.
    fn changed(original: &str, student: &str) -> Vec<String> {
        let (original, mut student) = (model(original), model(student));
        student.infer().unwrap();
        let mut known = Known::default();
        known.add(&original.graph);
        let mut names: Vec<_> = known.changed(&student.graph).into_iter().collect();
        names.sort_unstable();
        names
    }

    const ORIGINAL: &str = "g (float[1,2] x) => (float[1,2] y) <float[2,2] a = {1, 2, 3, 4},
        float[2,2] b = {5, 6, 7, 8}, float[2,2] c = {2, 1, 0, 1}, float[2,2] d = {1, 0, 0, 1}> {
        h = MatMul(x, a) r = Relu(h) s = MatMul(r, b) t = MatMul(x, c) u = Add(s, t) y = MatMul(u, d) }";

    #[test]
    fn weights_before_and_beside_a_change_are_the_originals() {
        assert_eq!(changed(ORIGINAL, ORIGINAL), [""; 0]);
        assert_eq!(changed(ORIGINAL, &ORIGINAL.replace("{5, 6", "{5, 5")), ["b", "d"]);
        assert_eq!(changed(ORIGINAL, &ORIGINAL.replace("{1, 2", "{1, 3")), ["a", "b", "d"]);
    }

    #[test]
    fn another_operator_is_a_change_and_another_name_is_none() {
        let without = ORIGINAL.replace("r = Relu(h) s = MatMul(r, b)", "s = MatMul(h, b)");
        assert_eq!(changed(ORIGINAL, &without), ["b", "d"]);
        let renamed = ORIGINAL.replace("] a =", "] other =").replace("(x, a)", "(x, other)");
        let renamed = renamed.replace("h = ", "q = ").replace("(h)", "(q)");
        assert_eq!(changed(ORIGINAL, &renamed), [""; 0]);
    }

    #[test]
    fn a_weight_behind_others_depends_on_the_change() {
        let quantized =
            "g (float[1,2] x) => (float[1,2] y) <float[2,2] a = {1, 2, 3, 4}, int8[2,2] q = {1, 2, 3, 4},
            float s = {0.5}> { h = MatMul(x, a) w = DequantizeLinear(q, s) y = MatMul(h, w) }";
        assert_eq!(
            changed(quantized, &quantized.replace("float[2,2] a = {1", "float[2,2] a = {2")),
            ["a", "q", "s"]
        );
        assert_eq!(changed(quantized, &quantized.replace("s = {0.5}", "s = {0.25}")), ["q", "s"]);
    }
}
