//! Input specifications of a model, derived from its graph.

use crate::{Port, PortDim, PortKind};
use pare_graph::{AxisSize, DataType, Edge, Graph, Model, Type, TypeKind, ValueId, ops::Trait};
use std::{collections::HashSet, ops::Range};

/// The values to generate for one input.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSpec {
    /// Name of the input.
    pub name: String,
    /// Its type.
    pub kind: PortKind,
    /// Range of its integers, such as the rows of the table that they index; 0..10 by default.
    pub bound: Option<Range<i64>>,
    /// Integers that the graph compares the input with, which decide its branches; half of the elements are
    /// chosen from them.
    pub choices: Vec<i64>,
}

impl From<&Port> for InputSpec {
    fn from(port: &Port) -> Self {
        Self { name: port.name.clone(), kind: port.kind.clone(), bound: None, choices: vec![] }
    }
}

/// Returns the required inputs of `model`, with ranges for those that are used as indices.
pub fn input_specs(model: &Model) -> Vec<InputSpec> {
    let graph = &model.graph;
    let required = graph.inputs().iter().filter(|&&v| graph.value(v).data.is_none());
    let spec = |&id: &ValueId| {
        let value = graph.value(id);
        let ty = value.declared.as_ref().and_then(|d| d.ty.as_ref());
        let Uses { rows, compared } = uses(graph, id);
        InputSpec {
            name: value.name.clone(),
            kind: declared_kind(ty),
            bound: rows.map(|n| 0..n),
            choices: compared,
        }
    };
    required.map(spec).collect()
}

/// The type of a port that is declared so.
pub(crate) fn declared_kind(ty: Option<&Type>) -> PortKind {
    let open = || PortKind::Other("an unknown type".to_owned());
    let Some(ty) = ty else { return open() };
    let inner = |item: &Option<Box<Type>>| Box::new(declared_kind(item.as_deref()));
    match &ty.kind {
        TypeKind::Tensor { dtype: Some(dtype), shape } => {
            let dim = |size: &AxisSize| match size {
                AxisSize::Fixed(n) => usize::try_from(*n).map_or(PortDim::Unknown, PortDim::Fixed),
                AxisSize::Symbol(name) if !name.is_empty() => PortDim::Symbol(name.clone()),
                AxisSize::Symbol(_) | AxisSize::Unknown => PortDim::Unknown,
            };
            let dims = shape.as_ref().map(|axes| axes.iter().map(|axis| dim(&axis.size)).collect());
            PortKind::Tensor { dtype: *dtype, dims }
        }
        TypeKind::Sequence(item) => PortKind::Sequence(inner(item)),
        TypeKind::Optional(item) => PortKind::Optional(inner(item)),
        _ => open(),
    }
}

/// Uses of an integer input.
#[derive(Default)]
struct Uses {
    /// Rows of the smallest table that it indexes.
    rows: Option<i64>,
    /// Constants that it is compared with, sorted.
    compared: Vec<i64>,
}

/// The uses of an integer input, also through operators that copy its elements.
fn uses(graph: &Graph, input: ValueId) -> Uses {
    let mut uses = Uses::default();
    if !graph.value(input).fact.dtype().is_some_and(|d| d.is_integer() && d != DataType::Uint8) {
        return uses;
    }
    let (mut queue, mut seen) = (vec![input], HashSet::new());
    while let Some(value) = queue.pop() {
        if !seen.insert(value) {
            continue;
        }
        for (node, edge) in graph.users(value) {
            let (at, Edge::Input(slot)) = (graph.at(node), edge) else { continue };
            let table = |axis: i64| {
                let shape = at.optional(0)?.shape()?;
                let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
                shape.get(usize::try_from(axis).ok()?)?.known().filter(|&n| n > 0)
            };
            let rows = match (at.op(), slot) {
                ("Gather" | "GatherElements" | "ScatterElements" | "Scatter", 1) => table(at.int("axis", 0)),
                ("GatherND", 1) => table(0),
                // The bound of the outputs bounds the elements that they are copied from.
                (_, 0) if at.has(Trait::DataMovement) || at.is("Cast") => {
                    queue.extend(graph.outputs_of(node).into_iter().flatten());
                    None
                }
                (_, 0 | 1) if at.has(Trait::Comparison) => {
                    let other = at.optional(1 - slot as usize).and_then(|v| v.constant().ok()?.single_i64());
                    uses.compared.extend(other);
                    None
                }
                _ => None,
            };
            uses.rows = uses.rows.into_iter().chain(rows).min();
        }
    }
    uses.compared.sort_unstable();
    uses.compared.dedup();
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_indices_by_their_table() {
        let text = "main (int64[N, 3] ids, float[2] x) => (float[N, 3, 2] y)
            <float[7, 2] table = {0,0,0,0,0,0,0,0,0,0,0,0,0,0},
             float[5, 2] other = {0,0,0,0,0,0,0,0,0,0}> {
                a = Cast<to=6>(ids) e = Gather(table, a) f = Gather(other, ids) y = Add(e, f)
            }";
        let mut model = Model::of(pare_graph::text::parse_graph(text, 17).unwrap());
        model.infer().unwrap();
        let specs = input_specs(&model);
        assert_eq!(specs[0].bound, Some(0..5));
        assert_eq!(specs[1].bound, None);
        assert_eq!(specs[0].kind.to_string(), "int64[N, 3]");
    }

    #[test]
    fn collects_compared_constants() {
        let text = "main (int64 rate) => (bool a, bool b) <int64 high = {16000}> {
                low = Constant<value = int64 {8000}>() r = Identity(rate)
                a = Equal(rate, high) b = Less(low, r) c = Equal(rate, rate)
            }";
        let mut model = Model::of(pare_graph::text::parse_graph(text, 17).unwrap());
        model.infer().unwrap();
        assert_eq!(input_specs(&model)[0].choices, [8000, 16_000]);
    }
}
