//! Printing of types, tensors and attribute values.

use super::{KINDS, number::Real, print::Printer};
use crate::{Attribute, Axis, AxisSize, DataType, Element, SparseTensor, Tensor, Type, TypeKind};
use half::{bf16, f16};
use std::fmt::Display;

// ---- types
impl Printer {
    pub fn ty(&mut self, ty: &Type) {
        match &ty.kind {
            TypeKind::Unset => self.out.push_str("?()"),
            TypeKind::Tensor { dtype, shape } => self.tensor_shape(*dtype, shape.as_deref()),
            TypeKind::SparseTensor { dtype, shape } => {
                self.out.push_str("sparse_tensor(");
                self.tensor_shape(*dtype, shape.as_deref());
                self.out.push(')');
            }
            TypeKind::Sequence(item) => self.type_of("seq(", item.as_deref()),
            TypeKind::Optional(item) => self.type_of("optional(", item.as_deref()),
            TypeKind::Map { key, value } => {
                let comma = if value.is_some() { ", " } else { "" };
                let key = key.map_or("?", DataType::name);
                self.type_of(&format!("map({key}{comma}"), value.as_deref());
            }
            TypeKind::Opaque { domain, name } => {
                self.out.push_str("opaque(");
                self.separated(", ", [domain, name].into_iter().flatten(), |p, part| p.dotted(part));
                self.out.push(')');
            }
        }
    }

    fn type_of(&mut self, open: &str, item: Option<&Type>) {
        self.out.push_str(open);
        if let Some(item) = item {
            self.ty(item);
        }
        self.out.push(')');
    }

    fn tensor_shape(&mut self, dtype: Option<DataType>, shape: Option<&[Axis]>) {
        self.out.push_str(dtype.map_or("?", DataType::name));
        match shape {
            None => self.out.push_str("[]"),
            Some([]) => {}
            Some(axes) => {
                self.out.push('[');
                self.separated(",", axes, |p, axis| match &axis.size {
                    AxisSize::Fixed(n) => p.put(n),
                    AxisSize::Symbol(name) => p.plain(name),
                    AxisSize::Unknown => p.out.push('?'),
                });
                self.out.push(']');
            }
        }
    }
}

// ---- tensors
impl Printer {
    fn fixed_shape<T: Display>(&mut self, dtype: DataType, sizes: &[T]) {
        self.out.push_str(dtype.name());
        if !sizes.is_empty() {
            self.out.push('[');
            self.separated(",", sizes, Self::put);
            self.out.push(']');
        }
    }

    pub fn tensor_type(&mut self, tensor: &Tensor) {
        self.fixed_shape(tensor.dtype(), tensor.shape());
    }

    pub fn sparse_type(&mut self, sparse: &SparseTensor) {
        self.out.push_str("sparse_tensor(");
        self.fixed_shape(sparse.values.dtype(), &sparse.dims);
        self.out.push(')');
    }

    fn tensor(&mut self, tensor: &Tensor) {
        self.tensor_type(tensor);
        self.out.push(' ');
        if let Some(name) = tensor.origin.as_ref().and_then(|o| o.name.as_ref()).filter(|n| !n.is_empty()) {
            self.plain(name);
            self.out.push(' ');
        }
        self.elements(tensor);
    }

    fn sparse(&mut self, sparse: &SparseTensor) {
        self.sparse_type(sparse);
        self.out.push(' ');
        self.sparse_elements(sparse);
    }

    pub fn sparse_elements(&mut self, sparse: &SparseTensor) {
        self.out.push('{');
        self.tensor_type(&sparse.values);
        self.out.push(' ');
        self.elements(&sparse.values);
        self.out.push_str(", ");
        self.tensor_type(&sparse.indices);
        self.out.push(' ');
        self.elements(&sparse.indices);
        self.out.push('}');
    }

