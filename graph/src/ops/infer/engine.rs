//! The walk over a graph: facts of inputs and constants first, then node by node.

use super::{InferError, call::Calls, cx::Cx, dims::MAX_RANK, rules};
use crate::{Constant, Dim, Fact, Function, Graph, NodeId, TensorFact, ValueId, standard_domain};
use std::collections::{HashMap, HashSet};

/// Nodes looked at in one inference, those of subgraphs and functions as often as they are: a bound on hostile
/// nesting, far above real models.
const MAX_VISITS: u64 = 1 << 22;

/// Subgraphs and calls inside each other.
pub(super) const MAX_DEPTH: usize = 32;

/// One inference.
pub(super) struct Engine<'f> {
    pub functions: &'f [Function],
    pub by_name: HashMap<(&'f str, &'f str, &'f str), usize>,
    pub calls: Vec<Calls>,
    pub depth: usize,
    /// Inside a subgraph that may never run a contradiction makes nothing invalid.
    pub lenient: bool,
    /// Whether nodes without a rule keep the facts of their outputs while those of their inputs stay.
    keep: bool,
    visits: u64,
}

impl<'f> Engine<'f> {
    pub fn new(functions: &'f [Function]) -> Self {
        let overload = |f: &'f Function| f.overload.as_deref().unwrap_or("");
        // The first of a name counts.
        let names = functions.iter().enumerate().rev();
        let by_name =
            names.map(|(i, f)| ((standard_domain(&f.domain), f.name.as_str(), overload(f)), i)).collect();
        let calls = functions.iter().map(|_| Calls::default()).collect();
        Self { functions, by_name, calls, depth: 0, lenient: false, keep: false, visits: 0 }
    }

    /// Infer a graph from its declared inputs.
    pub fn main(&mut self, graph: &mut Graph) -> Result<(), InferError> {
        for id in graph.inputs().to_vec() {
            let fact = stable(declared(graph, id), &graph.value(id).fact);
            graph.set_fact(id, fact);
        }
        let changed = set_constants(graph, HashSet::new());
        self.walk(graph, true, changed)
    }

    /// Infer a graph from the facts that its inputs have.
    pub fn again(&mut self, graph: &mut Graph) -> Result<(), InferError> {
        self.keep = true;
        let mut changed = HashSet::new();
        for id in graph.inputs().to_vec() {
            let (given, declared) = (graph.value(id).fact.clone(), declared(graph, id));
            let fits = given.unify(&declared).is_some();
            put(graph, id, if fits { filled_up(given, &declared) } else { declared }, &mut changed);
        }
        let changed = set_constants(graph, changed);
        self.walk(graph, true, changed)
    }

    /// Infer a nested graph whose inputs are these values; facts that are not given are unknown. `changed` are
    /// the captured values that have new facts.
    pub fn nested(
        &mut self,
        graph: &mut Graph,
        inputs: &[Fact],
        mut changed: HashSet<ValueId>,
    ) -> Result<Vec<Fact>, InferError> {
        for (i, id) in graph.inputs().to_vec().into_iter().enumerate() {
            let given = inputs.get(i).cloned().unwrap_or_default();
            let fact = filled_up(given, &without_symbols(&declared(graph, id)));
            put(graph, id, fact, &mut changed);
        }
        let changed = set_constants(graph, changed);
        self.depth += 1;
        let result = self.walk(graph, false, changed);
        self.depth -= 1;
        result?;
        Ok(graph.outputs().iter().map(|&v| graph.value(v).fact.clone()).collect())
    }

    fn walk(
        &mut self,
        graph: &mut Graph,
        outermost: bool,
        mut changed: HashSet<ValueId>,
    ) -> Result<(), InferError> {
        for &id in graph.nodes().iter() {
            let facts = match self.node(graph, id) {
                Ok(facts) => facts,
                Err(_) if self.lenient => Some(vec![]),
                Err(error) => return Err(error),
            };
            self.settle(graph, id, facts, outermost, &mut changed)?;
        }
        Ok(())
    }

