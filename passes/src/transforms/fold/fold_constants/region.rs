//! The constant part of a graph: its nodes, and their results as far as they are computed.

use super::{plan::FoldPlan, would_add};
use crate::framework::Context;
use pare_graph::{
    DataType, Declared, Evaluate, Graph, Model, NodeId, NodeRef, Setting, Tensor, Type, Value, ValueId,
    ops::{
        Trait,
        eval::{EvalError, evaluate},
        is_deterministic,
    },
};
use std::collections::{HashMap, HashSet};

/// The constant part of a graph.
pub(super) struct Region<'c> {
    /// Names of constants of enclosing graphs without other uses.
    pub unshared: &'c HashSet<String>,
    /// Results that are computed, without initializers.
    pub tensors: HashMap<ValueId, Tensor>,
    /// Nodes whose outputs are constant, in topological order, without `Constant` nodes.
    pub nodes: Vec<NodeId>,
    /// Outputs that are not computed yet, with their producers: large ones, and those that need the engine.
    pub pending: HashMap<ValueId, NodeId>,
    /// Nodes with large outputs, which are computed here when a result is needed.
    large: HashSet<NodeId>,
    budget: Budget,
    /// Bytes of the computed tensors.
    held: u64,
}

/// Bytes that results may occupy.
#[derive(Clone, Copy)]
pub(super) struct Budget {
    /// Growth of the file.
    pub room: i64,
    /// All results together, in memory.
    pub memory: u64,
}

/// Results of at least this size are computed only if they are stored or needed for a smaller one.
const LARGE: u64 = 1 << 20;

/// The size that is allowed for any output, even if the file may not grow by it: the end of a chain is often
/// smaller.
const ROOM_FOR_RESULTS: u64 = 64 << 20;

/// Tensors of up to this size are initializers of the model given to the engine; larger ones are its inputs.
const INLINE: usize = 1 << 10;

impl<'c> Region<'c> {
    /// Finds the constant nodes and computes their results within the budget.
    pub fn of(graph: &Graph, unshared: &'c HashSet<String>, cx: &mut Context<'_>, budget: Budget) -> Self {
        let (tensors, pending, large) = (HashMap::new(), HashMap::new(), HashSet::new());
        let mut region = Self { unshared, tensors, nodes: vec![], pending, large, budget, held: 0 };
        for &id in graph.nodes().iter() {
            let at = graph.at(id);
            if region.take_inferred(at) {
                region.nodes.push(id);
                continue;
            }
            if !is_foldable(at) || !region.has_inputs(at) {
                continue;
            }
            let (views, outputs) = (at.is("Constant") || at.is("Identity"), at.outputs());
            let sizes = || outputs.iter().flatten().filter_map(|o| region.size(graph, o.id));
            if !views && sizes().any(|bytes| bytes >= LARGE) {
                region.pending.extend(outputs.iter().flatten().map(|output| (output.id, id)));
                region.large.insert(id);
                region.nodes.push(id);
                continue;
            }
            for input in at.inputs().into_iter().flatten() {
                region.compute(graph, input.id, cx);
            }
            if region.has_inputs(at) && region.evaluate(at, cx) {
                // A `Constant` needs no folding, and an `Identity` of one costs no bytes.
                let is_constant =
                    views && at.outputs().iter().flatten().all(|o| region.tensors.contains_key(&o.id));
                region.nodes.extend((!is_constant).then_some(id));
            }
        }
        region
    }

    /// Computes a large value and the values it depends on. False if it cannot be computed.
    fn compute(&mut self, graph: &Graph, value: ValueId, cx: &mut Context<'_>) -> bool {
        let deferred = |region: &Self, v: &ValueId| {
            region.pending.get(v).copied().filter(|node| region.large.contains(node))
        };
        let mut stack = vec![value];
        while let Some(last) = stack.last() {
            let Some(node) = deferred(self, last) else {
                stack.pop();
                continue;
            };
            let before = stack.len();
            stack.extend(graph.inputs_of(node).into_iter().flatten().filter(|v| deferred(self, v).is_some()));
            if stack.len() > before {
                continue;
            }
            self.large.remove(&node);
            let at = graph.at(node);
            for output in at.outputs().into_iter().flatten() {
                self.pending.remove(&output.id);
            }
            if !self.has_inputs(at) || !self.evaluate(at, cx) {
                self.nodes.retain(|&other| other != node);
            }
        }
        self.is_constant(graph, value)
    }

    fn is_constant(&self, graph: &Graph, value: ValueId) -> bool {
        self.tensor(graph, value).is_some() || self.pending.contains_key(&value)
    }

