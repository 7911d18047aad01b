//! The conversion of a model, version by version.

use super::{
    form::Form,
    moves,
    table::{Change, Downwards, adapter},
};
use crate::framework::{Context, Counter};
use pare_graph::{
    Decline, Graph, Model, NodeId, NodeRef, Patch,
    ops::{Schema, newest_opset, schema},
};

/// The oldest version of the standard operator set that is converted. Before it, operators broadcast in
/// another way.
const OLDEST: i64 = 7;

/// Checks that a version is in the range of the conversion.
pub(super) fn validate(to: i64) -> Result<(), String> {
    let newest = newest_opset("").unwrap_or(OLDEST);
    if (OLDEST..=newest).contains(&to) { Ok(()) } else { Err(format!("`to` is from {OLDEST} to {newest}")) }
}

/// Converts the graphs of a model whose version is `affected` to version `to`: all of them, or none, with the
/// reasons as declines.
pub(super) fn change_opset(model: &mut Model, cx: &mut Context<'_>, to: i64, affected: impl Fn(i64) -> bool) {
    let versions: Vec<_> = model.graphs_mut().filter_map(|g| g.opset("")).filter(|&v| affected(v)).collect();
    let Some(&from) = versions.first().filter(|_| !cx.stopped()) else { return };
    let (mut converted, mut conversion) = (model.clone(), Conversion { to, ..Conversion::default() });
    for graph in converted.graphs_mut() {
        match graph.opset("") {
            Some(version) if affected(version) => conversion.graph(graph, version),
            _ => {}
        }
    }
    converted.opsets = converted.graph.opsets.clone();
    converted.ir_version = converted.ir_version.map(|version| version.max(ir_version(to)));
    if conversion.declined.is_empty() {
        conversion.declined.extend(invalid(&mut converted, to));
    }
    if !conversion.declined.is_empty() {
        conversion.declined.into_iter().for_each(|why| cx.decline(why));
    } else if cx.permit() {
        *model = converted;
        let verb = if from < to { "raised" } else { "lowered" };
        cx.report.notes.push(format!("operator set {verb} from {from} to {to}"));
        cx.count(Counter::new("node rewritten", "nodes rewritten"), conversion.rewritten);
    }
}

/// The reason why a converted model is invalid: a type that the operator set does not have, in particular.
fn invalid(model: &mut Model, to: i64) -> Option<String> {
    let says = |why: String| format!("operator set {to} does not allow the result: {why}");
    if let Err(error) = model.check() {
        return Some(says(error.to_string()));
    }
    if let Err(error) = model.infer() {
        return Some(says(error.to_string()));
    }
    model.check().err().map(|error| says(error.to_string()))
}

/// The version of the file format that was current when an operator set was released.
fn ir_version(opset: i64) -> i64 {
    const FIRST: &[(i64, i64)] = &[
        (9, 4),
        (10, 5),
        (11, 6),
        (12, 7),
        (15, 8),
        (19, 9),
        (21, 10),
        (23, 11),
        (24, 12),
        (25, 13),
        (28, 14),
    ];
    FIRST.iter().rev().find(|(first, _)| *first <= opset).map_or(3, |(_, ir)| *ir)
}

/// A change of the operator set by one version.
#[derive(Clone, Copy)]
enum Step {
    /// To this version.
    Up(i64),
    /// From this version.
    Down(i64),
}

#[derive(Default)]
struct Conversion {
    to: i64,
    rewritten: u64,
    declined: Vec<String>,
}

impl Conversion {
    /// Converts a graph that is not a subgraph.
    fn graph(&mut self, graph: &mut Graph, from: i64) {
        let up = (from + 1..=self.to).map(Step::Up);
        let down = (self.to + 1..=from).rev().map(Step::Down);
        for step in up.chain(down) {
            graph.set_opset(match step {
                Step::Up(version) => version,
                Step::Down(version) => version - 1,
            });
            self.step(graph, step);
            // The next step reads the forms that this one should have written.
            if !self.declined.is_empty() {
                return;
            }
        }
    }

    fn step(&mut self, graph: &mut Graph, step: Step) {
        for &id in graph.nodes().iter() {
            if graph.node(id).subgraphs().next().is_some() {
                graph.with_subgraphs(id, |bodies, _| {
                    bodies.iter_mut().for_each(|body| self.step(body, step));
                });
            }
            if graph.node(id).domain().is_empty() {
                self.node(graph, id, step);
            }
        }
    }

