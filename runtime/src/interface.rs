//! Comparison of the interfaces of two models: names, order and types of their inputs and outputs.

use crate::{Port, PortDim, PortKind};
use pare_graph::{Model, Type, ValueId};

/// The first difference between two lists of ports, as a sentence; `role` is "input" or "output".
pub(crate) fn port_change(role: &str, original: &[Port], candidate: &[Port]) -> Option<String> {
    let name = |ports: &[Port], place: usize| ports.get(place).map(|port| port.name.clone());
    for place in 0..original.len().max(candidate.len()) {
        let number = place + 1;
        match (name(original, place), name(candidate, place)) {
            (Some(a), Some(b)) if a == b => {
                let (before, after) = (&original[place].kind, &candidate[place].kind);
                if before != after {
                    return Some(format!("{role} `{a}` is {after} instead of {before}"));
                }
            }
            (Some(a), Some(b)) => return Some(format!("{role} {number} is `{b}` instead of `{a}`")),
            (Some(a), None) => return Some(format!("{role} `{a}` is missing")),
            (None, Some(b)) => return Some(format!("{role} `{b}` is new")),
            (None, None) => {}
        }
    }
    None
}

/// The first difference between the declarations of two models' inputs and outputs, as a sentence.
pub fn declared_change(original: &Model, candidate: &Model) -> Option<String> {
    let declared = |model: &Model, values: &[ValueId]| -> Vec<(String, Option<Type>)> {
        let value = |&id: &ValueId| {
            let value = model.graph.value(id);
            (value.name.clone(), value.declared.as_ref().and_then(|d| d.ty.clone()))
        };
        values.iter().map(value).collect()
    };
    let change = |role: &str, a: &[ValueId], b: &[ValueId]| {
        let (before, after) = (declared(original, a), declared(candidate, b));
        let first = before.iter().zip(&after).find(|(a, b)| a != b).map(|(a, _)| a.0.clone());
        let count = || (before.len() != after.len()).then(|| format!("the number of {role}s changed"));
        first.map(|name| format!("the declaration of {role} `{name}` changed")).or_else(count)
    };
    let (a, b) = (&original.graph, &candidate.graph);
    change("input", a.inputs(), b.inputs()).or_else(|| change("output", a.outputs(), b.outputs()))
}

/// `ports` in the order of `original`, matched by name; unknown ones at the end.
pub(crate) fn in_order_of(original: &[Port], ports: &[Port]) -> Vec<Port> {
    let mut ports = ports.to_vec();
    ports.sort_by_key(|port| original.iter().position(|w| w.name == port.name).unwrap_or(usize::MAX));
    ports
}

/// `candidate` with every dimension opened that `original`, a list in the same order, leaves open, and with
/// the original's dimension where the candidate leaves it open ([`undeclared`] finds these).
pub(crate) fn opened(candidate: &[Port], original: &[Port]) -> Vec<Port> {
    let rest = candidate.iter().skip(original.len()).cloned();
    candidate.iter().zip(original).map(|(port, original)| opened_port(port, original)).chain(rest).collect()
}

fn opened_port(candidate: &Port, original: &Port) -> Port {
    let mut port = candidate.clone();
    let PortKind::Tensor { dims, .. } = &mut port.kind else { return port };
    match (dims.as_mut(), original.dims()) {
        (Some(dims), Some(expected)) if expected.len() == dims.len() => {
            let open = |(dim, expected): &(&mut PortDim, &PortDim)| {
                !matches!(expected, PortDim::Fixed(_)) || **dim == PortDim::Unknown
            };
            dims.iter_mut().zip(expected).filter(open).for_each(|(dim, expected)| dim.clone_from(expected));
        }
        (Some(_), None) => *dims = None,
        (None, Some(expected)) => *dims = Some(expected.to_vec()),
        _ => {}
    }
    port
}

/// An output whose shape the candidate declares less of.
pub(crate) struct Undeclared {
    pub original: Port,
    pub candidate: PortKind,
}

/// The outputs whose shape the candidate declares less of. That need not be a difference: an engine drops a
/// declared size where it infers another one, and may infer more of the candidate.
pub(crate) fn undeclared(original: &[Port], candidate: &[Port]) -> Vec<Undeclared> {
    let declares_less = |port: &Port, other: &Port| match (port.dims(), other.dims()) {
        (Some(expected), Some(dims)) if expected.len() == dims.len() => {
            let open = |(e, d): (&PortDim, &PortDim)| matches!((e, d), (PortDim::Fixed(_), PortDim::Unknown));
            expected.iter().zip(dims).any(open)
        }
        (expected, dims) => expected.is_some() && dims.is_none(),
    };
    let less = |port: &Port| {
        let other = candidate.iter().find(|other| other.name == port.name && declares_less(port, other))?;
        Some(Undeclared { original: port.clone(), candidate: other.kind.clone() })
    };
    original.iter().filter_map(less).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::{DataType, text::parse_graph};

    #[test]
    fn reports_the_first_changed_port() {
        let port = |name: &str, dim| Port::tensor(name, DataType::Float, &[dim]);
        let (a, b) = (port("a", PortDim::Fixed(1)), port("b", PortDim::Unknown));
        let one = std::slice::from_ref(&a);
        let change = |x: &[Port], y: &[Port]| port_change("output", x, y);
        assert_eq!(change(one, one), None);
        assert_eq!(
            change(&[a.clone(), b.clone()], &[b.clone(), a.clone()]).unwrap(),
            "output 1 is `b` instead of `a`"
        );
        assert_eq!(change(one, &[]).unwrap(), "output `a` is missing");
        assert_eq!(change(&[], one).unwrap(), "output `a` is new");
        let wide = port("a", PortDim::Fixed(2));
        assert_eq!(change(one, &[wide]).unwrap(), "output `a` is float[2] instead of float[1]");
    }

    #[test]
    fn reports_changed_declarations() {
        let model = |text: &str| Model::of(parse_graph(text, 17).unwrap());
        let original = model("g (float[N] x) => (float[N] y) { y = Relu(x) }");
        let change = |text: &str| declared_change(&original, &model(text));
        assert_eq!(change("g (float[N] x) => (float[N] y) { y = Abs(x) }"), None);
        let text = change("g (float[2] x) => (float[N] y) { y = Relu(x) }");
        assert_eq!(text.unwrap(), "the declaration of input `x` changed");
        let text = change("g (float[N] x) => (float[N] y, float[N] z) { y = Relu(x) z = Abs(x) }");
        assert_eq!(text.unwrap(), "the number of outputs changed");
    }
}