    fn has_inputs(&self, at: NodeRef<'_>) -> bool {
        at.inputs().iter().flatten().all(|v| self.is_constant(at.graph, v.id))
    }

    /// Computes the large values of a plan. False if one cannot be computed, so the plan is no longer valid.
    pub fn compute_large(&mut self, graph: &Graph, plan: &FoldPlan, cx: &mut Context<'_>) -> bool {
        plan.folds.iter().flat_map(|(_, values)| values).all(|&v| self.compute(graph, v, cx))
    }

    /// Evaluates a constant node, or defers it to the engine. False if neither is possible.
    fn evaluate(&mut self, at: NodeRef<'_>, cx: &mut Context<'_>) -> bool {
        let (graph, inputs) = (at.graph, at.inputs());
        let tensors: Vec<_> = inputs.iter().map(|v| self.tensor(graph, v.as_ref()?.id)).collect();
        let result = if tensors.iter().zip(&inputs).any(|(tensor, input)| tensor.is_none() && input.is_some())
        {
            Err(EvalError::NotHere(at.describe()))
        } else {
            let needed: u64 = tensors.iter().flatten().map(|t| t.size_in_bytes() as u64).sum();
            let Budget { room, memory } = self.budget;
            let limit = needed.saturating_mul(8).saturating_add(ROOM_FOR_RESULTS.max(room.unsigned_abs()));
            evaluate(at, &tensors, limit.min(memory.saturating_sub(self.held)) as usize)
        };
        let outputs = at.outputs();
        match result {
            Ok(results) => {
                self.held += results.iter().map(|t| t.size_in_bytes() as u64).sum::<u64>();
                let outputs = outputs.into_iter().zip(results);
                self.tensors.extend(outputs.filter_map(|(output, tensor)| Some((output?.id, tensor))));
                return true;
            }
            Err(EvalError::NotHere(_)) if at.is("Constant") => {}
            Err(EvalError::NotHere(_)) if cx.tools.engine.is_some() => {
                self.pending.extend(outputs.into_iter().flatten().map(|output| (output.id, at.id)));
                return true;
            }
            Err(EvalError::TooLarge { bytes, .. }) => {
                let output = outputs.into_iter().flatten().next();
                output.into_iter().for_each(|o| cx.decline(would_add(graph, o.id, bytes)));
            }
            Err(other) => cx.decline(other),
        }
        false
    }

    /// Takes the outputs of a node from shape inference. False unless all of them are known.
    fn take_inferred(&mut self, at: NodeRef<'_>) -> bool {
        let outputs: Vec<_> = at.outputs().into_iter().flatten().collect();
        let content = |fact: &pare_graph::Fact| {
            let items: Vec<_> = fact.content()?.iter().map(pare_graph::Dim::known).collect::<Option<_>>()?;
            integers(fact.dtype()?, &fact.fixed_shape()?, &items)
        };
        let known =
            outputs.iter().map(|o| Some((o.id, content(&o.value().fact)?))).collect::<Option<Vec<_>>>();
        match known {
            Some(known) if !known.is_empty() && !at.is("Constant") => {
                self.tensors.extend(known);
                true
            }
            _ => false,
        }
    }

    /// The tensor of a constant value, if it is computed.
    pub fn tensor<'a>(&'a self, graph: &'a Graph, value: ValueId) -> Option<&'a Tensor> {
        graph.value(value).tensor().or_else(|| self.tensors.get(&value))
    }

    /// Bytes of a constant value, from its type and shape if it is not computed yet.
    pub fn size(&self, graph: &Graph, value: ValueId) -> Option<u64> {
        if let Some(tensor) = self.tensor(graph, value) {
            return Some(tensor.size_in_bytes() as u64);
        }
        let fact = &graph.value(value).fact;
        let count = pare_graph::element_count(&fact.fixed_shape()?)?;
        fact.dtype()?.bytes_for(count).map(|bytes| bytes as u64)
    }

    /// The values of a plan whose size is unknown.
    pub fn unmeasured(&self, graph: &Graph, plan: &FoldPlan) -> HashSet<ValueId> {
        let all = plan.folds.iter().flat_map(|(_, values)| values).copied();
        all.filter(|&v| self.size(graph, v).is_none()).collect()
    }

