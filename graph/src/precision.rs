//! Conversion of a model to another floating-point type.

use crate::{Attribute, Constant, DataType, Fact, Graph, Model, Tensor, Type, TypeKind};

impl Model {
    /// Changes the type of every number of type `from` to `to`: inputs, outputs, initializers, tensors in
    /// attributes, and the attributes of operators that name a type. Sparse tensors and functions are not
    /// changed. Inferred types are discarded; [`Model::infer`] reports operators that do not accept the new type.
    pub fn convert_numbers(&mut self, from: DataType, to: DataType) {
        convert_graph(&mut self.graph, Conversion { from, to });
    }
}

#[derive(Clone, Copy)]
struct Conversion {
    from: DataType,
    to: DataType,
}

/// Attributes that name an element type, by number.
const TYPE_ATTRIBUTES: [&str; 3] = ["to", "dtype", "output_datatype"];

fn convert_graph(graph: &mut Graph, conversion: Conversion) {
    let values: Vec<_> = graph.values().collect();
    for id in values {
        let value = graph.value_mut(id);
        let is_interface = value.is_input() || value.is_output();
        value.declared = value.declared.take().filter(|_| is_interface);
        if let Some(declared) = &mut value.declared {
            declared.computed = None;
            if let Some(ty) = &mut declared.ty {
                conversion.ty(ty);
            }
        }
        if let Some(Constant::Dense(tensor)) = &mut value.data {
            conversion.tensor(tensor);
        }
        value.fact = match (&value.data, &value.declared) {
            (Some(Constant::Dense(tensor)), _) => Fact::of_constant(tensor),
            (_, Some(declared)) => declared.ty.as_ref().map_or(Fact::Unknown, Type::fact),
            _ => Fact::Unknown,
        };
    }
    for &id in graph.nodes().iter() {
        let node = graph.node_mut(id);
        let floats = ["value_float", "value_floats"];
        for (name, attribute) in &mut node.attributes {
            match attribute {
                Attribute::Tensor(tensor) => conversion.tensor(tensor),
                Attribute::Int(number) if TYPE_ATTRIBUTES.contains(&&**name) => conversion.number(number),
                _ => {}
            }
        }
        if node.is("Constant")
            && let Some(values) = floats.iter().find_map(|&name| node.attributes.shift_remove(name))
        {
            let mut tensor = match values {
                Attribute::Floats(values) => Tensor::vector(&values),
                Attribute::Float(value) => Tensor::scalar(value),
                _ => Tensor::vector::<f32>(&[]),
            };
            conversion.tensor(&mut tensor);
            node.attributes.insert("value".into(), Attribute::Tensor(tensor));
        }
        graph.with_subgraphs(id, |bodies, _| {
            bodies.iter_mut().for_each(|body| convert_graph(body, conversion));
        });
    }
}

impl Conversion {
    fn tensor(self, tensor: &mut Tensor) {
        if tensor.dtype() != self.from {
            return;
        }
        let values = tensor.to_f64().unwrap_or_default();
        if let Ok(converted) = Tensor::from_f64(self.to, tensor.shape(), &values) {
            *tensor = converted;
        }
    }

    fn number(self, number: &mut i64) {
        if *number == i64::from(self.from.number()) {
            *number = self.to.number().into();
        }
    }

    fn ty(self, ty: &mut Type) {
        match &mut ty.kind {
            TypeKind::Tensor { dtype, .. } if *dtype == Some(self.from) => *dtype = Some(self.to),
            TypeKind::Sequence(Some(item)) | TypeKind::Optional(Some(item)) => self.ty(item),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DataType, Model, text};

    #[test]
    fn converts_types_constants_and_attributes() {
        let source = "g (float[N,2] x, bool c) => (float[N,2] y) <float[2] w = {0.1,2}> {
            a = Mul(x, w) k = Constant<value_float = 0.5>() b = Add(a, k) i = Cast<to = 7>(b) f = Cast<to = 1>(i)
            y = If(c) <then_branch = t () => (float[N,2] r) { r = Identity(f) },
                       else_branch = e () => (float[N,2] r) { r = Identity(b) }> }";
        let mut model = Model::of(text::parse_graph(source, 17).unwrap());
        model.convert_numbers(DataType::Float, DataType::Double);
        model.infer().unwrap();
        model.check().unwrap();
        let dtype = |name: &str| model.graph.value(model.graph.find(name).unwrap()).fact.dtype();
        for name in ["x", "w", "a", "k", "f", "y"] {
            assert_eq!(dtype(name), Some(DataType::Double), "{name}");
        }
        assert_eq!(dtype("i"), Some(DataType::Int64));
    }
}