    /// The facts of a node's outputs; `None` if no rule tells anything.
    pub fn node(&mut self, graph: &mut Graph, id: NodeId) -> Result<Option<Vec<Fact>>, InferError> {
        self.visits += 1;
        let node = graph.node(id);
        if self.visits > MAX_VISITS || self.depth > MAX_DEPTH {
            return Ok(None);
        }
        if node.subgraphs().next().is_some()
            && let Some(facts) = self.control(graph, id)?
        {
            return Ok(Some(facts));
        }
        let node = graph.node(id);
        if !self.by_name.is_empty() {
            let key = (node.domain(), node.op.as_str(), node.overload.as_deref().unwrap_or(""));
            if let Some(&function) = self.by_name.get(&key) {
                return self.call(graph, id, function).map(Some);
            }
        }
        let Some(rule) = rules::find(node.domain(), &node.op) else { return Ok(None) };
        let at = graph.at(id);
        if at.has_references() && !rules::ignores_attributes(node.domain(), &node.op) {
            return Ok(Some(vec![]));
        }
        let cx = Cx::new(at);
        rule(&cx).map(Some).map_err(|why| InferError { node: at.describe(), why })
    }

    /// Write down the facts of a node's outputs, together with what the file declares of them.
    fn settle(
        &self,
        graph: &mut Graph,
        id: NodeId,
        facts: Option<Vec<Fact>>,
        outermost: bool,
        changed: &mut HashSet<ValueId>,
    ) -> Result<(), InferError> {
        let kept = self.keep
            && facts.is_none()
            && !graph.inputs_of(id).iter().flatten().any(|v| changed.contains(v));
        let mut facts = facts.unwrap_or_default().into_iter();
        for output in graph.outputs_of(id) {
            let inferred = sane(facts.next().unwrap_or_default());
            let Some(output) = output else { continue };
            let value = graph.value(output);
            if kept && value.fact != Fact::Unknown {
                continue;
            }
            let declared = declared(graph, output);
            if outermost && value.is_output() && contradicts(graph, output, &inferred, &declared) {
                let name = &graph.value(output).name;
                let why = format!("`{name}` is {inferred}, but declared as {declared}");
                return Err(InferError { node: graph.describe(id), why });
            }
            // Files are often wrong about sizes of outputs, such as a batch of 1 where the inputs leave it open.
            let fact = filled_up(inferred, &if outermost { declared } else { without_symbols(&declared) });
            put(graph, output, fact, changed);
        }
        Ok(())
    }
}

/// Set a fact and note whether it is another one than before.
pub(super) fn put(graph: &mut Graph, id: ValueId, fact: Fact, changed: &mut HashSet<ValueId>) {
    if graph.value(id).fact != fact {
        changed.insert(id);
        graph.set_fact(id, fact);
    }
}

/// Whether an output that is not what it is declared as makes the model invalid. Another type always does; another shape
/// if it is not the one that was computed at first: then a change has broken it. A file may come with a wrong shape, which
/// ONNX Runtime overlooks too.
fn contradicts(graph: &mut Graph, output: ValueId, inferred: &Fact, declared: &Fact) -> bool {
    let Some(entry) = graph.value_mut(output).declared.as_mut() else { return false };
    let first = entry.computed.get_or_insert_with(|| inferred.clone());
    let changed = inside(first).unify(inside(inferred)).is_none();
    let (inferred, declared) = (inside(inferred), inside(declared));
    inferred.unify(declared).is_none()
        && (changed || without_shape(inferred).unify(&without_shape(declared)).is_none())
}

/// The value itself, of an optional: where one of two branches gives nothing, files declare what the other gives.
fn inside(fact: &Fact) -> &Fact {
    match fact {
        Fact::Optional(item) => item,
        other => other,
    }
}

/// What the file says of a value.
fn declared(graph: &Graph, id: ValueId) -> Fact {
    let declared = graph.value(id).declared.as_ref();
    declared.and_then(|d| d.ty.as_ref()).map_or(Fact::Unknown, |ty| sane(ty.fact()))
}

