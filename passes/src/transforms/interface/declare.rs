//! Declarations of values after a change of the interface.

use pare_graph::{Axis, AxisSize, Dim, Fact, Graph, Type, TypeKind, ValueId};
use std::collections::HashMap;

/// Applies `change` to every axis that is declared in the graph, outside of subgraphs. Returns the number of
/// axes that it changed. The facts of inputs follow.
pub(super) fn change_axes(graph: &mut Graph, mut change: impl FnMut(ValueId, usize, &mut AxisSize)) -> usize {
    let mut count = 0;
    for id in graph.values().collect::<Vec<_>>() {
        let Some(mut declared) = graph.value(id).declared.clone() else { continue };
        let Some(ty) = &mut declared.ty else { continue };
        let before = count;
        for (axis, Axis { size, .. }) in axes(ty).iter_mut().enumerate() {
            let old = size.clone();
            change(id, axis, size);
            count += usize::from(*size != old);
        }
        if count > before {
            let fact = ty.fact();
            graph.set_declared(id, Some(declared));
            if graph.value(id).is_input() {
                graph.set_fact(id, fact);
            }
        }
    }
    count
}

/// The declared axes of a tensor, also inside of a sequence or an optional.
fn axes(ty: &mut Type) -> &mut [Axis] {
    match &mut ty.kind {
        TypeKind::Tensor { shape: Some(shape), .. } => shape,
        TypeKind::Sequence(Some(item)) | TypeKind::Optional(Some(item)) => axes(item),
        _ => &mut [],
    }
}

/// Sets declared sizes that are symbolic or unknown, and that inference knows now.
pub(super) fn fix_known(graph: &mut Graph) {
    let shapes = inferred(graph);
    change_axes(graph, |id, axis, size| {
        let known = shapes.get(&id).and_then(|shape| shape.get(axis)).and_then(Dim::known);
        if let (Some(n), AxisSize::Symbol(_) | AxisSize::Unknown) = (known, &*size) {
            *size = AxisSize::Fixed(n);
        }
    });
}

/// Opens declared sizes of which inference knows that they are not fixed any more.
pub(super) fn open_dependent(graph: &mut Graph, depends: impl Fn(&Dim) -> bool) {
    let shapes = inferred(graph);
    change_axes(graph, |id, axis, size| {
        if let Some(dim) = shapes.get(&id).and_then(|shape| shape.get(axis)).filter(|d| depends(d)) {
            *size = match dim.as_symbol() {
                Some(symbol) => AxisSize::Symbol(symbol.into()),
                None => AxisSize::Unknown,
            };
        }
    });
}

/// The inferred shapes of all values except inputs.
fn inferred(graph: &Graph) -> HashMap<ValueId, Vec<Dim>> {
    let computed = graph.values().filter(|&v| !graph.value(v).is_input());
    computed.filter_map(|v| Some((v, graph.value(v).fact.shape()?.to_vec()))).collect()
}

/// Declares a value by its fact, if the fact determines a type.
pub(super) fn declare(graph: &mut Graph, id: ValueId) {
    let value = graph.value(id);
    if value.declared.as_ref().is_some_and(|d| d.ty.is_some()) {
        return;
    }
    let Fact::Tensor(tensor) = &value.fact else { return };
    let Some(dtype) = tensor.dtype else { return };
    let mut declared = value.declared.clone().unwrap_or_default();
    declared.ty = Some(Type::tensor(dtype, tensor.shape.as_deref()));
    graph.set_declared(id, Some(declared));
}
