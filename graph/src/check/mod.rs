//! Is a model sound? Structure, then every node against the schema of its operator, in all nested graphs.
//!
//! The rules are those of the ONNX checker where ONNX Runtime shares them. Where that is lenient, so is this: nodes
//! may stand in any order, subgraphs may repeat names that are not yet taken where they stand, and a function
//! nobody calls may use operators nobody knows.

mod error;
mod functions;
mod operator;

pub use error::{CheckError, Fault, nearest};
pub(crate) use functions::Functions;

use crate::{Graph, Model, NodeId, ValueId, ops::newest_opset};
use std::collections::HashSet;

/// No sound model nests its subgraphs deeper.
const MAX_DEPTH: usize = 100;

impl Graph {
    /// Check a graph that stands in no other, with its subgraphs. Nodes of an imported domain that the standard
    /// does not describe pass; [`Model::check`] knows which of them call functions.
    pub fn check(&self) -> Result<(), CheckError> {
        Checker::new(&Functions::default(), true).graph(self)
    }
}

impl Model {
    /// Check the main graph and the bodies of all functions.
    pub fn check(&self) -> Result<(), CheckError> {
        let functions = Functions::of(self)?;
        let called = functions.called_from(&self.graph);
        Checker::new(&functions, true).graph(&self.graph)?;
        for (i, function) in self.functions.iter().enumerate() {
            let mut checker = Checker::new(&functions, called.contains(&i));
            checker.within.push(format!("the function `{}`", function.name));
            checker.graph(&function.body)?;
        }
        Ok(())
    }
}

/// Operators of a set that the table does not describe could mean anything.
fn known_opsets(graph: &Graph) -> Result<(), Fault> {
    for (domain, version) in graph.opsets.iter() {
        match newest_opset(domain) {
            Some(newest) if *version > newest || *version < 1 => {
                let domain = if domain.is_empty() { "ai.onnx" } else { domain };
                return Err(Fault::UnknownOpset { domain: domain.into(), version: *version, newest });
            }
            _ => {}
        }
    }
    Ok(())
}

/// A walk through a graph and its subgraphs.
struct Checker<'m> {
    functions: &'m Functions<'m>,
    /// Whether nodes are held against their schemas.
    operators: bool,
    /// The graphs around the one under check, outermost first, in words.
    within: Vec<String>,
    /// Names that are taken by the graphs around, each graph's own.
    outer: Vec<HashSet<&'m str>>,
}

impl<'m> Checker<'m> {
    fn new(functions: &'m Functions<'m>, operators: bool) -> Self {
        Self { functions, operators, within: vec![], outer: vec![] }
    }

    fn fail(&self, fault: Fault) -> CheckError {
        CheckError { fault: fault.into(), within: self.within.iter().rev().cloned().collect() }
    }

    fn graph(&mut self, graph: &'m Graph) -> Result<(), CheckError> {
        if self.outer.len() > MAX_DEPTH {
            return Err(self.fail(Fault::TooDeep(MAX_DEPTH)));
        }
        known_opsets(graph).and_then(|()| self.structure(graph)).map_err(|fault| self.fail(fault))?;
        let order = graph.nodes();
        let nests = |id: NodeId| graph.node(id).subgraphs().next().is_some();
        let names = |v: ValueId| graph.value(v).name.as_str();
        // What a subgraph must not name again: what is given, and what nodes before it make.
        let mut taken = HashSet::new();
        if order.iter().any(|&id| nests(id)) {
            taken.extend(graph.values().filter(|&v| graph.producer(v).is_none()).map(names));
        }
        for &id in order.iter() {
            self.node(graph, id).map_err(|fault| self.fail(fault))?;
            if nests(id) {
                self.outer.push(taken);
                self.subgraphs(graph, id)?;
                taken = self.outer.pop().unwrap_or_default();
            }
            if !taken.is_empty() {
                taken.extend(graph.outputs_of(id).into_iter().flatten().map(names));
            }
        }
        Ok(())
    }

    fn subgraphs(&mut self, graph: &'m Graph, id: NodeId) -> Result<(), CheckError> {
        for (name, attribute) in &graph.node(id).attributes {
            for subgraph in attribute.graphs() {
                self.within.push(format!("`{name}` of {}", graph.describe(id)));
                self.graph(subgraph)?;
                self.within.pop();
            }
        }
        Ok(())
    }

    fn node(&self, graph: &Graph, id: NodeId) -> Result<(), Fault> {
        let at = graph.at(id);
        for output in at.outputs().into_iter().flatten() {
            if self.outer.iter().any(|names| names.contains(output.name())) {
                return Err(Fault::Shadowing { node: at.describe(), value: output.name().into() });
            }
        }
        match self.functions.place(at) {
            _ if !self.operators => Ok(()),
            Some(place) => functions::check_call(at, self.functions.get(place)),
            None => operator::check(at),
        }
    }