    fn node(&mut self, graph: &mut Graph, id: NodeId, step: Step) {
        let patch = match step {
            Step::Up(version) => raised(graph.at(id), version, self.to),
            Step::Down(version) => lowered(graph.at(id), version, self.to),
        };
        let describe = |graph: &Graph| graph.describe(id);
        match patch {
            Ok(patch) => match graph.apply(patch) {
                Ok(_) => self.rewritten += 1,
                Err(error) => self.declined.push(format!("{}: {error}", describe(graph))),
            },
            Err(Decline::Mismatch) => {}
            Err(Decline::Because(why)) => self.declined.push(why),
        }
    }
}

/// The form of a node in operator set `version`; [`Decline::Mismatch`] if it is the same as before.
fn raised(at: NodeRef<'_>, version: i64, to: i64) -> Result<Patch, Decline> {
    if let Some(adapter) = adapter(at.op(), version) {
        return match adapter.change {
            Change::Unchanged => Err(Decline::Mismatch),
            Change::Moved(moves) => moves::to_inputs(Form::of(at, to), moves),
            Change::Rewritten(up, _) => {
                if at.has_references() {
                    return Err(Decline::because(format!(
                        "{} has attributes of a call of its function, so its form in operator set {version} is \
                         unknown; inline the function first",
                        at.describe()
                    )));
                }
                up(Form::of(at, to))
            }
        };
    }
    match (schema("", at.op(), version - 1), schema("", at.op(), version)) {
        (Some(old), Some(new)) if new.since == version && !new.extends(old) => {
            Err(Decline::because(format!("{} has no known form in operator set {version}", at.describe())))
        }
        _ => Err(Decline::Mismatch),
    }
}

/// The form of a node of operator set `version` in the version before.
fn lowered(at: NodeRef<'_>, version: i64, to: i64) -> Result<Patch, Decline> {
    let adapter = adapter(at.op(), version);
    let Some(new) = schema("", at.op(), version).filter(|s| s.since == version || adapter.is_some()) else {
        return Err(Decline::Mismatch);
    };
    let Some(old) = schema("", at.op(), version - 1) else {
        return Err(Decline::because(format!("{} exists since operator set {version}", at.describe())));
    };
    check_types(at, old)?;
    let mut form = Form::of(at, to);
    match adapter.map(|a| a.change) {
        Some(Change::Moved(moves)) => moves::to_attributes(&mut form, moves)?,
        Some(Change::Rewritten(_, Downwards::By(down))) => down(&mut form)?,
        Some(Change::Rewritten(_, Downwards::Never)) => {
            return Err(Decline::because(format!(
                "{} has no form in operator set {}",
                at.describe(),
                version - 1
            )));
        }
        Some(Change::Unchanged | Change::Rewritten(_, Downwards::Defaults)) | None => {}
    }
    without_additions(&mut form, old, new)?;
    form.finish_if_changed()
}

/// Checks that an older version of the operator accepts the types of the node.
fn check_types(at: NodeRef<'_>, old: &Schema) -> Result<(), Decline> {
    let inputs = at.inputs().into_iter().enumerate().map(|(i, value)| (value, old.input(i)));
    let outputs = at.outputs().into_iter().enumerate().map(|(i, value)| (value, old.output(i)));
    for (value, formal) in inputs.chain(outputs) {
        if let (Some(value), Some(formal)) = (value, formal)
            && !formal.types.allows(&value.value().fact)
        {
            let fact = &value.value().fact;
            let name = value.name();
            let why =
                format!("`{name}` is {fact}, which {} does not allow in an older version", at.describe());
            return Err(Decline::because(why));
        }
    }
    Ok(())
}

/// Removes attributes that the version `old` of the operator does not have, and that have their defaults.
fn without_additions(form: &mut Form<'_>, old: &Schema, new: &Schema) -> Result<(), Decline> {
    for attribute in new.attributes.iter().filter(|a| old.attribute(a.name).is_none()) {
        if let Some(value) = form.take(attribute.name)?
            && attribute.default() != Some(value)
        {
            return Err(Decline::because(format!(
                "`{}` of {} exists since operator set {}",
                attribute.name,
                form.at.describe(),
                new.since
            )));
        }
    }
    match old.max_inputs() {
        Some(most) if form.input_count() > most => Err(Decline::because(format!(
            "input {most} of {} exists since operator set {}",
            form.at.describe(),
            new.since
        ))),
        _ => Ok(()),
    }
}
