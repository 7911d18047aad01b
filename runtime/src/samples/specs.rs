//! What a model wants as inputs, read from its graph.

use super::InputSpec;
use crate::{Kind, PortDim};
use pare_graph::{AxisSize, DataType, Graph, Model, Type, TypeKind, ValueId, Wire};
use std::collections::HashSet;

/// The inputs that a caller of `model` must give, with bounds for those that are used as indices.
pub fn input_specs(model: &Model) -> Vec<InputSpec> {
    let graph = &model.graph;
    let required = graph.inputs().iter().filter(|&&v| graph.value(v).data.is_none());
    let spec = |&id: &ValueId| {
        let value = graph.value(id);
        let ty = value.declared.as_ref().and_then(|d| d.ty.as_ref());
        InputSpec { name: value.name.clone(), kind: kind(ty), bound: bound(graph, id) }
    };
    required.map(spec).collect()
}

fn kind(ty: Option<&Type>) -> Kind {
    let open = || Kind::Other("an unknown type".to_owned());
    let Some(ty) = ty else { return open() };
    let inner = |item: &Option<Box<Type>>| Box::new(kind(item.as_deref()));
    match &ty.kind {
        TypeKind::Tensor { dtype: Some(dtype), shape } => {
            let dim = |size: &AxisSize| match size {
                AxisSize::Fixed(n) => usize::try_from(*n).map_or(PortDim::Unknown, PortDim::Fixed),
                AxisSize::Symbol(name) if !name.is_empty() => PortDim::Symbol(name.clone()),
                AxisSize::Symbol(_) | AxisSize::Unknown => PortDim::Unknown,
            };
            let dims = shape.as_ref().map(|axes| axes.iter().map(|axis| dim(&axis.size)).collect());
            Kind::Tensor { dtype: *dtype, dims }
        }
        TypeKind::Sequence(item) => Kind::Sequence(inner(item)),
        TypeKind::Optional(item) => Kind::Optional(inner(item)),
        _ => open(),
    }
}

/// Operators that hand integers on, so that what bounds their output bounds their first input.
const HANDED_ON: &[&str] = &[
    "Cast",
    "Identity",
    "Reshape",
    "Unsqueeze",
    "Squeeze",
    "Flatten",
    "Transpose",
    "Expand",
    "Concat",
    "Slice",
];

/// The least table that an integer input indexes, through operators that hand its elements on.
fn bound(graph: &Graph, input: ValueId) -> Option<std::ops::Range<i64>> {
    let dtype = graph.value(input).fact.dtype()?;
    if !dtype.is_integer() || dtype == DataType::Uint8 {
        return None;
    }
    let (mut least, mut queue, mut seen) = (None::<i64>, vec![input], HashSet::new());
    while let Some(value) = queue.pop() {
        if !seen.insert(value) {
            continue;
        }
        for (node, wire) in graph.users(value) {
            let (at, Wire::Input(slot)) = (graph.at(node), wire) else { continue };
            let table = |axis: i64| {
                let shape = at.optional(0)?.shape()?;
                let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
                shape.get(usize::try_from(axis).ok()?)?.known()
            };
            let rows = match (at.op(), slot) {
                ("Gather" | "GatherElements", 1) => table(at.int("axis", 0)),
                ("GatherND", 1) => table(0),
                (op, 0) if HANDED_ON.contains(&op) => {
                    queue.extend(graph.outputs_of(node).into_iter().flatten());
                    None
                }
                _ => None,
            };
            least = match (least, rows) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
    }
    least.filter(|&n| n > 0).map(|n| 0..n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_stay_within_the_table_they_index() {
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
}