    /// Computes the pending values of the plan in the engine. Those that fail are removed from the plan.
    pub fn run_engine(
        &mut self,
        graph: &Graph,
        ir_version: Option<i64>,
        plan: &mut FoldPlan,
        cx: &mut Context<'_>,
    ) {
        let Some(engine) = cx.tools.engine else { return };
        let all = plan.folds.iter().flat_map(|(_, values)| values).copied();
        let wanted: Vec<_> = all.filter(|v| self.pending.contains_key(v)).collect();
        if wanted.is_empty() {
            return;
        }
        match self.run_in_engine(engine, graph, ir_version, &wanted) {
            Ok(tensors) => self.tensors.extend(wanted.into_iter().zip(tensors)),
            // One failure must not affect the others.
            Err(_) => {
                for value in wanted {
                    match self.run_in_engine(engine, graph, ir_version, &[value]) {
                        Ok(tensors) => self.tensors.extend(std::iter::once(value).zip(tensors)),
                        Err(why) => {
                            cx.decline(format!("`{}` was not computed: {why}", graph.value(value).name));
                        }
                    }
                }
            }
        }
        plan.folds.retain(|(_, values)| values.iter().all(|v| self.tensors.contains_key(v)));
    }

    /// Computes values by running a model of the nodes that they depend on.
    fn run_in_engine(
        &self,
        engine: &dyn Evaluate,
        graph: &Graph,
        ir_version: Option<i64>,
        wanted: &[ValueId],
    ) -> Result<Vec<Tensor>, String> {
        let nodes = graph.upstream(wanted.iter().copied(), |v| !self.pending.contains_key(&v));
        let mut part = Graph::new(graph.opsets.clone());
        part.name = Some("constants".into());
        let (mut copies, mut feeds) = (HashMap::new(), vec![]);
        let result = graph.copy_nodes(&nodes, &mut part, &mut copies, |part, id| {
            let Value { name, fact, .. } = graph.value(id);
            let tensor = self.tensor(graph, id);
            if let Some(tensor) = tensor.filter(|t| t.size_in_bytes() <= INLINE) {
                return part.add_value(Value::constant(name, tensor.clone()));
            }
            let mut copy = Value::named(name);
            if let Some(tensor) = tensor {
                let dims: Vec<_> = tensor.shape().iter().map(|&n| n.into()).collect();
                copy.declared = Some(declared(Type::tensor(tensor.dtype(), Some(&dims))));
            } else if let Some(dtype) = fact.dtype() {
                copy.declared = Some(declared(Type::tensor(dtype, fact.shape())));
            }
            let copy = part.add_value(copy)?;
            if let Some(tensor) = tensor {
                part.add_input(copy);
                feeds.push((name.as_str(), tensor));
            }
            Ok(copy)
        });
        result.map_err(|e| e.to_string())?;
        wanted.iter().for_each(|v| part.add_output(copies[v]));
        let mut model = Model::of(part);
        model.ir_version = ir_version;
        let mut loaded = engine.load(&model, Setting::PLAIN).map_err(|e| e.to_string())?;
        let outputs = loaded.run(&feeds).map_err(|e| e.to_string())?;
        if outputs.len() == wanted.len() {
            Ok(outputs)
        } else {
            Err("the engine returned another number of outputs".into())
        }
    }
}

/// Collects the names of constants that a single body captures and nothing else uses, for this graph and its
/// bodies.
pub(super) fn unshared_captures(graph: &Graph, unshared: &mut HashSet<String>) {
    for &node in graph.nodes().iter() {
        let bodies: Vec<_> = graph.node(node).subgraphs().collect();
        for value in graph.captured_by(node) {
            let Value { name, .. } = graph.value(value);
            let own = graph.value(value).tensor().is_some();
            let capturing =
                bodies.iter().filter(|b| b.find(name).is_some_and(|v| b.value(v).is_captured())).count();
            let free = own && (!graph.value(value).is_captured() || unshared.contains(name));
            if free && capturing == 1 && graph.use_count(value) == 1 {
                unshared.insert(name.clone());
            } else {
                unshared.remove(name);
            }
        }
        bodies.into_iter().for_each(|body| unshared_captures(body, unshared));
    }
}

/// Returns true if a node can be evaluated ahead of time if its inputs are constant.
fn is_foldable(at: NodeRef<'_>) -> bool {
    let without_bodies = at.graph.captured_by(at.id).is_empty() && at.node().subgraphs().next().is_none();
    // Engines recognise a quantized operator by the quantizations around it.
    without_bodies && !at.has_references() && !at.has(Trait::Quantization) && is_deterministic(at)
}

fn declared(ty: Type) -> Declared {
    let mut declared = Declared::default();
    declared.ty = Some(ty);
    declared
}

/// A tensor of small integers.
fn integers(dtype: DataType, shape: &[usize], items: &[i64]) -> Option<Tensor> {
    match dtype {
        DataType::Int64 => Tensor::from_slice(shape, items).ok(),
        DataType::Int32 => {
            let items: Vec<_> = items.iter().map(|&n| i32::try_from(n)).collect::<Result<_, _>>().ok()?;
            Tensor::from_slice(shape, &items).ok()
        }
        _ => None,
    }
}
