//! Decoding and encoding of attributes.

use super::{
    ReadError, WriteError,
    encode::Encoder,
    read::Reader,
    tensor::{sparse_from, sparse_to, tensor_from, tensor_to},
    types::{type_from, type_to},
};
use crate::{
    Attribute, Graph,
    extra::AttributeExtra,
    proto::{AttributeProto, attribute_proto::AttributeType as Kind},
};
use std::mem::take;

impl Reader {
    /// Name and value of an attribute; `of` describes its node or function, and `scope` is the graph around
    /// its subgraphs.
    pub(super) fn attribute(
        &self,
        mut proto: AttributeProto,
        scope: &Graph,
        of: &str,
    ) -> Result<(String, Attribute, Option<AttributeExtra>), ReadError> {
        let name = match proto.name.take() {
            Some(name) if !name.is_empty() => name,
            _ => return Err(ReadError::invalid(of, "has an attribute without name")),
        };
        let refuse = |why: &str| ReadError::invalid(format!("the attribute `{name}` of {of}"), why);
        if let Some(to) = proto.ref_attr_name.take_if(|r| !r.is_empty()) {
            let value = Attribute::Reference { name: to, kind: proto.r#type.unwrap_or(0) };
            let plain = AttributeProto { r#type: proto.r#type, ..AttributeProto::default() };
            let extra = (proto != plain).then(|| AttributeExtra { rest: proto, absent: false });
            return Ok((name, value, extra));
        }
        let kind = match proto.r#type {
            None | Some(0) => kind_by_value(&proto).map_err(|()| refuse("has no type and several values"))?,
            Some(n) => {
                Kind::try_from(n).map_err(|_| refuse(&format!("has the unknown attribute type {n}")))?
            }
        };
        let empty = || refuse("has no value");
        let mut absent = false;
        macro_rules! scalar {
            ($field:ident) => {{
                absent = proto.$field.is_none();
                proto.$field.take().unwrap_or_default()
            }};
        }
        let ty = |t| type_from(t, of);
        let value = match kind {
            Kind::Undefined => Attribute::Undefined,
            Kind::Float => Attribute::Float(scalar!(f)),
            Kind::Int => Attribute::Int(scalar!(i)),
            Kind::String => Attribute::String(scalar!(s)),
            Kind::Tensor => Attribute::Tensor(tensor_from(proto.t.take().ok_or_else(empty)?)?),
            Kind::Graph => {
                Attribute::Graph(Box::new(self.subgraph(proto.g.take().ok_or_else(empty)?, scope)?))
            }
            Kind::SparseTensor => {
                let sparse = sparse_from(proto.sparse_tensor.take().ok_or_else(empty)?, of)?;
                Attribute::SparseTensor(Box::new(sparse))
            }
            Kind::TypeProto => {
                let value = ty(proto.tp.as_ref().ok_or_else(empty)?)?;
                // The message is kept if the type cannot represent it (an element type of 0).
                proto.tp.take_if(|tp| type_to(&value) == *tp);
                Attribute::Type(value)
            }
            Kind::Floats => Attribute::Floats(take(&mut proto.floats)),
            Kind::Ints => Attribute::Ints(take(&mut proto.ints)),
            Kind::Strings => Attribute::Strings(take(&mut proto.strings)),
            Kind::Tensors => Attribute::Tensors(
                take(&mut proto.tensors).into_iter().map(tensor_from).collect::<Result<_, _>>()?,
            ),
            Kind::Graphs => {
                let graphs = take(&mut proto.graphs).into_iter().map(|g| self.subgraph(g, scope));
                Attribute::Graphs(graphs.collect::<Result<_, _>>()?)
            }
            Kind::SparseTensors => {
                let all = take(&mut proto.sparse_tensors).into_iter().map(|s| sparse_from(s, of));
                Attribute::SparseTensors(all.collect::<Result<_, _>>()?)
            }
            Kind::TypeProtos => {
                let types = proto.type_protos.iter().map(ty).collect::<Result<Vec<_>, _>>()?;
                if types.iter().map(type_to).eq(proto.type_protos.iter().cloned()) {
                    proto.type_protos.clear();
                }
                Attribute::Types(types)
            }
        };
        let plain = AttributeProto { r#type: Some(kind as i32), ..AttributeProto::default() };
        let extra = (absent || proto != plain).then(|| AttributeExtra { rest: proto, absent });
        Ok((name, value, extra))
    }
}

/// The type of an attribute without a type field, as before IR version 2: that of its only value.
fn kind_by_value(proto: &AttributeProto) -> Result<Kind, ()> {
    let candidates = [
        (proto.f.is_some(), Kind::Float),
        (proto.i.is_some(), Kind::Int),
        (proto.s.is_some(), Kind::String),
        (proto.t.is_some(), Kind::Tensor),
        (proto.g.is_some(), Kind::Graph),
        (proto.sparse_tensor.is_some(), Kind::SparseTensor),
        (proto.tp.is_some(), Kind::TypeProto),
        (!proto.floats.is_empty(), Kind::Floats),
        (!proto.ints.is_empty(), Kind::Ints),
        (!proto.strings.is_empty(), Kind::Strings),
        (!proto.tensors.is_empty(), Kind::Tensors),
        (!proto.graphs.is_empty(), Kind::Graphs),
        (!proto.sparse_tensors.is_empty(), Kind::SparseTensors),
        (!proto.type_protos.is_empty(), Kind::TypeProtos),
    ];
    let mut present = candidates.iter().filter(|c| c.0);
    match (present.next(), present.next()) {
        (None, _) => Ok(Kind::Undefined),
        (Some(one), None) => Ok(one.1),
        _ => Err(()),
    }
}

impl Encoder {
    pub(super) fn attribute(
        &self,
        name: &str,
        value: &Attribute,
        extra: Option<&AttributeExtra>,
    ) -> Result<AttributeProto, WriteError> {
        let mut proto = extra.map(|e| e.rest.clone()).unwrap_or_default();
        proto.name = Some(name.into());
        if let Attribute::Reference { name, kind } = value {
            proto.ref_attr_name = Some(name.clone());
            proto.r#type = if *kind == 0 { proto.r#type } else { Some(*kind) };
            return Ok(proto);
        }
        let kind = self.set_value(&mut proto, value, extra.is_some_and(|e| e.absent))?;
        // Attributes without type, as before IR version 2, are kept so if the value determines the type.
        let is_untyped = extra.is_some() && matches!(proto.r#type, None | Some(0)) && !is_empty_list(value);
        if !is_untyped {
            proto.r#type = Some(kind as i32);
        }
        Ok(proto)
    }

    /// Stores the value in the field of its type. Scalars that are zero or empty are omitted if `absent`.
    fn set_value(
        &self,
        proto: &mut AttributeProto,
        value: &Attribute,
        absent: bool,
    ) -> Result<Kind, WriteError> {
        let tensor = |t| self.tensor(tensor_to(t, None), t);
        Ok(match value {
            Attribute::Undefined | Attribute::Reference { .. } => Kind::Undefined,
            Attribute::Float(v) => {
                proto.f = (!absent || v.to_bits() != 0).then_some(*v);
                Kind::Float
            }
            Attribute::Int(v) => {
                proto.i = (!absent || *v != 0).then_some(*v);
                Kind::Int
            }
            Attribute::String(v) => {
                proto.s = (!absent || !v.is_empty()).then(|| v.clone());
                Kind::String
            }
            Attribute::Tensor(t) => {
                proto.t = Some(tensor(t));
                Kind::Tensor
            }
            Attribute::Graph(g) => {
                proto.g = Some(self.deeper(g)?);
                Kind::Graph
            }
            Attribute::SparseTensor(s) => {
                proto.sparse_tensor = Some(sparse_to(s, None));
                Kind::SparseTensor
            }
            Attribute::Type(t) => {
                let same = |tp: &_| type_from(tp, "").is_ok_and(|old| old == *t);
                proto.tp = proto.tp.take().filter(same).or_else(|| Some(type_to(t)));
                Kind::TypeProto
            }
            Attribute::Floats(v) => {
                proto.floats.clone_from(v);
                Kind::Floats
            }
            Attribute::Ints(v) => {
                proto.ints.clone_from(v);
                Kind::Ints
            }
            Attribute::Strings(v) => {
                proto.strings.clone_from(v);
                Kind::Strings
            }
            Attribute::Tensors(v) => {
                proto.tensors = v.iter().map(tensor).collect();
                Kind::Tensors
            }
            Attribute::Graphs(v) => {
                proto.graphs = v.iter().map(|g| self.deeper(g)).collect::<Result<_, _>>()?;
                Kind::Graphs
            }
            Attribute::SparseTensors(v) => {
                proto.sparse_tensors = v.iter().map(|s| sparse_to(s, None)).collect();
                Kind::SparseTensors
            }
            Attribute::Types(v) => {
                let old = proto.type_protos.iter().map(|tp| type_from(tp, "").ok());
                if !old.eq(v.iter().cloned().map(Some)) {
                    proto.type_protos = v.iter().map(type_to).collect();
                }
                Kind::TypeProtos
            }
        })
    }
}

fn is_empty_list(value: &Attribute) -> bool {
    match value {
        Attribute::Floats(v) => v.is_empty(),
        Attribute::Ints(v) => v.is_empty(),
        Attribute::Strings(v) => v.is_empty(),
        Attribute::Tensors(v) => v.is_empty(),
        Attribute::Graphs(v) => v.is_empty(),
        Attribute::SparseTensors(v) => v.is_empty(),
        Attribute::Types(v) => v.is_empty(),
        _ => false,
    }
}
