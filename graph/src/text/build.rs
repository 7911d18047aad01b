//! Construction of a graph from parsed names.

use super::{TextError, parse::Parser};
use crate::{Constant, Declared, Fact, Graph, GraphError, Node, Type, Value, ValueId};

/// A declaration in a graph: `float[2] x`, `float[2] w = {1, 2}`, `x`.
pub(super) struct Entry {
    pub ty: Option<Type>,
    pub name: String,
    pub data: Option<Constant>,
    pub offset: usize,
}

/// A node with the names of its inputs and outputs; an omitted one is empty.
pub(super) struct Call {
    pub node: Node,
    pub inputs: Vec<String>,
    pub outputs: Vec<String>,
    pub offset: usize,
}

impl Parser<'_> {
    /// Builds `graph`; nodes may be in any order.
    pub fn build(
        &self,
        graph: &mut Graph,
        inputs: &[Entry],
        outputs: &[Entry],
        others: &[Entry],
        calls: Vec<Call>,
    ) -> Result<(), TextError> {
        let at = |offset| move |e: GraphError| self.error(offset, e.to_string());
        // Initializers first, since they are written in the order in which they are added.
        for entry in inputs.iter().chain(others) {
            if let Some(data) = &entry.data {
                graph
                    .add_value(Value {
                        fact: data.fact(),
                        data: Some(data.clone()),
                        ..Value::named(&entry.name)
                    })
                    .map_err(at(entry.offset))?;
            }
        }
        for entry in inputs {
            let id = match graph.find(&entry.name) {
                Some(id) if !graph.value(id).is_input() => id,
                _ => graph.add_value(Value::named(&entry.name)).map_err(at(entry.offset))?,
            };
            graph.add_input(id);
            self.declare(graph, id, entry, false)?;
        }
        for call in &calls {
            for name in
                call.outputs.iter().filter(|n| !n.is_empty() && graph.find(n).is_none()).collect::<Vec<_>>()
            {
                graph.add_value(Value::named(name)).map_err(at(call.offset))?;
            }
        }
        for call in calls {
            let find =
                |name: &String, graph: &mut Graph| (!name.is_empty()).then(|| graph.find_or_capture(name));
            let inputs: Vec<_> = call.inputs.iter().map(|n| find(n, graph)).collect();
            let outputs: Vec<_> = call.outputs.iter().map(|n| find(n, graph)).collect();
            graph.add_node(call.node, &inputs, &outputs).map_err(at(call.offset))?;
        }
        graph.renumber();
        for entry in outputs {
            let id = graph.find_or_capture(&entry.name);
            graph.add_output(id);
            self.declare(graph, id, entry, false)?;
        }
        for entry in others.iter().filter(|e| e.data.is_none()) {
            let id = match graph.find(&entry.name) {
                Some(id) => id,
                None => graph.add_value(Value::named(&entry.name)).map_err(at(entry.offset))?,
            };
            self.declare(graph, id, entry, true)?;
        }
        Ok(())
    }

    /// Declares a value by its entry among the inputs, the outputs or (`info`) `value_info`.
    fn declare(&self, graph: &mut Graph, id: ValueId, entry: &Entry, info: bool) -> Result<(), TextError> {
        // A function lists inputs and outputs by name; types given there belong to its `value_info`.
        if graph.is_function && entry.ty.is_none() {
            return Ok(());
        }
        let order = (info || graph.is_function).then(|| graph.tick());
        let value = graph.value_mut(id);
        let declared = value.declared.get_or_insert_with(Declared::default);
        if entry.ty.is_some() && declared.ty.is_some() && entry.ty != declared.ty {
            return self.error_at(entry.offset, format!("`{}` is declared with two types", entry.name));
        }
        declared.ty = declared.ty.take().or_else(|| entry.ty.clone());
        declared.order = declared.order.or(order);
        // The fact of an initializer is more specific than its type, unless the caller may override it.
        if value.data.is_none() || value.role.input {
            value.fact = declared.ty.as_ref().map_or(Fact::Unknown, Type::fact);
        }
        Ok(())
    }
}
