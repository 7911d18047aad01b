//! The nodes that can change their type, and the types of all values for a choice of nodes.

use super::{
    format::{Format, Misfit},
    kernels,
};
use crate::framework::{Context, glob::matches};
use pare_graph::{
    Constant, ConvertedGraph, ConvertedNode, DataType, Edge, Fact, Graph, NodeId, NodeRef, Tensor,
    TensorFact, ValueId, ValueRef,
    ops::{Arity, Formal, Schema, Trait},
};
use std::collections::{HashMap, HashSet};

/// The nodes of a model, in order, each followed by those of its subgraphs.
pub struct Plan {
    format: Format,
    graph: GraphPlan,
    count: usize,
}

/// The nodes of one graph.
#[derive(Default)]
struct GraphPlan {
    nodes: HashMap<NodeId, NodePlan>,
}

/// The form of a node in the new type.
struct NodePlan {
    /// Its position in the order of all nodes.
    position: usize,
    /// The inputs that change their type with the node.
    inputs: Vec<bool>,
    /// The outputs that change their type with the node.
    outputs: Vec<bool>,
    /// The reason why the node stays in float.
    stays: Option<Reason>,
    /// The way in which its type follows from those of its neighbours.
    follows: Follows,
    /// True if only types keep the node in float, so that large constants it reads may be stored in the new type.
    stores: bool,
    bodies: Vec<GraphPlan>,
}

/// The neighbours whose types determine that of a node.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// None: it computes.
    Nothing,
    /// Those before or after it: it only moves, converts or creates numbers.
    Neighbours,
    /// Those before it: its outputs are no floats.
    Inputs,
}

/// The reason why a node stays in float.
enum Reason {
    /// The operator has no form in the new type.
    Operator(String),
    /// The engine does not run it in the new type. Its weights may be stored in that type.
    Kernel(String),
    /// A constant that does not fit.
    Constant(String),
    /// A value that exceeds the range on the samples.
    Range(String),
    /// Requested by the caller.
    Requested,
    /// It computes with constants and sizes only. Engines do so in float, when they load the model, and sizes may
    /// exceed what the new type counts up to.
    Sizes,
}

/// Elements of a constant that is stored in the new type although its users read it in float.
const STORED: usize = 256;

impl Plan {
    /// Examines all nodes. The types of the graph must be inferred.
    pub fn new(graph: &Graph, format: Format, except: &[String]) -> Self {
        let mut count = 0;
        let mut plan = GraphPlan::new(graph, format, except, true, &mut count);
        let data = of_data(graph);
        for (&id, node) in plan.nodes.iter_mut().filter(|(_, node)| node.follows == Follows::Nothing) {
            let at = graph.at(id);
            // Engines fuse dequantized weights with the node that reads them, which needs the same type.
            let is_computed = !is_control_flow(at) && !at.has(Trait::Quantization);
            if is_computed && node.changes() && !graph.results(id).any(|v| data.contains(&v)) {
                node.stays.get_or_insert_with(|| {
                    node.stores = true;
                    Reason::Sizes
                });
            }
        }
        Self { format, graph: plan, count }
    }

    /// Keeps the nodes in float that produce or read one of these values of the main graph.
    pub fn keep_values(&mut self, graph: &Graph, values: &[(ValueId, String)]) {
        for (value, why) in values {
            let producer = graph.producer(*value).map(|(node, slot)| (node, Edge::Output(slot as u32)));
            for (node, edge) in graph.users(*value).into_iter().chain(producer) {
                let Some(plan) = self.graph.nodes.get_mut(&node) else { continue };
                let changes = match edge {
                    Edge::Input(slot) => plan.inputs.get(slot as usize) == Some(&true),
                    Edge::Output(slot) => plan.outputs.get(slot as usize) == Some(&true),
                    Edge::Capture => false,
                };
                if changes && plan.stays.is_none() {
                    plan.stays =
                        Some(Reason::Range(format!("{why}, so {} stays in float", graph.describe(node))));
                }
            }
        }
    }

    /// The nodes that can have the new type, by position.
    pub fn eligible(&self) -> Vec<bool> {
        let mut eligible = vec![false; self.count];
        self.graph.each(&mut |node| eligible[node.position] = node.changes() && node.stays.is_none());
        eligible
    }

