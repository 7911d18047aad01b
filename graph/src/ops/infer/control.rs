//! Control flow: `If`, `Loop`, `Scan`, `SequenceMap`. Bodies are inferred with the facts of captured values.

use super::{
    InferError,
    cx::tensor,
    dims::{self, Widen, common},
    engine::{Engine, put, refined},
};
use crate::{Attribute, Constant, DataType, Dim, Fact, Graph, NodeId, ValueId};
use std::collections::HashSet;

/// The number of rounds in which loop-carried facts are generalized, before the remaining ones become
/// unknown.
const MAX_ROUNDS: usize = 4;

impl Engine<'_> {
    /// The facts of the outputs of a node with subgraphs. Sets the facts inside the subgraphs.
    pub fn control(&mut self, graph: &mut Graph, id: NodeId) -> Result<Option<Vec<Fact>>, InferError> {
        let op = if graph.node(id).domain().is_empty() { graph.node(id).op.clone() } else { String::new() };
        let inputs = graph.inputs_of(id);
        let facts: Vec<Fact> =
            inputs.iter().map(|v| v.map(|v| graph.value(v).fact.clone()).unwrap_or_default()).collect();
        let outputs = graph.outputs_of(id).len();
        let condition = |slot: usize| {
            let value = inputs.get(slot).copied().flatten();
            value.map(|v| {
                let constant = graph.value_ref(v).constant_ints().ok().and_then(|c| c.first().copied());
                // Content that follows from shapes is constant.
                let content = graph.value(v).fact.content();
                constant.or_else(|| content.and_then(<[Dim]>::first).and_then(Dim::known))
            })
        };
        let (first, second) = (condition(0), condition(1));
        // The attributes are taken out to mutate bodies while their graph is borrowed. No edge changes.
        let mut attributes = std::mem::take(&mut graph.node_mut(id).attributes);
        let ints = |name: &str| match attributes.get(name) {
            Some(Attribute::Ints(v)) => v.clone(),
            _ => vec![],
        };
        let scan = Scan {
            count: match attributes.get("num_scan_inputs") {
                Some(Attribute::Int(n)) => usize::try_from(*n).unwrap_or(0),
                _ => 0,
            },
            input_axes: ints("scan_input_axes"),
            output_axes: ints("scan_output_axes"),
            batched: graph.opset("").is_some_and(|v| v < 9),
        };
        let names: Vec<bool> =
            attributes.iter().filter(|a| !a.1.graphs().is_empty()).map(|a| a.0 == "then_branch").collect();
        let mut bodies: Vec<&mut Graph> = attributes.values_mut().flat_map(Attribute::graphs_mut).collect();
        let changed: Vec<_> = bodies.iter_mut().map(|body| capture(body, graph)).collect();
        let lenient = std::mem::replace(&mut self.lenient, true);
        let result = match (op.as_str(), bodies.as_mut_slice()) {
            ("If", bodies) if bodies.len() == 2 => self.branches(bodies, changed, &names, first.flatten()),
            ("Loop", [body]) => {
                let starts_true = second.is_none_or(|c| c == Some(1));
                self.repeat(body, &facts, outputs, &changed[0], starts_true)
            }
            ("Scan", [body]) => self.scan(body, &facts, outputs, &changed[0], &scan),
            ("SequenceMap", [body]) => self.map(body, &facts, &changed[0]),
            (_, bodies) => {
                let run = || {
                    for (body, changed) in bodies.iter_mut().zip(changed) {
                        self.nested(body, &[], changed)?;
                    }
                    Ok(None)
                };
                run()
            }
        };
        self.lenient = lenient;
        graph.node_mut(id).attributes = attributes;
        result
    }

    /// `If`: the common facts of both branches, or those of one branch if the condition is constant.
    fn branches(
        &mut self,
        bodies: &mut [&mut Graph],
        changed: Vec<HashSet<ValueId>>,
        is_then: &[bool],
        condition: Option<i64>,
    ) -> Result<Option<Vec<Fact>>, InferError> {
        let mut results = vec![];
        for (body, changed) in bodies.iter_mut().zip(changed) {
            results.push(self.nested(body, &[], changed)?);
        }
        let chosen = condition.and_then(|c| is_then.iter().position(|&then| then == (c != 0)));
        Ok(Some(match chosen {
            Some(branch) => results.swap_remove(branch),
            None => results[0].iter().zip(&results[1]).map(|(a, b)| common(a, b)).collect(),
        }))
    }

    /// Infers a body repeatedly until the facts of the loop-carried values hold in every iteration. `inputs`
    /// maps these facts to those of all inputs of the body, where carried values begin at `first_input`; among
    /// its outputs, they begin at `first_output`.
    ///
    /// Exporters declare the sizes of the first iteration. So these hold only if no carried value changes.
    fn fixed_point(
        &mut self,
        body: &mut Graph,
        mut carried: Vec<Fact>,
        (first_input, first_output): (usize, usize),
        changed: &HashSet<ValueId>,
        inputs: impl Fn(&[Fact]) -> Vec<Fact>,
    ) -> Result<FixedPoint, InferError> {
        for (fact, &input) in carried.iter_mut().zip(body.inputs().iter().skip(first_input)) {
            *fact = refined(std::mem::take(fact), &self.declared_inside(body, input));
        }
        let trusting = self.trusting;
        let result = self.widened(body, carried, first_output, changed, inputs);
        self.trusting = trusting;
        result
    }

    fn widened(
        &mut self,
        body: &mut Graph,
        mut carried: Vec<Fact>,
        first_output: usize,
        changed: &HashSet<ValueId>,
        inputs: impl Fn(&[Fact]) -> Vec<Fact>,
    ) -> Result<FixedPoint, InferError> {
        let mut widen = Widen::default();
        for round in 0.. {
            let outputs = self.nested(body, &inputs(&carried), changed.clone())?;
            widen.changed = false;
            let of_body = |i: usize| outputs.get(first_output + i).unwrap_or(&Fact::Unknown);
            let next: Vec<_> =
                carried.iter().enumerate().map(|(i, fact)| widen.fact(fact, of_body(i))).collect();
            if !widen.changed {
                return Ok(FixedPoint { widen, carried, outputs });
            }
            self.trusting = false;
            carried = match round {
                ..MAX_ROUNDS => next,
                // Valid loops do not change element types.
                MAX_ROUNDS => {
                    next.iter().map(|f| f.dtype().map_or(Fact::Unknown, |d| tensor(Some(d), None))).collect()
                }
                _ => vec![Fact::Unknown; next.len()],
            };
        }
        unreachable!("facts that are unknown cannot change")
    }

    /// `Loop`: inputs are the trip count, the condition and carried values; the body returns the condition,
    /// carried values, and scan outputs, which are stacked over the iterations.
    fn repeat(
        &mut self,
        body: &mut Graph,
        facts: &[Fact],
        outputs: usize,
        changed: &HashSet<ValueId>,
        starts_true: bool,
    ) -> Result<Option<Vec<Fact>>, InferError> {
        let carried = facts.get(2..).unwrap_or_default().to_vec();
        let n = carried.len();
        let scalar = |dtype| Fact::tensor(dtype, vec![]);
        let inputs =
            |carried: &[Fact]| [&[scalar(DataType::Int64), scalar(DataType::Bool)][..], carried].concat();
        let FixedPoint { widen, carried, outputs: results } =
            self.fixed_point(body, carried, (2, 1), changed, inputs)?;
        let runs_all = starts_true && body.outputs().first().is_some_and(|&v| stays_true(body, v));
        let count = facts.first().and_then(Fact::content).and_then(<[Dim]>::first);
        let count = count.filter(|c| runs_all && c.at_least(0)).cloned().unwrap_or_else(Dim::unknown);
        let stacked = |fact: &Fact| {
            let shape = fact.shape().map(|s| [std::slice::from_ref(&count), s].concat());
            tensor(fact.dtype(), shape)
        };
        let scans = results.get(1 + n..).unwrap_or_default().iter().map(stacked);
        Ok(Some(carried.iter().map(|f| widen.outside(f)).chain(scans).take(outputs).collect()))
    }

    /// `Scan`: inputs are states and tensors that are scanned along an axis; the body returns states and scan
    /// outputs. Before operator set 9, all of them have a leading batch axis.
    fn scan(
        &mut self,
        body: &mut Graph,
        facts: &[Fact],
        outputs: usize,
        changed: &HashSet<ValueId>,
        scan: &Scan,
    ) -> Result<Option<Vec<Fact>>, InferError> {
        let given = if scan.batched { facts.get(1..).unwrap_or_default() } else { facts };
        let states = given.len().saturating_sub(scan.count);
        let mut batch = Dim::unknown();
        let mut length = Dim::unknown();
        let mut cut = |fact: &Fact, axis: Option<i64>| {
            let mut shape = fact.shape()?.to_vec();
            if scan.batched && !shape.is_empty() {
                batch = shape.remove(0);
            }
            if let Some(axis) = axis {
                let axis = dims::axis(axis, shape.len()).ok()?;
                let size = shape.remove(axis);
                length = length.unify(&size).unwrap_or(size);
            }
            Some(shape)
        };
        let mut elements = vec![];
        for (i, fact) in given[states..].iter().enumerate() {
            let axis = scan.input_axes.get(i).copied().unwrap_or(0);
            elements.push(tensor(fact.dtype(), cut(fact, Some(axis))));
        }
        let carried = given[..states].iter().map(|f| tensor(f.dtype(), cut(f, None))).collect();
        let inputs = |carried: &[Fact]| [carried, &elements].concat();
        let FixedPoint { widen, carried, outputs: results } =
            self.fixed_point(body, carried, (0, 0), changed, inputs)?;
        let lead: Vec<Dim> = if scan.batched { vec![batch] } else { vec![] };
        let batched = |fact: &Fact| tensor(fact.dtype(), fact.shape().map(|s| [&lead, s].concat()));
        let stacked = |(i, fact): (usize, &Fact)| {
            let shape = fact.shape().and_then(|s| {
                let axis = scan.output_axes.get(i).copied().unwrap_or(0);
                let mut shape = s.to_vec();
                shape.insert(dims::axis(axis, s.len() + 1).ok()?, length.clone());
                Some([lead.as_slice(), &shape].concat())
            });
            tensor(fact.dtype(), shape)
        };
        let states_out = carried.iter().map(|f| batched(&widen.outside(f)));
        let scans = results.get(states..).unwrap_or_default().iter().enumerate().map(stacked);
        Ok(Some(states_out.chain(scans).take(outputs).collect()))
    }

    /// `SequenceMap`: the body maps the elements of sequences.
    fn map(
        &mut self,
        body: &mut Graph,
        facts: &[Fact],
        changed: &HashSet<ValueId>,
    ) -> Result<Option<Vec<Fact>>, InferError> {
        let element = |fact: &Fact| match fact {
            Fact::Sequence(item) => item.as_ref().clone(),
            other => other.clone(),
        };
        let inputs: Vec<_> = facts.iter().map(element).collect();
        let results = self.nested(body, &inputs, changed.clone())?;
        let sequence =
            |fact: Fact| Fact::Sequence(Box::new(tensor(fact.dtype(), fact.shape().map(<[Dim]>::to_vec))));
        Ok(Some(results.into_iter().map(sequence).collect()))
    }
}

