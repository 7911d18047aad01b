//! Extraction of parts of a model.

use pare_graph::{Axis, AxisSize, DataType, Declared, Dim, Fact, GraphError, Model, Type, TypeKind, ValueId};

/// Returns the model that computes `wanted` from `given`, values of the main graph of `model`: see
/// [`Model::extract`]. Its inputs and outputs are declared as an engine needs them.
pub fn segment(model: &Model, given: &[ValueId], wanted: &[ValueId]) -> Result<Model, GraphError> {
    let mut part = model.extract(given, wanted)?;
    let graph = &mut part.graph;
    let inputs = graph.inputs().iter().map(|&id| (id, true));
    let interface: Vec<_> = inputs.chain(graph.outputs().iter().map(|&id| (id, false))).collect();
    for (id, is_input) in interface {
        let declared = declared(&graph.value(id).fact, is_input);
        graph.set_declared(id, Some(declared));
    }
    Ok(part)
}

/// The declaration of a value. The sizes of outputs are inferred by the engine.
fn declared(fact: &Fact, sizes: bool) -> Declared {
    let dtype = fact.dtype();
    let axis =
        |dim: &Dim| Axis { size: dim.known().map_or(AxisSize::Unknown, AxisSize::Fixed), denotation: None };
    let shape = fact.shape().filter(|_| sizes).map(|dims| dims.iter().map(axis).collect());
    let kind = TypeKind::Tensor { dtype: dtype.or(Some(DataType::Float)), shape };
    let mut declared = Declared::default();
    declared.ty = Some(Type { kind, denotation: None });
    declared
}