    /// Every value is made once, by what the graph says makes it, and before it is used.
    fn structure(&self, graph: &Graph) -> Result<(), Fault> {
        let top = self.outer.is_empty();
        check_boundary(graph, top)?;
        for id in graph.values() {
            let value = graph.value(id);
            // Names are looked up in all of memory, so this takes as long as the rest together.
            if cfg!(debug_assertions) && graph.find(&value.name) != Some(id) {
                return Err(Fault::Unsound(value.name.clone()));
            }
            let given = match () {
                () if value.is_captured() => Some("an outer graph"),
                () if value.is_input() => Some("the graph's inputs"),
                () if value.data.is_some() => Some("an initializer"),
                () => None,
            };
            match (graph.producer(id), given) {
                (Some((node, _)), Some(first)) => {
                    let (value, first) = (value.name.clone(), first.into());
                    return Err(Fault::MultipleProducers { value, first, second: graph.describe(node) });
                }
                (None, None) => undefined(graph, id)?,
                (None, Some(_)) if value.is_captured() && top => undefined(graph, id)?,
                _ => {}
            }
        }
        let order = graph.nodes();
        for &id in order.iter() {
            for (slot, output) in graph.outputs_of(id).into_iter().enumerate() {
                let Some(output) = output else { continue };
                if let Some(first) = graph.producer(output).filter(|&made| made != (id, slot)) {
                    let (value, first) = (graph.value(output).name.clone(), graph.describe(first.0));
                    return Err(Fault::MultipleProducers { value, first, second: graph.describe(id) });
                }
            }
        }
        if order.len() == graph.node_count() { Ok(()) } else { Err(Fault::Cycle(cycle(graph))) }
    }
}

/// The lists of inputs and outputs say the same as the values; what an output names is made.
fn check_boundary(graph: &Graph, top: bool) -> Result<(), Fault> {
    let mut seen = HashSet::new();
    for &id in graph.inputs() {
        let name = || graph.value(id).name.clone();
        if !graph.has_value(id) {
            return Err(Fault::Unsound("inputs".into()));
        }
        if !seen.insert(id) {
            return Err(Fault::InputTwice(name()));
        }
        if !graph.value(id).is_input() {
            return Err(Fault::Unsound(name()));
        }
    }
    for &id in graph.outputs() {
        if !graph.has_value(id) {
            return Err(Fault::Unsound("outputs".into()));
        }
        let value = graph.value(id);
        let made = graph.producer(id).is_some() || value.is_input() || value.data.is_some();
        match () {
            () if !value.is_output() => return Err(Fault::Unsound(value.name.clone())),
            () if value.is_captured() && !top => return Err(Fault::OutputOfOuterGraph(value.name.clone())),
            () if value.is_captured() || !made => return Err(Fault::OutputNoProducer(value.name.clone())),
            () => {}
        }
    }
    Ok(())
}

/// A value that nothing makes must not be used.
fn undefined(graph: &Graph, id: ValueId) -> Result<(), Fault> {
    match graph.users(id).first() {
        Some(&(user, _)) => {
            Err(Fault::Undefined { value: graph.value(id).name.clone(), user: graph.describe(user) })
        }
        None => Ok(()),
    }
}

/// The nodes of one cycle, in words, in the order in which they need each other.
fn cycle(graph: &Graph) -> Vec<String> {
    let rest = graph.unordered_nodes();
    let stuck: HashSet<_> = rest.iter().copied().collect();
    let needs = |id: NodeId| {
        let used = graph.inputs_of(id).into_iter().flatten().chain(graph.captured_by(id));
        used.filter_map(|v| graph.producer(v)).map(|p| p.0).find(|p| stuck.contains(p))
    };
    let mut nodes = rest.first().map(|&start| circle(start, needs)).unwrap_or_default();
    nodes.reverse();
    nodes.into_iter().map(|id| graph.describe(id)).collect()
}

/// The circle that a walk along `next` ends up in.
fn circle<T: Copy + Eq + std::hash::Hash>(start: T, next: impl Fn(T) -> Option<T>) -> Vec<T> {
    let (mut path, mut seen, mut here) = (vec![], HashSet::new(), start);
    while seen.insert(here) {
        path.push(here);
        match next(here) {
            Some(there) => here = there,
            None => return vec![],
        }
    }
    path.into_iter().skip_while(|&step| step != here).collect()
}

#[cfg(test)]
mod tests;