    /// The number of nodes that compute with floats.
    pub fn count(&self) -> u64 {
        let mut count = 0;
        self.graph.each(&mut |node| count += u64::from(node.changes()));
        count
    }

    /// Reports why nodes stay in float.
    pub fn decline(&self, cx: &mut Context<'_>) {
        self.graph.each(&mut |node| match &node.stays {
            Some(
                Reason::Operator(why) | Reason::Kernel(why) | Reason::Constant(why) | Reason::Range(why),
            ) => {
                cx.decline(why);
            }
            Some(Reason::Requested | Reason::Sizes) | None => {}
        });
    }

    /// Reports the weights that keep their type because a caller may override them.
    pub fn decline_inputs(graph: &Graph, cx: &mut Context<'_>) {
        let is_weight = |v: &&ValueId| graph.value(**v).data.is_some() && is_float(graph, **v);
        match graph.inputs().iter().filter(is_weight).count() {
            0 => {}
            1 => cx.decline("1 weight is an input that the caller may override, so it stays in float"),
            n => cx.decline(format!(
                "{n} weights are inputs that the caller may override, so they stay in float"
            )),
        }
    }

    /// The types of all values if the nodes `half` have the new type.
    pub fn types(&self, graph: &Graph, half: &[bool], keep_io: bool) -> ConvertedGraph {
        let mut half = half.to_vec();
        let io = |ids: &[ValueId]| ids.iter().map(|&v| !keep_io && is_float(graph, v)).collect::<Vec<_>>();
        let (inputs, outputs) = (io(graph.inputs()), io(graph.outputs()));
        self.graph.settle(graph, &mut half, (&inputs, &outputs));
        self.graph.types(graph, &half, self.format, (inputs, outputs))
    }
}

/// The number of nodes with values of the new type.
pub fn count_nodes(types: &ConvertedGraph) -> u64 {
    let changes =
        |node: &ConvertedNode| u64::from(node.inputs.contains(&true) || node.outputs.contains(&true));
    let with_bodies = |node: &ConvertedNode| changes(node) + node.bodies.iter().map(count_nodes).sum::<u64>();
    types.nodes.values().map(with_bodies).sum()
}

/// The number of constants of the new type.
pub fn count_constants(types: &ConvertedGraph) -> u64 {
    let inner = types.nodes.values().flat_map(|node| &node.bodies).map(count_constants);
    types.constants.len() as u64 + inner.sum::<u64>()
}

impl NodePlan {
    /// Returns true if the node has another form in the new type.
    fn changes(&self) -> bool {
        self.inputs.contains(&true) || self.outputs.contains(&true)
    }

    fn reads(&self, slot: u32, half: &[bool]) -> bool {
        half[self.position] && self.inputs.get(slot as usize) == Some(&true)
    }

    fn writes(&self, slot: usize, half: &[bool]) -> bool {
        half[self.position] && self.outputs.get(slot) == Some(&true)
    }
}

impl GraphPlan {
    fn new(graph: &Graph, format: Format, except: &[String], known: bool, count: &mut usize) -> Self {
        let mut plan = Self::default();
        for &id in graph.nodes().iter() {
            let at = graph.at(id);
            let position = *count;
            *count += 1;
            // The types of values between graphs are known for control flow only.
            let known = known && (at.node().subgraphs().next().is_none() || is_control_flow(at));
            let mut bodies = vec![];
            for body in at.node().subgraphs() {
                bodies.push(Self::new(body, format, except, known, count));
            }
            let mut node = NodePlan::new(at, format, position, bodies);
            let is_named =
                |p: &String| at.outputs().into_iter().flatten().any(|value| matches(p, value.name()));
            if except.iter().any(is_named) {
                node.stays = Some(Reason::Requested);
            } else if !known && node.changes() {
                let why = format!("the subgraphs of {} may expect floats", at.describe());
                node.stays.get_or_insert(Reason::Operator(why));
            }
            plan.nodes.insert(id, node);
        }
        plan
    }

    fn each(&self, visit: &mut dyn FnMut(&NodePlan)) {
        let mut nodes: Vec<_> = self.nodes.values().collect();
        nodes.sort_by_key(|node| node.position);
        for node in nodes {
            visit(node);
            node.bodies.iter().for_each(|body| body.each(visit));
        }
    }

