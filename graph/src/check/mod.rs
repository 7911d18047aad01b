//! Validation of models: the structure, and every node against the schema of its operator, in all nested
//! graphs.
//!
//! The rules are those of the ONNX checker as far as ONNX Runtime enforces them. Nodes may be in any order,
//! subgraphs may reuse names that are defined later in outer graphs, and functions that are not called may
//! use unknown operators.

mod error;
mod operator;

pub use error::{CheckError, Fault, nearest};

use crate::{
    Function, Graph, Model, NodeId, NodeRef, ValueId,
    functions::{Functions, FunctionsError, find_cycle},
    ops::newest_opset,
};
use operator::check_count;
use std::collections::HashSet;

/// Limit of the depth of subgraphs.
const MAX_DEPTH: usize = 100;

impl Graph {
    /// Checks a graph that is not a subgraph, and its subgraphs. Nodes of imported nonstandard domains are
    /// valid; [`Model::check`] also checks calls of functions.
    ///
    /// # Errors
    ///
    /// The first fault found.
    pub fn check(&self) -> Result<(), CheckError> {
        Checker::new(&Functions::default(), true).graph(self)
    }
}

impl Model {
    /// Checks the main graph and the bodies of all functions.
    ///
    /// # Errors
    ///
    /// The first fault found.
    pub fn check(&self) -> Result<(), CheckError> {
        let functions = Functions::of(self).map_err(|error| {
            let fault = match error {
                FunctionsError::Duplicate(name) => Fault::FunctionTwice(name),
                FunctionsError::Recursion(names) => Fault::Recursion(names),
            };
            CheckError { fault: fault.into(), within: vec![] }
        })?;
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

/// Checks that the operator sets are in the schema table.
fn check_opsets(graph: &Graph) -> Result<(), Fault> {
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

/// Traversal of a graph and its subgraphs.
struct Checker<'m> {
    functions: &'m Functions<'m>,
    /// True if nodes are checked against their schemas.
    operators: bool,
    /// Descriptions of the enclosing graphs, outermost first.
    within: Vec<String>,
    /// Names defined by each of the enclosing graphs.
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
        check_opsets(graph).and_then(|()| self.structure(graph)).map_err(|fault| self.fail(fault))?;
        let order = graph.nodes();
        let nests = |id: NodeId| graph.node(id).subgraphs().next().is_some();
        let names = |v: ValueId| graph.value(v).name.as_str();
        // The names that a subgraph must not define: inputs, initializers, and outputs of previous nodes.
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
                taken.extend(graph.results(id).map(names));
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
        match self.functions.index(at) {
            _ if !self.operators => Ok(()),
            Some(index) => check_call(at, self.functions.get(index)),
            None => operator::check(at),
        }
    }

    /// Checks that every value has exactly one producer.
    fn structure(&self, graph: &Graph) -> Result<(), Fault> {
        let top = self.outer.is_empty();
        check_boundary(graph, top)?;
        for id in graph.values() {
            let value = graph.value(id);
            // Looking up names takes as long as all other checks.
            if cfg!(debug_assertions) && graph.find(&value.name) != Some(id) {
                return Err(Fault::Unsound(value.name.clone()));
            }
            let source = match () {
                () if value.is_captured() => Some("an outer graph"),
                () if value.is_input() => Some("the graph's inputs"),
                () if value.data.is_some() => Some("an initializer"),
                () => None,
            };
            match (graph.producer(id), source) {
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
                if let Some(first) = graph.producer(output).filter(|&producer| producer != (id, slot)) {
                    let (value, first) = (graph.value(output).name.clone(), graph.describe(first.0));
                    return Err(Fault::MultipleProducers { value, first, second: graph.describe(id) });
                }
            }
        }
        if order.len() == graph.node_count() { Ok(()) } else { Err(Fault::Cycle(cycle(graph))) }
    }
}

/// Checks that a call has at most as many inputs and outputs as the function; trailing ones may be omitted.
fn check_call(at: NodeRef<'_>, function: &Function) -> Result<(), Fault> {
    let domain = at.node().domain();
    if at.graph.opset(domain).is_none() {
        return Err(Fault::NotImported { node: at.describe(), domain: domain.into() });
    }
    let (inputs, outputs) = (function.body.inputs().len(), function.body.outputs().len());
    check_count(|| at.describe(), "input", at.inputs().len(), 0, Some(inputs))?;
    check_count(|| at.describe(), "output", at.outputs().len(), 0, Some(outputs))
}

/// Checks that inputs and outputs are consistent with the values, and that outputs have producers.
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
        let has_source = graph.producer(id).is_some() || value.is_input() || value.data.is_some();
        match () {
            () if !value.is_output() => return Err(Fault::Unsound(value.name.clone())),
            () if value.is_captured() && !top => return Err(Fault::OutputOfOuterGraph(value.name.clone())),
            () if value.is_captured() || !has_source => {
                return Err(Fault::OutputNoProducer(value.name.clone()));
            }
            () => {}
        }
    }
    Ok(())
}

/// Checks that a value without producer is unused.
fn undefined(graph: &Graph, id: ValueId) -> Result<(), Fault> {
    match graph.users(id).first() {
        Some(&(user, _)) => {
            Err(Fault::Undefined { value: graph.value(id).name.clone(), user: graph.describe(user) })
        }
        None => Ok(()),
    }
}

/// Descriptions of the nodes of a cycle, producers first.
fn cycle(graph: &Graph) -> Vec<String> {
    let unordered = graph.unordered_nodes();
    let set: HashSet<_> = unordered.iter().copied().collect();
    let dependency = |id: NodeId| {
        graph.operands(id).filter_map(|v| graph.producer(v)).map(|p| p.0).find(|p| set.contains(p))
    };
    let mut nodes = unordered.first().map(|&start| find_cycle(start, dependency)).unwrap_or_default();
    nodes.reverse();
    nodes.into_iter().map(|id| graph.describe(id)).collect()
}

#[cfg(test)]
mod tests;
