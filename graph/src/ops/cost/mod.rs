//! Cost of a graph: parameters, bytes, multiply-accumulates, memory for activations.
//!
//! A multiply-accumulate (MAC) is a product of two values that is added to a sum. Convolutions, matrix
//! products, recurrences and attention are counted; biases, activations, normalization, pooling, resizing and
//! softmax are not. Quantized operators count like their floating-point counterparts.

mod macs;
#[cfg(test)]
mod tests;

use crate::{
    Attribute, Constant, DataType, Dim, Fact, Graph, Model, Node, NodeId, NodeRef, Tensor, UnknownSize,
    ValueId, ValueRef, functions::Functions,
};
use indexmap::IndexMap;
use std::collections::HashMap;

/// Values of the symbolic and unnamed dimensions of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bindings {
    /// Sizes by symbol.
    pub sizes: HashMap<String, i64>,
    /// Values of sizes without a name, such as those of an input `float[?,3,?,?]`.
    pub unnamed: HashMap<UnknownSize, i64>,
    /// Value of every other unknown size; `None` keeps it unknown.
    pub default: Option<i64>,
}

impl Bindings {
    /// The sizes that the dimensions of a graph's inputs have in tensors of these names and shapes; 1 for all others.
    pub fn of_inputs<'s>(graph: &Graph, inputs: impl IntoIterator<Item = (&'s str, &'s [usize])>) -> Self {
        let mut bindings = Self::default();
        for (name, sizes) in inputs {
            let Some(id) = graph.find(name) else { continue };
            for (dim, &size) in graph.value(id).fact.shape().unwrap_or_default().iter().zip(sizes) {
                let Ok(size) = i64::try_from(size) else { continue };
                if let Some(symbol) = dim.as_symbol() {
                    bindings.sizes.insert(symbol.to_owned(), size);
                } else if let Some(unknown) = dim.as_unknown() {
                    bindings.unnamed.insert(unknown, size);
                }
            }
        }
        bindings
    }
}

/// Sets every unknown size to 1: one sample, one step.
impl Default for Bindings {
    fn default() -> Self {
        Self { sizes: HashMap::new(), unnamed: HashMap::new(), default: Some(1) }
    }
}

/// Cost of one run of a graph, with its subgraphs.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct Cost {
    /// Elements of constants, except for 64-bit integers, booleans and strings, which are shapes, indices and
    /// masks.
    pub params: u64,
    /// Bytes of all constants (initializers, and tensors of `Constant` nodes).
    pub bytes: u64,
    /// Multiply-accumulates. An `If` counts its most expensive branch, a `Scan` every iteration of its body.
    pub macs: u64,
    /// The largest number of bytes of activations that are live at once when nodes run sequentially in file
    /// order. A value is live from its producer (an input: from the start) to its last use (an output: to the
    /// end). Buffers are not shared, and constants are not counted.
    pub activation_peak: u64,
    /// Bodies of loops that are counted once, since the trip count is unknown.
    pub loops_counted_once: usize,
    /// Nodes whose multiply-accumulates are unknown and not counted.
    pub uncounted: usize,
    /// Activations whose size is unknown and not counted.
    pub unsized_values: usize,
    /// Activations whose size is data-dependent, such as the number of detections, and counted with the
    /// default.
    pub guessed_values: usize,
    /// Costs of the nodes, in file order.
    pub nodes: Vec<NodeCost>,
}

/// Cost of a node.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct NodeCost {
    /// The node.
    pub id: NodeId,
    /// Elements of the constants among its inputs, which other nodes may read as well.
    pub params: u64,
    /// Multiply-accumulates, with those of its subgraphs; `None` if they are unknown.
    pub macs: Option<u64>,
    /// Bytes of its outputs; `None` if they are unknown.
    pub output_bytes: Option<u64>,
    /// Costs of its subgraphs, by attribute name.
    pub subgraphs: Vec<(String, Cost)>,
}

impl Bindings {
    /// The value of an expression; `None` if it is unknown or negative.
    pub fn size(&self, dim: &Dim) -> Option<u64> {
        let size = |symbol: &str| self.sizes.get(symbol).copied().or(self.default);
        let unnamed = |unknown| self.unnamed.get(&unknown).copied().or(self.default);
        u64::try_from(dim.eval_with(&size, &unnamed)?).ok()
    }

    /// The sizes of a shape.
    fn shape(&self, fact: &Fact) -> Option<Vec<u64>> {
        fact.shape()?.iter().map(|dim| self.size(dim)).collect()
    }

    /// Bytes of a tensor; 0 for strings.
    fn bytes(&self, fact: &Fact) -> Option<u64> {
        let count = product(self.shape(fact)?)?;
        Some(count.checked_mul(u64::from(fact.dtype()?.bits()))?.div_ceil(8))
    }
}