    /// Returns true if a node of this graph or of its subgraphs reads the value in the new type.
    fn is_wanted(&self, graph: &Graph, value: ValueId, half: &[bool]) -> bool {
        graph.users(value).into_iter().any(|(user, edge)| {
            let node = &self.nodes[&user];
            match edge {
                Edge::Input(slot) => node.reads(slot, half),
                Edge::Output(_) => false,
                Edge::Capture => {
                    let name = &graph.value(value).name;
                    let mut bodies = graph.node(user).subgraphs().zip(&node.bodies);
                    bodies.any(|(body, plan)| {
                        let inner = body.find(name).filter(|&v| body.value(v).is_captured());
                        inner.is_some_and(|v| plan.is_wanted(body, v, half))
                    })
                }
            }
        })
    }

    /// Keeps nodes in float that compute no floats and have neighbours in float only: they would round for
    /// nothing.
    fn settle(&self, graph: &Graph, half: &mut [bool], io: (&[bool], &[bool])) {
        let nodes = graph.nodes();
        let mut following = vec![];
        for &id in nodes.iter() {
            let node = &self.nodes[&id];
            for (body, plan) in graph.node(id).subgraphs().zip(&node.bodies) {
                let (inputs, outputs) = border(graph.at(id), node, half, body);
                plan.settle(body, half, (&inputs, &outputs));
            }
            if half[node.position] && node.follows == Follows::Inputs {
                half[node.position] = false;
                following.push(id);
            }
        }
        let inputs = graph.inputs().iter().zip(io.0).filter(|(_, half)| **half).map(|(v, _)| *v);
        let mut of_new_type: HashSet<ValueId> = inputs.collect();
        let reads = |of_new_type: &HashSet<ValueId>, id| {
            let inputs = graph.inputs_of(id).into_iter().zip(&self.nodes[&id].inputs);
            inputs.filter(|(_, changes)| **changes).any(|(v, _)| v.is_some_and(|v| of_new_type.contains(&v)))
        };
        let writes = |of_new_type: &mut HashSet<ValueId>, id| {
            let outputs = graph.outputs_of(id).into_iter().zip(&self.nodes[&id].outputs);
            of_new_type.extend(outputs.filter(|(_, changes)| **changes).filter_map(|(v, _)| v));
        };
        // Nodes that are fed by the new type, directly or through others.
        let mut fed = HashSet::new();
        for &id in nodes.iter().filter(|id| half[self.nodes[id].position]) {
            let is_fed = reads(&of_new_type, id);
            if is_fed {
                fed.insert(id);
            }
            if is_fed || self.nodes[&id].follows == Follows::Nothing {
                writes(&mut of_new_type, id);
            }
        }
        let is_output = |v: ValueId| graph.outputs().iter().zip(io.1).any(|(&o, &half)| o == v && half);
        for &id in nodes.iter().rev() {
            let node = &self.nodes[&id];
            if node.follows == Follows::Neighbours && half[node.position] && !fed.contains(&id) {
                // Users come first, so those that still have the new type need it.
                let mut outputs = graph.outputs_of(id).into_iter().flatten();
                half[node.position] = outputs.any(|v| is_output(v) || self.is_wanted(graph, v, half));
                if half[node.position] {
                    writes(&mut of_new_type, id);
                }
            }
        }
        for id in following {
            half[self.nodes[&id].position] = reads(&of_new_type, id);
        }
    }

    fn types(
        &self,
        graph: &Graph,
        half: &[bool],
        format: Format,
        io: (Vec<bool>, Vec<bool>),
    ) -> ConvertedGraph {
        let mut types =
            ConvertedGraph { inputs: io.0, outputs: io.1, constants: HashSet::new(), nodes: HashMap::new() };
        for (&id, node) in &self.nodes {
            let is_half = half[node.position];
            let slots = |slots: &[bool]| if is_half { slots.to_vec() } else { vec![] };
            let bodies =
                graph.node(id).subgraphs().zip(&node.bodies).map(|(body, plan)| {
                    plan.types(body, half, format, border(graph.at(id), node, half, body))
                });
            let node = ConvertedNode {
                inputs: slots(&node.inputs),
                outputs: slots(&node.outputs),
                bodies: bodies.collect(),
            };
            types.nodes.insert(id, node);
        }
        for id in graph.initializers() {
            let value = graph.value(id);
            let Some(tensor) = value.tensor().filter(|t| t.dtype() == DataType::Float) else { continue };
            if !value.is_output()
                && matches!(value.data, Some(Constant::Dense(_)))
                && (self.is_wanted(graph, id, half) || self.is_stored(graph, id, tensor, format))
            {
                types.constants.insert(id);
            }
        }
        types
    }

