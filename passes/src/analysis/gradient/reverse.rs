//! The backward pass over the nodes.

use super::{
    Differentiated, GradientError, OPSET, carries, rules,
    step::Step,
    term::{Tape, Term},
};
use indexmap::{IndexMap, IndexSet};
use pare_graph::{Declared, Decline, Dim, Graph, Model, Node, NodeId, Type, ValueId, ValueRef};
use std::collections::{HashMap, HashSet};

pub(super) fn differentiate(
    model: &Model,
    loss: &str,
    parameters: &[String],
    units: &super::Units,
) -> Result<Differentiated, GradientError> {
    let version = model.graph.opset("").unwrap_or(1);
    if version < OPSET {
        return Err(GradientError::Opset { version });
    }
    let mut model = model.clone();
    let mut parameters = free(&mut model.graph, parameters)?;
    let units = |v: &ValueId| units.get(&model.graph.value(*v).name);
    parameters.retain(|v| units(v).is_none_or(|units| !units.is_empty()));
    // The terms of several uses would not have the same units.
    let partial = parameters.iter().filter(|v| model.graph.use_count(**v) == 1);
    let partial: HashMap<_, _> = partial.filter_map(|v| Some((*v, units(v)?.clone()))).collect();
    model.infer()?;
    let loss = scalar_output(&model.graph, loss)?;
    let nodes = model.graph.nodes();
    let active = active(&model.graph, &nodes, &parameters);
    let tape = Tape::new(std::mem::take(&mut model.graph));
    let terms = HashMap::new();
    let mut backward = Backward { tape: &tape, active, units: partial, terms, stopped: IndexSet::new() };
    backward.run(loss, &nodes);
    let gradients = backward.outputs(&parameters);
    let stopped = backward.stopped.into_iter().collect();
    model.graph = tape.finish();
    model.graph.sweep();
    model.infer()?;
    Ok(Differentiated { model, gradients, stopped })
}

/// Makes the parameters inputs.
fn free(graph: &mut Graph, names: &[String]) -> Result<Vec<ValueId>, GradientError> {
    let mut found = IndexSet::new();
    for name in names {
        let missing = || GradientError::NotInitializer(name.clone());
        let id = graph.find(name).ok_or_else(missing)?;
        if found.contains(&id) {
            continue;
        }
        let dtype = graph.value(id).data.as_ref().and_then(|data| data.fact().dtype());
        match dtype.filter(|_| !graph.value(id).is_captured()) {
            Some(dtype) if carries(dtype) => drop(graph.free_initializer(id)),
            Some(dtype) => return Err(GradientError::NotFloat { name: name.clone(), dtype }),
            None => return Err(missing()),
        }
        found.insert(id);
    }
    Ok(found.into_iter().collect())
}

/// The output with this name, which holds one number.
fn scalar_output(graph: &Graph, name: &str) -> Result<ValueId, GradientError> {
    let id = graph.find(name).filter(|id| graph.outputs().contains(id));
    let id = id.ok_or_else(|| GradientError::NoOutput(name.to_owned()))?;
    let fact = &graph.value(id).fact;
    let is_one = fact.shape().is_some_and(|dims| dims.iter().all(|dim| *dim == Dim::from(1_i64)));
    if is_one && fact.dtype().is_some_and(carries) {
        return Ok(id);
    }
    Err(GradientError::NotScalar { name: name.to_owned(), fact: fact.to_string() })
}

/// The values that depend on a parameter and have a gradient.
fn active(graph: &Graph, nodes: &[NodeId], parameters: &[ValueId]) -> HashSet<ValueId> {
    let mut active: HashSet<_> = parameters.iter().copied().collect();
    for &node in nodes {
        if graph.operands(node).any(|v| active.contains(&v)) {
            let outputs: Vec<_> = graph.results(node).collect();
            active.extend(outputs.into_iter().filter(|&v| has_gradient(graph.value_ref(v))));
        }
    }
    active
}

/// Returns true if a value may have a gradient: floating-point numbers, and their rounded form between
/// `QuantizeLinear` and `DequantizeLinear`.
fn has_gradient(value: ValueRef<'_>) -> bool {
    value.dtype().is_some_and(carries) || value.produced_by("QuantizeLinear").is_ok()
}

struct Backward<'t> {
    tape: &'t Tape,
    active: HashSet<ValueId>,
    /// The units of a gradient, where others are left out.
    units: HashMap<ValueId, Vec<usize>>,
    /// The terms of the gradient of each value, one for each use.
    terms: HashMap<ValueId, Vec<ValueId>>,
    stopped: IndexSet<String>,
}