/// The product of the factors; `None` on overflow.
fn product(factors: impl IntoIterator<Item = u64>) -> Option<u64> {
    factors.into_iter().try_fold(1_u64, u64::checked_mul)
}

impl Graph {
    /// The cost of the graph at these sizes. Calls of functions are not counted.
    pub fn cost(&self, sizes: &Bindings) -> Cost {
        Meter::new(sizes, &Functions::default()).graph(self)
    }
}

impl Model {
    /// The cost of the main graph at these sizes, with the functions it calls. Constants in functions count
    /// once.
    pub fn cost(&self, sizes: &Bindings) -> Cost {
        // The cost of recursive functions is unknown.
        let functions = Functions::of(self).unwrap_or_default();
        let mut meter = Meter::new(sizes, &functions);
        let mut cost = meter.graph(&self.graph);
        for function in &self.functions {
            let body = meter.graph(&function.body);
            cost.params += body.params;
            cost.bytes += body.bytes;
        }
        cost
    }
}

/// The largest depth of nested calls that are counted.
const MAX_DEPTH: usize = 100;
/// The number of different calls of a function that are counted by themselves; further ones cost as much as
/// the facts of all calls imply.
const MAX_CALLS: usize = 32;

/// Traversal of graphs that caches the costs of functions.
struct Meter<'m> {
    sizes: &'m Bindings,
    functions: &'m Functions<'m>,
    calls: HashMap<usize, Vec<Call>>,
    depth: usize,
}

/// A call of a function and its cost.
struct Call {
    inputs: Vec<Fact>,
    attributes: IndexMap<String, Attribute>,
    cost: Cost,
}

impl<'m> Meter<'m> {
    fn new(sizes: &'m Bindings, functions: &'m Functions<'m>) -> Self {
        Self { sizes, functions, calls: HashMap::new(), depth: 0 }
    }

    fn graph(&mut self, graph: &Graph) -> Cost {
        let mut cost = Cost::default();
        let constants = graph.initializers().into_iter().filter_map(|v| graph.value(v).data.as_ref());
        constants.for_each(|data| cost.add_constant(data));
        let mut live = Liveness::new(graph, self.sizes);
        for &id in graph.nodes().iter() {
            let (node, inside) = self.node(graph.at(id));
            cost.add_node(graph.node(id), &node);
            live.run(id, inside);
            cost.nodes.push(node);
        }
        cost.activation_peak = live.peak;
        cost.unsized_values += live.unknown;
        cost.guessed_values += live.guessed;
        cost
    }

    /// The cost of a node, and the peak of activation bytes inside it.
    fn node(&mut self, at: NodeRef<'_>) -> (NodeCost, u64) {
        let mut subgraphs = vec![];
        for (name, attribute) in &at.node().attributes {
            subgraphs.extend(attribute.graphs().iter().map(|graph| (name.clone(), self.graph(graph))));
        }
        let tensors = at.inputs().into_iter().flatten().filter_map(|input| input.value().tensor());
        let params = tensors.filter(|t| is_parameter(t.dtype())).map(|t| t.len() as u64).sum();
        let outputs = at.outputs().into_iter().flatten();
        let output_bytes = outputs.map(|o| self.sizes.bytes(&o.value().fact)).sum();
        // One branch runs: the most expensive and the largest one are upper bounds.
        let mut inside = subgraphs.iter().map(|(_, c)| c.activation_peak).max().unwrap_or(0);
        let macs = match subgraphs.iter().map(|(_, cost)| cost.macs).max() {
            Some(body) if at.is("Scan") => {
                macs::scan_length(at, self.sizes).and_then(|n| n.checked_mul(body))
            }
            Some(body) => Some(body),
            None => match self.call(at) {
                Some(body) => {
                    inside = body.activation_peak;
                    (body.uncounted == 0).then_some(body.macs)
                }
                None => macs::of(at, self.sizes),
            },
        };
        (NodeCost { id: at.id, params, macs, output_bytes, subgraphs }, inside)
    }

    /// The cost of the function that a node calls, for the facts and attributes of the call.
    fn call(&mut self, at: NodeRef<'_>) -> Option<&Cost> {
        let index = self.functions.index(at).filter(|_| self.depth < MAX_DEPTH)?;
        let known = self.calls.get(&index).map_or(&[][..], Vec::as_slice);
        let (inputs, attributes) = if known.len() < MAX_CALLS {
            let fact =
                |input: Option<ValueRef<'_>>| input.map(|v| v.value().fact.clone()).unwrap_or_default();
            (at.inputs().into_iter().map(fact).collect(), at.node().attributes.clone())
        } else {
            (vec![], IndexMap::new())
        };
        let is_same = |call: &Call| call.inputs == inputs && call.attributes == attributes;
        let place = if let Some(place) = known.iter().position(is_same) {
            place
        } else {
            let function = self.functions.get(index);
            let body = function.called(&inputs, &attributes, self.functions.all());
            self.depth += 1;
            let cost = self.graph(&body);
            self.depth -= 1;
            let calls = self.calls.entry(index).or_default();
            calls.push(Call { inputs, attributes, cost });
            calls.len() - 1
        };
        self.calls.get(&index)?.get(place).map(|call| &call.cost)
    }
}