/// Facts that hold in every iteration of a loop.
struct FixedPoint {
    widen: Widen,
    /// Facts of the loop-carried values.
    carried: Vec<Fact>,
    /// Facts of all outputs of the body.
    outputs: Vec<Fact>,
}

/// Attributes of `Scan`.
struct Scan {
    count: usize,
    input_axes: Vec<i64>,
    output_axes: Vec<i64>,
    batched: bool,
}

/// Copies the facts and constants of captured values into a body. Returns the values with new facts.
fn capture(body: &mut Graph, outer: &Graph) -> HashSet<ValueId> {
    let mut changed = HashSet::new();
    for id in body.captures() {
        let Some(own) = outer.find(&body.value(id).name) else { continue };
        let fact = outer.value(own).fact.clone();
        body.value_mut(id).data = outer.value_ref(own).constant().ok().cloned().map(Constant::Dense);
        put(body, id, fact, &mut changed);
    }
    changed
}

/// Returns true if the condition that a loop body returns is always true: a constant, or its own input.
fn stays_true(body: &Graph, condition: ValueId) -> bool {
    let mut value = body.value_ref(condition);
    if value.constant_ints().is_ok_and(|c| c.first() == Some(&1)) {
        return true;
    }
    for _ in 0..8 {
        if Some(&value.id) == body.inputs().get(1) {
            return true;
        }
        let source =
            value.producer().filter(|at| at.is("Identity") || at.is("Cast")).and_then(|at| at.input(0).ok());
        match source {
            Some(source) => value = source,
            None => return false,
        }
        if value.constant_ints().is_ok_and(|c| c.first() == Some(&1)) {
            return true;
        }
    }
    false
}