    pub fn elements(&mut self, tensor: &Tensor) {
        use DataType as D;
        let by_value = self.options.max_elements.is_some();
        self.out.push('{');
        match tensor.dtype() {
            D::String => {
                let items = tensor.as_strings().unwrap_or_default();
                self.shortened(items.len(), items.iter(), |p, item| p.string(item));
            }
            D::Float | D::Complex64 => self.numbers::<f32>(tensor, Self::short_real),
            D::Double | D::Complex128 => self.numbers::<f64>(tensor, Self::short_real),
            D::Float16 if by_value => self.numbers::<f16>(tensor, |p, v| v.to_f32().print(&mut p.out)),
            D::Bfloat16 if by_value => self.numbers::<bf16>(tensor, |p, v| v.to_f32().print(&mut p.out)),
            D::Float16 | D::Bfloat16 | D::Uint16 => self.numbers::<u16>(tensor, Self::put),
            D::Int16 => self.numbers::<i16>(tensor, Self::put),
            D::Int32 => self.numbers::<i32>(tensor, Self::put),
            D::Uint32 => self.numbers::<u32>(tensor, Self::put),
            D::Int64 => self.numbers::<i64>(tensor, Self::put),
            D::Uint64 => self.numbers::<u64>(tensor, Self::put),
            D::Int8 => self.numbers::<i8>(tensor, Self::put),
            dtype @ (D::Int4 | D::Int2) => {
                let high = 1 << (dtype.bits() - 1);
                let signed = |code: u8| (i32::from(code) ^ high) - high;
                self.shortened(tensor.len(), tensor.codes().map(signed), Self::put);
            }
            _ => self.shortened(tensor.len(), tensor.codes(), Self::put),
        }
        self.out.push('}');
    }

    fn numbers<T: Element>(&mut self, tensor: &Tensor, put: impl FnMut(&mut Self, T)) {
        let bytes = tensor.bytes();
        self.shortened(bytes.len() / size_of::<T>(), bytes.chunks_exact(size_of::<T>()).map(T::read), put);
    }

    fn shortened<T>(&mut self, count: usize, items: impl Iterator<Item = T>, put: impl FnMut(&mut Self, T)) {
        let shown = self.options.max_elements.unwrap_or(count);
        self.separated(",", items.take(shown), put);
        if count > shown {
            self.put(format_args!("{}... of {count}", if shown > 0 { "," } else { "" }));
        }
    }

    /// A float without a trailing `.0`, which elements of a known type do not need.
    fn short_real(&mut self, value: impl Real) {
        value.print(&mut self.out);
        if self.out.ends_with(".0") {
            self.out.truncate(self.out.len() - 2);
        }
    }
}

// ---- attributes
impl Printer {
    /// `name = value`, with the type if the value does not determine it.
    pub fn attribute(&mut self, name: &str, value: &Attribute) {
        use Attribute as A;
        self.plain(name);
        let kind = match value {
            A::Undefined => return self.out.push_str(": undefined"),
            A::Floats(v) if v.is_empty() => Some("floats"),
            A::Ints(v) if v.is_empty() => Some("ints"),
            A::Strings(v) if v.is_empty() => Some("strings"),
            A::Tensors(_) => Some("tensors"),
            A::Graphs(_) => Some("graphs"),
            A::SparseTensors(_) => Some("sparse_tensors"),
            A::Types(_) => Some("type_protos"),
            A::Reference { kind, .. } => {
                usize::try_from(*kind).ok().and_then(|k| KINDS.get(k.checked_sub(1)?)).copied()
            }
            _ => None,
        };
        if let Some(kind) = kind {
            self.put(format_args!(": {kind}"));
        }
        self.out.push_str(" = ");
        match value {
            A::Float(v) => v.print(&mut self.out),
            A::Int(v) => self.put(v),
            A::String(v) => self.string(v),
            A::Tensor(v) => self.tensor(v),
            A::Graph(v) => self.graph(v),
            A::SparseTensor(v) => self.sparse(v),
            A::Type(v) => self.ty(v),
            A::Floats(v) => self.attributes_list(v, |p, v| v.print(&mut p.out)),
            A::Ints(v) => self.attributes_list(v, Self::put),
            A::Strings(v) => self.attributes_list(v, |p, v| p.string(v)),
            A::Tensors(v) => self.attributes_list(v, Self::tensor),
            A::Graphs(v) => self.attributes_list(v, Self::graph),
            A::SparseTensors(v) => self.attributes_list(v, Self::sparse),
            A::Types(v) => self.attributes_list(v, Self::ty),
            A::Reference { name, .. } => {
                self.out.push('@');
                self.plain(name);
            }
            A::Undefined => {}
        }
    }

    fn attributes_list<'a, T>(&mut self, items: &'a [T], put: impl FnMut(&mut Self, &'a T)) {
        self.out.push('[');
        self.separated(", ", items, put);
        self.out.push(']');
    }
}
