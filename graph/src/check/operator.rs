//! Validation of a node against the schema of its operator.

use super::{Fault, error::nearest};
use crate::{
    DataType, Fact, NodeRef, ValueRef,
    ops::{self, Arity, AttributeKind, Formal, Schema},
};

/// ONNX Runtime imports these domains implicitly, and models rely on that.
fn is_always_imported(domain: &str) -> bool {
    matches!(domain, "ai.onnx.ml" | "ai.onnx.preview.training") || ops::is_engine_domain(domain)
}

/// Checks a node that does not call a function of the model. Nodes of nonstandard domains are valid.
pub(super) fn check(at: NodeRef<'_>) -> Result<(), Fault> {
    let (domain, node) = (at.node().domain(), || at.describe());
    let Some(opset) = at.graph.opset(domain) else {
        let missing = || Fault::NotImported { node: node(), domain: domain.into() };
        return if is_always_imported(domain) { Ok(()) } else { Err(missing()) };
    };
    match ops::newest_opset(domain) {
        Some(newest) if opset <= newest => {}
        _ => return Ok(()),
    }
    let schema = ops::schema(domain, at.op(), opset).ok_or_else(|| unknown(at, domain, opset))?;
    if schema.deprecated {
        return Err(Fault::Deprecated { node: node(), opset });
    }
    let (inputs, outputs) = (at.inputs(), at.outputs());
    let needed = (schema.min_inputs(), schema.max_inputs());
    check_formals(at, "input", &inputs, needed, |slot| schema.input(slot))?;
    let needed = (schema.min_outputs(), schema.max_outputs());
    check_formals(at, "output", &outputs, needed, |slot| schema.output(slot))?;
    check_attributes(at, schema)?;
    check_subgraphs(at, inputs.len(), outputs.len())?;
    check_types(at, schema, &inputs, &outputs)
}

fn unknown(at: NodeRef<'_>, domain: &str, opset: i64) -> Fault {
    let newest = ops::newest_opset(domain).unwrap_or(opset);
    let first = (opset + 1..=newest).find(|&later| ops::schema(domain, at.op(), later).is_some());
    Fault::UnknownOperator {
        node: at.describe(),
        domain: if domain.is_empty() { "ai.onnx" } else { domain }.into(),
        opset,
        near: nearest(at.op(), ops::operators(domain, opset)).map(str::to_owned),
        since: first,
    }
}

/// `3 inputs, but must have 1 to 2`.
pub(super) fn check_count(
    who: impl Fn() -> String,
    what: &'static str,
    given: usize,
    least: usize,
    most: Option<usize>,
) -> Result<(), Fault> {
    if given >= least && most.is_none_or(|most| given <= most) {
        return Ok(());
    }
    let given = format!("{given} {what}{}", if given == 1 { "" } else { "s" });
    let allowed = match most {
        Some(most) if most == least => format!("must have {least}"),
        Some(most) => format!("must have {least} to {most}"),
        None => format!("must have at least {least}"),
    };
    Err(Fault::Count { who: who(), given, allowed })
}

fn check_formals<'s>(
    at: NodeRef<'_>,
    what: &'static str,
    values: &[Option<ValueRef<'_>>],
    (least, most): (usize, Option<usize>),
    formal: impl Fn(usize) -> Option<&'s Formal>,
) -> Result<(), Fault> {
    check_count(|| at.describe(), what, values.len(), least, most)?;
    for (slot, _) in values.iter().enumerate().filter(|(_, v)| v.is_none()) {
        if let Some(formal) = formal(slot).filter(|f| f.arity == Arity::Single) {
            return Err(Fault::Lacks { node: at.describe(), what, name: formal.name.into() });
        }
    }
    Ok(())
}

