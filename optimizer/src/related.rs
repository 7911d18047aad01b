//! The original in the form in which a result with another interface can be compared with it.

use crate::{Error, runner::Runner};
use pare_graph::{Axis, AxisSize, Graph, Model, TypeKind, ValueId};
use pare_passes::{FreedAxis, InterfaceChange};
use pare_runtime::{FreedPorts, ModelSource, Outcome, ProofReport, Relation};
use std::collections::HashMap;

/// The original, related to a result whose interface changed.
pub(crate) struct Related {
    /// The original with the outputs of the result.
    pub reference: Model,
    /// The part of the original that computes inputs of the result.
    pub between: Option<Model>,
    /// The original with the sizes on which both can run, for samples.
    pub sampled: Model,
    pub freed: Vec<FreedPorts>,
    /// Names of inputs and outputs now, and in the original.
    inputs: Vec<(String, String)>,
    outputs: Vec<(String, String)>,
}

/// The names in the original of values that were renamed.
struct Names(HashMap<String, String>);

impl Names {
    fn original(&self, name: &str) -> String {
        self.0.get(name).map_or(name, |n| n).to_owned()
    }

    fn rename(&mut self, names: &[(String, String)]) {
        let originals: Vec<_> = names.iter().map(|(old, _)| self.original(old)).collect();
        names.iter().for_each(|(old, _)| drop(self.0.remove(old)));
        self.0.extend(names.iter().map(|(_, new)| new.clone()).zip(originals));
    }
}

impl Related {
    /// Relates a result to `original`; an error is the reason why they cannot be compared.
    pub fn of(original: &Model, result: &Model, changes: &[InterfaceChange]) -> Result<Self, String> {
        let (mut names, mut freed) = (Names(HashMap::new()), vec![]);
        for change in changes {
            match change {
                InterfaceChange::Renamed(renamed) => names.rename(renamed),
                InterfaceChange::Freed(axis) => freed.push(ports(axis, &names)),
                _ => {}
            }
        }
        let ports = |graph: &Graph, ids: &[ValueId]| -> Vec<(String, String)> {
            let name = |&v: &ValueId| graph.value(v).name.clone();
            ids.iter().map(name).map(|now| (now.clone(), names.original(&now))).collect()
        };
        let inputs = ports(&result.graph, result.graph.inputs());
        let outputs = ports(&result.graph, result.graph.outputs());

        let is_input =
            |name: &String| original.graph.find(name).is_some_and(|v| original.graph.value(v).is_input());
        let computed: Vec<_> = inputs.iter().map(|(_, o)| o.clone()).filter(|o| !is_input(o)).collect();
        let reference = returning(original, outputs.iter().map(|(_, o)| o.as_str()).collect())?;
        let between = match computed.is_empty() {
            true => None,
            false => Some(returning(original, computed.iter().map(String::as_str).collect())?),
        };
        if let Some((name, _)) = freed.iter().flat_map(|f| &f.inputs).find(|(name, _)| !is_input(name)) {
            return Err(format!("`{name}` is computed by the original with a fixed size"));
        }
        let sampled = sampled(original, result, &inputs, &freed);
        Ok(Self { reference, between, sampled, freed, inputs, outputs })
    }

    pub fn relation(&self, between: Option<ModelSource>) -> Relation {
        Relation {
            inputs: self.inputs.clone(),
            outputs: self.outputs.clone(),
            between,
            freed: self.freed.clone(),
        }
    }