/// Returns true if elements of this type count as parameters rather than as sizes, indices or masks.
pub fn is_parameter(dtype: DataType) -> bool {
    !matches!(dtype, DataType::Int64 | DataType::Bool | DataType::String)
}

impl Cost {
    fn add_constant(&mut self, data: &Constant) {
        match data {
            Constant::Dense(tensor) => self.add_tensor(tensor),
            Constant::Sparse(sparse) => {
                self.add_tensor(&sparse.values);
                self.add_tensor(&sparse.indices);
            }
        }
    }

    fn add_tensor(&mut self, tensor: &Tensor) {
        self.bytes += tensor.size_in_bytes() as u64;
        self.params += if is_parameter(tensor.dtype()) { tensor.len() as u64 } else { 0 };
    }

    fn add_node(&mut self, node: &Node, cost: &NodeCost) {
        if let Some(Attribute::Tensor(tensor)) = node.attributes.get("value").filter(|_| node.is("Constant"))
        {
            self.add_tensor(tensor);
        }
        match cost.macs {
            Some(macs) => self.macs = self.macs.saturating_add(macs),
            None => self.uncounted += 1,
        }
        self.loops_counted_once += usize::from(node.is("Loop"));
        for (_, inner) in &cost.subgraphs {
            self.params += inner.params;
            self.bytes += inner.bytes;
            self.loops_counted_once += inner.loops_counted_once;
            self.uncounted += inner.uncounted;
            self.unsized_values += inner.unsized_values;
            self.guessed_values += inner.guessed_values;
        }
    }
}

/// The live activations during sequential execution.
struct Liveness<'g> {
    graph: &'g Graph,
    sizes: &'g Bindings,
    /// Remaining uses of each live value.
    uses: HashMap<ValueId, usize>,
    now: u64,
    peak: u64,
    unknown: usize,
    guessed: usize,
}

impl<'g> Liveness<'g> {
    fn new(graph: &'g Graph, sizes: &'g Bindings) -> Self {
        let mut live = Self { graph, sizes, uses: HashMap::new(), now: 0, peak: 0, unknown: 0, guessed: 0 };
        graph.inputs().iter().filter(|&&v| graph.value(v).data.is_none()).for_each(|&v| live.start(v));
        live.peak = live.now;
        live
    }

    fn start(&mut self, value: ValueId) {
        let fact = &self.graph.value(value).fact;
        match self.sizes.bytes(fact) {
            Some(bytes) => {
                let unnamed = |unknown| self.sizes.unnamed.get(&unknown).copied();
                let guessed = |dim: &Dim| dim.eval_with(&|_| Some(1), &unnamed).is_none();
                self.guessed += usize::from(fact.shape().is_some_and(|dims| dims.iter().any(guessed)));
                self.now = self.now.saturating_add(bytes);
            }
            None => self.unknown += 1,
        }
        self.uses.insert(value, self.graph.use_count(value));
    }

    /// Executes a node, which needs `inside` bytes besides its outputs, and frees the inputs that it uses
    /// last.
    fn run(&mut self, node: NodeId, inside: u64) {
        let is_constant = self.graph.node(node).is("Constant");
        let outputs: Vec<_> = self.graph.outputs_of(node).into_iter().flatten().collect();
        if !is_constant {
            outputs.iter().for_each(|&v| self.start(v));
        }
        self.peak = self.peak.max(self.now.saturating_add(inside));
        let used = self.graph.inputs_of(node).into_iter().flatten().chain(self.graph.captured_by(node));
        for value in used {
            let Some(remaining) = self.uses.get_mut(&value) else { continue };
            *remaining = remaining.saturating_sub(1);
            if *remaining == 0 {
                self.end(value);
            }
        }
        // Unused outputs are freed immediately.
        let unused: Vec<_> = outputs.into_iter().filter(|v| self.uses.get(v) == Some(&0)).collect();
        unused.into_iter().for_each(|v| self.end(v));
    }

    fn end(&mut self, value: ValueId) {
        self.uses.remove(&value);
        let bytes = self.sizes.bytes(&self.graph.value(value).fact);
        self.now = self.now.saturating_sub(bytes.unwrap_or(0));
    }
}