/// Facts of initializers; adds to the values whose facts are not what they were.
fn set_constants(graph: &mut Graph, mut changed: HashSet<ValueId>) -> HashSet<ValueId> {
    let ids: Vec<_> = graph.values().collect();
    for id in ids {
        let value = graph.value(id);
        if value.is_captured() {
            continue;
        }
        let fact = match &value.data {
            None => continue,
            Some(Constant::Dense(tensor)) => Fact::of_constant(tensor),
            Some(Constant::Sparse(sparse)) => {
                let shape = sparse.dims.iter().map(|&n| Dim::from(n)).collect();
                Fact::tensor(sparse.values.dtype(), shape)
            }
        };
        let fact = sane(fact);
        // What a caller may override has the declared type, and no elements that are known.
        let fact =
            if value.is_input() { filled_up(declared(graph, id), &without_content(fact)) } else { fact };
        put(graph, id, fact, &mut changed);
    }
    changed
}

fn without_content(fact: Fact) -> Fact {
    match fact {
        Fact::Tensor(t) => Fact::Tensor(TensorFact { content: None, ..t }),
        other => other,
    }
}

/// Only the type: what holds the tensors, and that of their elements.
fn without_shape(fact: &Fact) -> Fact {
    match fact {
        Fact::Tensor(t) => Fact::Tensor(TensorFact { dtype: t.dtype, ..TensorFact::default() }),
        Fact::Sequence(item) => Fact::Sequence(Box::new(without_shape(item))),
        other => other.clone(),
    }
}

/// The fact, where shapes longer than any operator takes are not followed, and no size is negative.
fn sane(fact: Fact) -> Fact {
    match fact {
        Fact::Tensor(t) if t.shape.as_ref().is_some_and(|s| s.len() > MAX_RANK) => {
            Fact::Tensor(TensorFact { shape: None, content: None, ..t })
        }
        Fact::Tensor(mut t) => {
            let negative = |d: &&mut Dim| d.known().is_some_and(|n| n < 0);
            t.shape.iter_mut().flatten().filter(negative).for_each(|d| *d = Dim::unknown());
            Fact::Tensor(t)
        }
        other => other,
    }
}

/// `fact`, and what it leaves open from `other`; where they contradict each other, `fact` holds.
fn filled_up(fact: Fact, other: &Fact) -> Fact {
    match (fact, other) {
        (Fact::Unknown, other) => other.clone(),
        (Fact::Tensor(mut fact), Fact::Tensor(other)) => {
            fact.dtype = fact.dtype.or(other.dtype);
            match (&mut fact.shape, &other.shape) {
                (Some(dims), Some(others)) if dims.len() == others.len() => {
                    for (dim, other) in
                        dims.iter_mut().zip(others).filter(|d| d.0.is_unknown() && !d.1.is_unknown())
                    {
                        *dim = other.clone();
                    }
                }
                (shape @ None, Some(_)) => shape.clone_from(&other.shape),
                _ => {}
            }
            Fact::Tensor(fact)
        }
        (Fact::Sequence(a), Fact::Sequence(b)) => Fact::Sequence(Box::new(filled_up(*a, b))),
        (Fact::Optional(a), Fact::Optional(b)) => Fact::Optional(Box::new(filled_up(*a, b))),
        (fact, _) => fact,
    }
}

/// A declared fact with the unknown sizes of `before` where both leave them open, so that facts which follow from
/// them stay the same.
fn stable(declared: Fact, before: &Fact) -> Fact {
    match (declared, before) {
        (Fact::Tensor(mut now), Fact::Tensor(before)) => {
            if let (Some(dims), Some(others)) = (&mut now.shape, &before.shape)
                && dims.len() == others.len()
            {
                for (dim, other) in
                    dims.iter_mut().zip(others).filter(|d| d.0.is_unknown() && d.1.is_unknown())
                {
                    *dim = other.clone();
                }
            }
            Fact::Tensor(now)
        }
        (declared, _) => declared,
    }
}

/// Symbols declared in a subgraph mean something else in every iteration and call: they tell nothing outside.
fn without_symbols(fact: &Fact) -> Fact {
    match fact {
        Fact::Tensor(t) => {
            let number = |d: &Dim| if d.known().is_some() { d.clone() } else { Dim::unknown() };
            let shape = t.shape.as_ref().map(|s| s.iter().map(number).collect());
            Fact::Tensor(TensorFact { shape, ..t.clone() })
        }
        Fact::Sequence(item) => Fact::Sequence(Box::new(without_symbols(item))),
        Fact::Optional(item) => Fact::Optional(Box::new(without_symbols(item))),
        other => other.clone(),
    }
}
