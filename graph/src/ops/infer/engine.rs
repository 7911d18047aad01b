//! Traversal of a graph: facts of inputs and constants, then of the nodes in order.

use super::{InferError, call::Calls, cx::Cx, dims::MAX_RANK, rules};
use crate::{Dim, Fact, Function, Graph, NodeId, TensorFact, ValueId, standard_domain};
use std::collections::{HashMap, HashSet};

/// The largest number of node visits in one inference, including subgraphs and functions: a bound for hostile
/// nesting.
const MAX_VISITS: u64 = 1 << 22;

/// The largest depth of nested subgraphs and calls.
pub(super) const MAX_DEPTH: usize = 32;

/// State of one inference.
pub(super) struct Engine<'f> {
    pub functions: &'f [Function],
    pub by_name: HashMap<(&'f str, &'f str, &'f str), usize>,
    pub calls: Vec<Calls>,
    pub depth: usize,
    /// True if contradictions are ignored, inside a subgraph that may never run.
    pub lenient: bool,
    /// True if the sizes that a subgraph declares hold in every run of it, see [`Engine::fixed_point`].
    pub trusting: bool,
    /// True if nodes without a rule keep the facts of their outputs if those of their inputs did not change.
    keep: bool,
    visits: u64,
}

impl<'f> Engine<'f> {
    pub fn new(functions: &'f [Function]) -> Self {
        let overload = |f: &'f Function| f.overload.as_deref().unwrap_or("");
        // The first function of a name takes precedence.
        let names = functions.iter().enumerate().rev();
        let by_name =
            names.map(|(i, f)| ((standard_domain(&f.domain), f.name.as_str(), overload(f)), i)).collect();
        let calls = functions.iter().map(|_| Calls::default()).collect();
        Self { functions, by_name, calls, depth: 0, lenient: false, trusting: true, keep: false, visits: 0 }
    }

    /// Infers a graph from its declared inputs.
    pub fn main(&mut self, graph: &mut Graph) -> Result<(), InferError> {
        for id in graph.inputs().to_vec() {
            let fact = stable(declared(graph, id), &graph.value(id).fact);
            graph.set_fact(id, fact);
        }
        let changed = set_constants(graph, HashSet::new());
        self.walk(graph, true, changed)
    }

    /// Infers a graph from the facts of its inputs.
    pub fn again(&mut self, graph: &mut Graph) -> Result<(), InferError> {
        self.keep = true;
        let mut changed = HashSet::new();
        for id in graph.inputs().to_vec() {
            let (given, declared) = (graph.value(id).fact.clone(), declared(graph, id));
            let fits = given.unify(&declared).is_some();
            put(graph, id, if fits { refined(given, &declared) } else { declared }, &mut changed);
        }
        let changed = set_constants(graph, changed);
        self.walk(graph, true, changed)
    }

    /// Infers a nested graph for these facts of its inputs; missing ones are unknown. `changed` are the
    /// captured values with new facts. Returns the facts of the outputs.
    pub fn nested(
        &mut self,
        graph: &mut Graph,
        inputs: &[Fact],
        mut changed: HashSet<ValueId>,
    ) -> Result<Vec<Fact>, InferError> {
        for (i, id) in graph.inputs().to_vec().into_iter().enumerate() {
            let given = inputs.get(i).cloned().unwrap_or_default();
            let fact = refined(given, &self.declared_inside(graph, id));
            put(graph, id, fact, &mut changed);
        }
        let changed = set_constants(graph, changed);
        self.depth += 1;
        let result = self.walk(graph, false, changed);
        self.depth -= 1;
        result?;
        Ok(graph.outputs().iter().map(|&v| graph.value(v).fact.clone()).collect())
    }

    /// The part of the declared fact of a value of a subgraph that holds in every run of the subgraph.
    pub fn declared_inside(&self, graph: &Graph, id: ValueId) -> Fact {
        let declared = declared(graph, id);
        if self.trusting { without_symbols(&declared) } else { without_shape(&declared) }
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

    /// The facts of the outputs of a node; `None` if it has no rule.
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

    /// Sets the facts of the outputs of a node, refined by their declarations.
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
            // Declared sizes of outputs are often wrong, such as a batch of 1 for an unknown batch of the
            // inputs.
            let declared = if outermost { declared } else { self.declared_inside(graph, output) };
            let fact = refined(inferred, &declared);
            put(graph, output, fact, changed);
        }
        Ok(())
    }
}

/// Sets a fact, and adds the value to `changed` if it differs from the previous one.
pub(super) fn put(graph: &mut Graph, id: ValueId, fact: Fact, changed: &mut HashSet<ValueId>) {
    if graph.value(id).fact != fact {
        changed.insert(id);
        graph.set_fact(id, fact);
    }
}

/// Returns true if the inferred fact of an output contradicts its declaration. A different type always does.
/// A different shape does only if it is not the one inferred first, i.e. if a change of the graph caused it:
/// files may declare wrong shapes, which ONNX Runtime ignores as well.
fn contradicts(graph: &mut Graph, output: ValueId, inferred: &Fact, declared: &Fact) -> bool {
    let Some(entry) = graph.value_mut(output).declared.as_mut() else { return false };
    let first = entry.computed.get_or_insert_with(|| inferred.clone());
    let changed = inside(first).unify(inside(inferred)).is_none();
    let (inferred, declared) = (inside(inferred), inside(declared));
    inferred.unify(declared).is_none()
        && (changed || without_shape(inferred).unify(&without_shape(declared)).is_none())
}

/// The fact inside an optional. If one branch of an `If` returns none, files declare the type of the other
/// one.
fn inside(fact: &Fact) -> &Fact {
    match fact {
        Fact::Optional(item) => item,
        other => other,
    }
}

/// The declared fact of a value.
fn declared(graph: &Graph, id: ValueId) -> Fact {
    let declared = graph.value(id).declared.as_ref();
    declared.and_then(|d| d.ty.as_ref()).map_or(Fact::Unknown, |ty| sane(ty.fact()))
}

/// Sets the facts of initializers, and adds values with new facts to `changed`.
fn set_constants(graph: &mut Graph, mut changed: HashSet<ValueId>) -> HashSet<ValueId> {
    let ids: Vec<_> = graph.values().collect();
    for id in ids {
        let value = graph.value(id);
        if value.is_captured() {
            continue;
        }
        let Some(data) = &value.data else { continue };
        let fact = sane(data.fact());
        // An initializer that the caller may override has its declared type and unknown elements.
        let fact = if value.is_input() { refined(declared(graph, id), &without_content(fact)) } else { fact };
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

/// The fact without shapes.
fn without_shape(fact: &Fact) -> Fact {
    match fact {
        Fact::Tensor(t) => Fact::Tensor(TensorFact { dtype: t.dtype, ..TensorFact::default() }),
        Fact::Sequence(item) => Fact::Sequence(Box::new(without_shape(item))),
        other => other.clone(),
    }
}

/// The fact without shapes above [`MAX_RANK`] and without negative sizes.
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

/// `fact`, with its unknown parts from `other`. In contradictions, `fact` takes precedence.
pub(super) fn refined(fact: Fact, other: &Fact) -> Fact {
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
        (Fact::Sequence(a), Fact::Sequence(b)) => Fact::Sequence(Box::new(refined(*a, b))),
        (Fact::Optional(a), Fact::Optional(b)) => Fact::Optional(Box::new(refined(*a, b))),
        (fact, _) => fact,
    }
}

/// A declared fact with the unknown sizes of `before`, where both are unknown, to keep the facts that depend
/// on them.
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

/// The fact without symbols: those declared in a subgraph have another value in every iteration and call.
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