    /// Returns true if a constant is stored in the new type only: all of its users would read it in that type
    /// if the engine had kernels.
    fn is_stored(&self, graph: &Graph, value: ValueId, tensor: &Tensor, format: Format) -> bool {
        let reads = |(user, edge): (NodeId, Edge)| self.nodes[&user].stores && matches!(edge, Edge::Input(_));
        let users = graph.users(value);
        tensor.len() >= STORED
            && !users.is_empty()
            && users.into_iter().all(reads)
            && format.misfit(tensor).is_none()
    }
}

impl NodePlan {
    fn new(at: NodeRef<'_>, format: Format, position: usize, bodies: Vec<GraphPlan>) -> Self {
        let node = |(inputs, outputs): (Vec<bool>, Vec<bool>), stays| {
            let follows = follows(at, &inputs, &outputs);
            // Engines read scales when they load the model.
            let is_plain = at.schema().is_some() && !at.has(Trait::Quantization);
            let stores = is_plain && matches!(stays, Some(Reason::Operator(_) | Reason::Kernel(_)));
            Self { position, inputs, outputs, stays, follows, stores, bodies }
        };
        let has_floats = || {
            let values = at.inputs().into_iter().chain(at.outputs()).flatten();
            values.into_iter().any(|value| value.dtype() == Some(DataType::Float))
        };
        let dtype = format.dtype;
        let slots = match at.schema() {
            Some(schema) => slots(at, schema, dtype),
            None => {
                Err(format!("{} is no operator of the standard, so its types are unknown", at.describe()))
            }
        };
        match slots {
            Ok(slots) if !slots.0.contains(&true) && !slots.1.contains(&true) => {
                let stays = has_floats().then(|| {
                    let why = format!("{} has no {dtype} form in operator set {}", at.op(), at.opset());
                    Reason::Operator(why)
                });
                node(slots, stays)
            }
            Ok(slots) => {
                let mut stays = None;
                if !kernels::runs(at, dtype) {
                    stays = Some(Reason::Kernel(format!(
                        "ONNX Runtime's CPU does not run {} in {dtype}",
                        at.op()
                    )));
                }
                let inputs = at.inputs().into_iter().zip(&slots.0).filter(|(_, changes)| **changes);
                for constant in inputs.filter_map(|(value, _)| value) {
                    let Ok(tensor) = constant.constant() else { continue };
                    let becomes = match format.misfit(tensor) {
                        Some(Misfit::Infinite) => "would become infinite",
                        Some(Misfit::Zero) => "would vanish",
                        None => continue,
                    };
                    let (name, node) = (constant.name(), at.describe());
                    let why = format!("`{name}` {becomes} in {dtype}, so {node} stays in float");
                    stays = Some(Reason::Constant(why));
                }
                node(slots, stays)
            }
            Err(why) => node((vec![], vec![]), has_floats().then_some(Reason::Operator(why))),
        }
    }
}