    /// Runs the result at sizes for which there is no reference: half and twice the old one, at least one of
    /// which must run.
    pub fn check_other_sizes(
        &self,
        runner: &Runner<'_>,
        result: &Model,
        report: &mut ProofReport,
    ) -> Result<(), Error> {
        for freed in self.freed.iter().filter(|f| !f.stacked) {
            let (mut ran, mut failure) = (vec![], None);
            for size in [freed.size / 2, freed.size * 2] {
                if size == 0 {
                    continue;
                }
                match runner.run_error(&with_size(result, &freed.symbol, size))? {
                    None => ran.push(size.to_string()),
                    Some(error) => failure = Some(format!("with size {size} of `{}`, {error}", freed.symbol)),
                }
            }
            match failure {
                Some(why) if ran.is_empty() => {
                    report.outcome = Outcome::Differs { output: String::new(), why };
                }
                _ => report.notes.push(format!(
                    "`{}` was compared at its old size {}; at size {} the result runs, without a reference",
                    freed.symbol,
                    freed.size,
                    ran.join(" and ")
                )),
            }
        }
        Ok(())
    }
}

/// The axis with the names of the original.
fn ports(axis: &FreedAxis, names: &Names) -> FreedPorts {
    let original = |ports: &[(String, usize)]| {
        ports.iter().map(|(name, axis)| (names.original(name), *axis)).collect::<Vec<_>>()
    };
    FreedPorts {
        symbol: axis.symbol.clone(),
        size: axis.size,
        inputs: original(&axis.inputs),
        outputs: original(&axis.outputs),
        stacked: axis.related_by.is_none(),
    }
}

/// The model with these outputs.
fn returning(model: &Model, outputs: Vec<&str>) -> Result<Model, String> {
    let mut model = model.clone();
    let graph = &mut model.graph;
    let current: Vec<_> = graph.outputs().iter().map(|&v| graph.value(v).name.clone()).collect();
    if current == outputs {
        return Ok(model);
    }
    let find = |name: &str| {
        let value = graph.find(name).filter(|&v| graph.producer(v).is_some());
        value.ok_or_else(|| format!("the original does not compute `{name}`"))
    };
    let values = outputs.into_iter().map(find).collect::<Result<Vec<_>, _>>()?;
    let old = graph.outputs().to_vec();
    graph.remove_outputs(&old);
    values.into_iter().for_each(|v| graph.add_output(v));
    Ok(model)
}

/// The original with the declared inputs of the result: its sizes are those on which both run. An axis whose
/// positions are related keeps its old size.
fn sampled(original: &Model, result: &Model, inputs: &[(String, String)], freed: &[FreedPorts]) -> Model {
    let mut sampled = original.clone();
    for (now, name) in inputs {
        let (Some(from), Some(to)) = (result.graph.find(now), sampled.graph.find(name)) else { continue };
        let declared = result.graph.value(from).declared.clone();
        // An input with another type has its old sizes.
        let dtype = |graph: &Graph, v| graph.value(v).fact.dtype();
        let same_type = dtype(&result.graph, from) == dtype(&sampled.graph, to);
        let is_typed = declared.as_ref().is_some_and(|d| d.ty.is_some());
        if sampled.graph.value(to).is_input() && is_typed && same_type {
            sampled.graph.set_declared(to, declared);
        }
    }
    for freed in freed.iter().filter(|f| !f.stacked) {
        sampled = with_size(&sampled, &freed.symbol, freed.size);
    }
    // The facts bound the generated indices. Sizes in constants of the original may contradict a freed axis.
    let _ = sampled.infer();
    sampled
}

/// The model with a symbol of its inputs fixed.
fn with_size(model: &Model, symbol: &str, fixed: usize) -> Model {
    let mut model = model.clone();
    for id in model.graph.inputs().to_vec() {
        let Some(mut declared) = model.graph.value(id).declared.clone() else { continue };
        let Some(ty) = declared.ty.as_mut() else { continue };
        let TypeKind::Tensor { shape: Some(shape), .. } = &mut ty.kind else { continue };
        for Axis { size, .. } in shape {
            if *size == AxisSize::Symbol(symbol.to_owned()) {
                *size = AxisSize::Fixed(i64::try_from(fixed).unwrap_or(i64::MAX));
            }
        }
        let fact = ty.fact();
        model.graph.set_declared(id, Some(declared));
        model.graph.set_fact(id, fact);
    }
    model
}
