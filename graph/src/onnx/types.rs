//! Decoding and encoding of declared types.

use super::{ReadError, metadata_from, metadata_to};
use crate::{
    Axis, AxisSize, DataType, Declared, Fact, Type, TypeKind,
    proto::{
        TensorShapeProto, TypeProto, ValueInfoProto, tensor_shape_proto::Dimension,
        tensor_shape_proto::dimension::Value as Size, type_proto, type_proto::Value as Kind,
    },
};

/// The element type with this number; `None` if it is unspecified.
pub(super) fn element_type(number: Option<i32>, of: &str) -> Result<Option<DataType>, ReadError> {
    match number {
        None | Some(0) => Ok(None),
        Some(number) => {
            let unknown = || ReadError::invalid(of, format!("has the unknown element type {number}"));
            DataType::from_number(number).map(Some).ok_or_else(unknown)
        }
    }
}

/// A type; `of` describes its owner for messages.
pub(super) fn type_from(proto: &TypeProto, of: &str) -> Result<Type, ReadError> {
    let inner = |ty: &Option<Box<TypeProto>>| -> Result<Option<Box<Type>>, ReadError> {
        ty.as_ref().map(|t| type_from(t, of).map(Box::new)).transpose()
    };
    let kind = match &proto.value {
        None => TypeKind::Unset,
        Some(Kind::TensorType(t)) => {
            TypeKind::Tensor { dtype: element_type(t.elem_type, of)?, shape: t.shape.as_ref().map(axes) }
        }
        Some(Kind::SparseTensorType(t)) => TypeKind::SparseTensor {
            dtype: element_type(t.elem_type, of)?,
            shape: t.shape.as_ref().map(axes),
        },
        Some(Kind::SequenceType(s)) => TypeKind::Sequence(inner(&s.elem_type)?),
        Some(Kind::OptionalType(o)) => TypeKind::Optional(inner(&o.elem_type)?),
        Some(Kind::MapType(m)) => {
            TypeKind::Map { key: element_type(m.key_type, of)?, value: inner(&m.value_type)? }
        }
        Some(Kind::OpaqueType(o)) => TypeKind::Opaque { domain: o.domain.clone(), name: o.name.clone() },
    };
    Ok(Type { kind, denotation: proto.denotation.clone() })
}

fn axes(shape: &TensorShapeProto) -> Vec<Axis> {
    let axis = |d: &Dimension| Axis {
        size: match &d.value {
            Some(Size::DimValue(n)) => AxisSize::Fixed(*n),
            Some(Size::DimParam(name)) => AxisSize::Symbol(name.clone()),
            None => AxisSize::Unknown,
        },
        denotation: d.denotation.clone(),
    };
    shape.dim.iter().map(axis).collect()
}

pub(super) fn type_to(ty: &Type) -> TypeProto {
    let number = |dtype: &Option<DataType>| dtype.map(DataType::number);
    let inner = |ty: &Option<Box<Type>>| ty.as_ref().map(|t| Box::new(type_to(t)));
    let value = match &ty.kind {
        TypeKind::Unset => None,
        TypeKind::Tensor { dtype, shape } => {
            let (elem_type, shape) = (number(dtype), shape.as_deref().map(shape_to));
            Some(Kind::TensorType(type_proto::Tensor { elem_type, shape }))
        }
        TypeKind::SparseTensor { dtype, shape } => {
            let (elem_type, shape) = (number(dtype), shape.as_deref().map(shape_to));
            Some(Kind::SparseTensorType(type_proto::SparseTensor { elem_type, shape }))
        }
        TypeKind::Sequence(item) => {
            Some(Kind::SequenceType(Box::new(type_proto::Sequence { elem_type: inner(item) })))
        }
        TypeKind::Optional(item) => {
            Some(Kind::OptionalType(Box::new(type_proto::Optional { elem_type: inner(item) })))
        }
        TypeKind::Map { key, value } => {
            let (key_type, value_type) = (number(key), inner(value));
            Some(Kind::MapType(Box::new(type_proto::Map { key_type, value_type })))
        }
        TypeKind::Opaque { domain, name } => {
            let (domain, name) = (domain.clone(), name.clone());
            Some(Kind::OpaqueType(type_proto::Opaque { domain, name }))
        }
    };
    TypeProto { value, denotation: ty.denotation.clone() }
}

fn shape_to(axes: &[Axis]) -> TensorShapeProto {
    let dimension = |axis: &Axis| Dimension {
        value: match &axis.size {
            AxisSize::Fixed(n) => Some(Size::DimValue(*n)),
            AxisSize::Symbol(name) => Some(Size::DimParam(name.clone())),
            AxisSize::Unknown => None,
        },
        denotation: axis.denotation.clone(),
    };
    TensorShapeProto { dim: axes.iter().map(dimension).collect() }
}

pub(super) fn declared_from(entry: &ValueInfoProto) -> Result<Declared, ReadError> {
    let of = format!("`{}`", entry.name());
    Ok(Declared {
        ty: entry.r#type.as_ref().map(|t| type_from(t, &of)).transpose()?,
        doc: entry.doc_string.clone(),
        metadata: metadata_from(entry.metadata_props.clone()),
        order: None,
        computed: None,
    })
}

pub(super) fn declared_to(name: &str, declared: &Declared) -> ValueInfoProto {
    ValueInfoProto {
        name: Some(name.into()),
        r#type: declared.ty.as_ref().map(type_to),
        doc_string: declared.doc.clone(),
        metadata_props: metadata_to(&declared.metadata),
    }
}

impl Declared {
    /// Returns true if the declaration does not contradict the fact.
    pub(super) fn agrees(&self, fact: &Fact) -> bool {
        self.ty.as_ref().is_none_or(|ty| ty.fact().unify(fact).is_some())
    }
}