fn check_attributes(at: NodeRef<'_>, schema: &Schema) -> Result<(), Fault> {
    let given = &at.node().attributes;
    for (name, value) in given {
        // Names with two underscores are reserved for tools.
        if name.starts_with("__") {
            continue;
        }
        let Some(attribute) = schema.attribute(name) else {
            let near = nearest(name, schema.attributes.iter().map(|a| a.name)).map(str::to_owned);
            return Err(Fault::UnknownAttribute { node: at.describe(), name: name.clone(), near });
        };
        let kind = AttributeKind::of(value);
        if kind != Some(attribute.kind) {
            let given = kind.map_or_else(|| "empty".into(), |k| k.to_string());
            let (name, kind) = (name.clone(), attribute.kind.to_string());
            return Err(Fault::AttributeKind { node: at.describe(), name, given, kind });
        }
    }
    // Any one of several attributes holds the value, so none is required by the schema.
    if schema.name == "Constant" && given.keys().filter(|name| !name.starts_with("__")).count() != 1 {
        return Err(Fault::NotOneValue(at.describe()));
    }
    match schema.attributes.iter().find(|a| a.required && !given.contains_key(a.name)) {
        Some(a) => Err(Fault::Lacks { node: at.describe(), what: "attribute", name: a.name.into() }),
        None => Ok(()),
    }
}

/// Checks the numbers of inputs and outputs of subgraphs.
fn check_subgraphs(at: NodeRef<'_>, inputs: usize, outputs: usize) -> Result<(), Fault> {
    let (inputs, outputs) = match at.op() {
        "If" => (0, outputs),
        // The body has the inputs iteration number and condition where the node has trip count and condition.
        "Loop" => (inputs.max(2), outputs + 1),
        "Scan" if at.opset() < 9 => (inputs.saturating_sub(1), outputs),
        "Scan" => (inputs, outputs),
        _ => return Ok(()),
    };
    for (name, body) in at.node().attributes.iter().flat_map(|(n, a)| a.graphs().iter().map(move |g| (n, g)))
    {
        let who = || format!("`{name}` of {}", at.describe());
        check_count(who, "input", body.inputs().len(), inputs, Some(inputs))?;
        check_count(who, "output", body.outputs().len(), outputs, None)?;
    }
    Ok(())
}

fn check_types(
    at: NodeRef<'_>,
    schema: &Schema,
    inputs: &[Option<ValueRef<'_>>],
    outputs: &[Option<ValueRef<'_>>],
) -> Result<(), Fault> {
    let inputs = inputs.iter().enumerate().map(|(slot, v)| (schema.input(slot), v, true));
    let outputs = outputs.iter().enumerate().map(|(slot, v)| (schema.output(slot), v, false));
    let mut bound: Vec<Option<(ValueRef<'_>, Key)>> = vec![None; schema.variables.len()];
    for (formal, value, is_input) in inputs.chain(outputs) {
        let (Some(formal), Some(value)) = (formal, value) else { continue };
        let fact = &value.value().fact;
        // ONNX Runtime allows outputs of further types, such as a `Cast` to a type that was added later.
        let strict = is_input || formal.variable.is_none();
        if strict && !formal.types.allows(fact) {
            let (value, given) = (value.name().into(), fact.to_string());
            return Err(Fault::Type { node: at.describe(), value, given, allowed: formal.types.to_string() });
        }
        let (Some(variable), Some(key)) = (formal.variable.filter(|_| formal.homogeneous), key(fact)) else {
            continue;
        };
        match bound[variable] {
            Some((first, other)) if other != key => {
                let (a, a_type) = (first.name().into(), first.value().fact.to_string());
                let (b, b_type) = (value.name().into(), fact.to_string());
                return Err(Fault::Types { node: at.describe(), a, a_type, b, b_type });
            }
            _ => bound[variable] = Some((*value, key)),
        }
    }
    Ok(())
}

/// Identifies a type: the nesting of sequences and optionals, and the element type.
type Key = (u32, DataType);

fn key(fact: &Fact) -> Option<Key> {
    match fact {
        Fact::Tensor(tensor) => Some((0, tensor.dtype?)),
        Fact::Sequence(item) => key(item).map(|(wraps, dtype)| (wraps * 3 + 1, dtype)),
        Fact::Optional(item) => key(item).map(|(wraps, dtype)| (wraps * 3 + 2, dtype)),
        Fact::Unknown | Fact::Other => None,
    }
}