/// The inputs and outputs of a node that have the new type if the node has. The error is the reason why there
/// is no such form.
fn slots(at: NodeRef<'_>, schema: &Schema, dtype: DataType) -> Result<(Vec<bool>, Vec<bool>), String> {
    if at.is("BitCast") {
        return Err(format!("{} reads the bits of its input", at.describe()));
    }
    if at.has_references() {
        return Err(format!("{} has attributes of a call", at.describe()));
    }
    let inputs: Vec<_> = at.inputs().into_iter().enumerate().map(|(i, v)| (v, schema.input(i))).collect();
    let outputs: Vec<_> = at.outputs().into_iter().enumerate().map(|(i, v)| (v, schema.output(i))).collect();
    for (value, formal) in inputs.iter().chain(&outputs).filter_map(|&(value, formal)| Some((value?, formal)))
    {
        match &value.value().fact {
            Fact::Unknown | Fact::Tensor(TensorFact { dtype: None, .. }) => {
                return Err(format!("the type of `{}` is unknown", value.name()));
            }
            Fact::Tensor(_) => {}
            _ if formal.is_some_and(is_mixed) => {}
            _ => return Err(format!("`{}` is no tensor, so {} stays in float", value.name(), at.describe())),
        }
    }
    let named = ["to", "dtype", "output_datatype", "output_dtype"];
    let names_type = named.iter().any(|name| schema.attribute(name).is_some()) || at.is("ConstantOfShape");
    let has_input = |variable: usize| {
        inputs
            .iter()
            .any(|(value, formal)| value.is_some() && formal.is_some_and(|f| f.variable == Some(variable)))
    };
    for (value, formal) in outputs.iter().filter_map(|&(value, formal)| Some((value?, formal?))) {
        let follows = formal.variable.is_none_or(has_input) || formal.types.is_single();
        let is_float = value.dtype() == Some(DataType::Float);
        if is_float && !follows && !names_type && !is_control_flow(at) {
            return Err(format!("the type of `{}` follows from no input of {}", value.name(), at.describe()));
        }
    }
    let changes = |value: Option<ValueRef<'_>>, formal: Option<&Formal>| {
        let (Some(value), Some(formal)) = (value, formal) else { return false };
        value.dtype() == Some(DataType::Float) && formal.types.allows_tensor(dtype)
    };
    let of = |slots: &[(Option<ValueRef<'_>>, Option<&Formal>)]| {
        slots.iter().map(|&(value, formal)| changes(value, formal)).collect::<Vec<_>>()
    };
    Ok((of(&inputs), of(&outputs)))
}

/// The values that depend on elements of inputs, not only on their sizes.
fn of_data(graph: &Graph) -> HashSet<ValueId> {
    let mut data: HashSet<_> = graph.inputs().iter().copied().collect();
    for &id in graph.nodes().iter() {
        let is_size = ["Shape", "Size"].iter().any(|op| graph.at(id).is(op));
        if !is_size && graph.operands(id).any(|v| data.contains(&v)) {
            data.extend(graph.results(id));
        }
    }
    data
}

/// Returns true for a variadic formal whose values have types of their own.
fn is_mixed(formal: &Formal) -> bool {
    matches!(formal.arity, Arity::Variadic(_)) && !formal.homogeneous
}

fn is_control_flow(at: NodeRef<'_>) -> bool {
    ["If", "Loop", "Scan"].iter().any(|op| at.is(op))
}

fn follows(at: NodeRef<'_>, inputs: &[bool], outputs: &[bool]) -> Follows {
    let converts = at.has(Trait::DataMovement) || at.is("Cast") || at.is("CastLike");
    if is_control_flow(at) {
        Follows::Nothing
    } else if !outputs.contains(&true) {
        Follows::Inputs
    } else if converts || !inputs.contains(&true) {
        Follows::Neighbours
    } else {
        Follows::Nothing
    }
}

/// The inputs and outputs of a body of control flow that have the new type.
fn border(at: NodeRef<'_>, node: &NodePlan, half: &[bool], body: &Graph) -> (Vec<bool>, Vec<bool>) {
    // The input of the node for the first input of the body, and the output of the body for the first of the
    // node.
    let (inputs, outputs) = match at.op() {
        "Loop" => (0, 1),
        "Scan" if at.opset() < 9 => (1, 0),
        _ => (0, 0),
    };
    let is_known = is_control_flow(at);
    let read = |i: usize| is_known && !at.is("If") && node.reads((i + inputs) as u32, half);
    let written = |i: usize| is_known && i.checked_sub(outputs).is_some_and(|i| node.writes(i, half));
    let (n, m) = (body.inputs().len(), body.outputs().len());
    ((0..n).map(read).collect(), (0..m).map(written).collect())
}

fn is_float(graph: &Graph, value: ValueId) -> bool {
    graph.value(value).fact.dtype() == Some(DataType::Float)
}