impl<'t> Backward<'t> {
    fn run(&mut self, loss: ValueId, nodes: &[NodeId]) {
        if !self.active.contains(&loss) {
            return;
        }
        let loss_term = self.tape.term(loss);
        let ones = vec![1; loss_term.rank().unwrap_or(0)];
        self.tape.name_after(self.tape.read(|graph| format!("{}_gradient", graph.value(loss).name)));
        self.terms.insert(loss, vec![loss_term.numbers(&ones, &[1.0]).id]);
        for &node in nodes.iter().rev() {
            self.visit(node);
        }
    }

    /// The gradient of a value: the sum of its terms.
    fn gradient(&mut self, value: ValueId) -> Option<Term<'t>> {
        let terms = self.terms.remove(&value)?;
        let terms: Vec<_> = terms.into_iter().map(|id| self.tape.term(id)).collect();
        let sum = self.tape.sum(&terms)?;
        self.terms.insert(value, vec![sum.id]);
        Some(sum)
    }

    fn visit(&mut self, node: NodeId) {
        let (inputs, outputs, captured, describe, hint) = self.tape.read(|graph| {
            let outputs = graph.outputs_of(node);
            let hint = outputs.iter().flatten().next().map(|&v| format!("{}_gradient", graph.value(v).name));
            let (inputs, captured) = (graph.inputs_of(node), graph.captured_by(node));
            (inputs, outputs, captured, graph.describe(node), hint.unwrap_or_default())
        });
        let wanted: Vec<_> = inputs.iter().map(|v| v.is_some_and(|v| self.active.contains(&v))).collect();
        let captures = captured.iter().any(|v| self.active.contains(v));
        if !captures && !wanted.contains(&true) {
            return;
        }
        self.tape.name_after(hint);
        let gradients: Vec<_> =
            outputs.iter().map(|v| v.and_then(|v| self.gradient(v)).map(|term| term.id)).collect();
        if gradients.iter().all(Option::is_none) {
            return;
        }
        let rule = self.tape.read(|graph| rules::of(graph.at(node), captures));
        let units = inputs.iter().map(|v| v.and_then(|v| self.units.get(&v).cloned())).collect();
        let step = Step::new(self.tape, node, gradients, wanted, units);
        let result = rule.and_then(|rule| rule(&step));
        let given = step.finish();
        match result {
            Ok(()) => {
                for (value, gradient) in given.gradients {
                    self.terms.entry(value).or_default().push(gradient);
                }
                given.declined.into_iter().for_each(|why| self.stop(&describe, why));
            }
            Err(why) => self.stop(&describe, why),
        }
    }

    fn stop(&mut self, describe: &str, why: Decline) {
        self.stopped.insert(match why {
            Decline::Because(why) if why.contains(describe) => why,
            Decline::Because(why) => format!("{describe}: {why}"),
            Decline::Mismatch => format!("{describe} has a form without a gradient"),
        });
    }

    /// Adds the gradients of the parameters to the outputs.
    fn outputs(&mut self, parameters: &[ValueId]) -> IndexMap<String, String> {
        let mut names = IndexMap::new();
        for &parameter in parameters {
            let (name, hint) = self.tape.read(|graph| {
                let name = graph.value(parameter).name.clone();
                let hint = format!("{name}_gradient");
                (name, hint)
            });
            self.tape.name_after(hint.clone());
            let Some(gradient) = self.gradient(parameter) else { continue };
            let is_shared = self.tape.read(|graph| {
                let value = graph.value(gradient.id);
                value.is_output() || graph.producer(gradient.id).is_none()
            });
            let id =
                if is_shared { self.tape.node(Node::new("Identity"), &[gradient]).id } else { gradient.id };
            let mut graph = self.tape.graph_mut();
            // Some units only have a shape of their own.
            let of = if self.units.contains_key(&parameter) { id } else { parameter };
            let fact = graph.value(of).fact.clone();
            let mut declared = Declared::default();
            declared.ty = Type::of(&fact);
            graph.set_fact(id, fact);
            graph.set_declared(id, Some(declared));
            graph.add_output(id);
            if graph.value(id).name != hint {
                let fresh = graph.fresh_name(&hint);
                // The name is fresh, so the value takes it.
                let _ = graph.rename_value(id, &fresh);
            }
            names.insert(name, graph.value(id).name.clone());
        }
        names
    }
}
