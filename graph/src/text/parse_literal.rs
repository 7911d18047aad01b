//! Parsing of types, tensors and attribute values.

use super::{
    KINDS, TextError,
    lex::Token,
    number::{Real, is_integer},
    parse::Parser,
};
use crate::{
    Attribute, Axis, AxisSize, Constant, DataType, Element, Graph, SparseTensor, Tensor, Type, TypeKind,
    pack_bits, tensor::Origin,
};
use bytes::Bytes;
use half::{bf16, f16};

// ---- types
impl Parser<'_> {
    pub fn ty(&mut self) -> Result<Type, TextError> {
        let kind = self.nested(Self::type_kind)?;
        Ok(Type { kind, denotation: None })
    }

    fn type_kind(&mut self) -> Result<TypeKind, TextError> {
        if let Token::Word(word @ ("seq" | "optional" | "map" | "sparse_tensor" | "opaque")) = self.token {
            self.advance()?;
            self.require('(')?;
            let kind = match word {
                "seq" => TypeKind::Sequence(self.item_type()?),
                "optional" => TypeKind::Optional(self.item_type()?),
                "map" => {
                    let key = self.element_type()?;
                    let value = if self.eat(',')? { self.item_type()? } else { None };
                    TypeKind::Map { key, value }
                }
                "sparse_tensor" => {
                    let (dtype, shape) = (self.element_type()?, self.shape()?);
                    TypeKind::SparseTensor { dtype, shape }
                }
                _ => self.opaque()?,
            };
            self.require(')')?;
            return Ok(kind);
        }
        let open = self.is('?');
        let dtype = self.element_type()?;
        if open && self.eat('(')? {
            self.require(')')?;
            return Ok(TypeKind::Unset);
        }
        Ok(TypeKind::Tensor { dtype, shape: self.shape()? })
    }

    fn item_type(&mut self) -> Result<Option<Box<Type>>, TextError> {
        if self.is(')') { Ok(None) } else { Ok(Some(Box::new(self.ty()?))) }
    }

    fn element_type(&mut self) -> Result<Option<DataType>, TextError> {
        if self.eat('?')? {
            return Ok(None);
        }
        let Token::Word(word) = self.token else { return self.expected("an element type") };
        let Ok(dtype) = word.parse() else { return self.expected("an element type") };
        self.advance()?;
        Ok(Some(dtype))
    }

    /// Empty for a scalar, `[]` for an unknown rank, `[2,N,?]`.
    fn shape(&mut self) -> Result<Option<Vec<Axis>>, TextError> {
        if !self.eat('[')? {
            return Ok(Some(vec![]));
        }
        let axes = self.list(']', |p| {
            let size = match &p.token {
                Token::Mark('?') => {
                    p.advance()?;
                    AxisSize::Unknown
                }
                Token::Number(_) => AxisSize::Fixed(p.integer("a size")?),
                _ => AxisSize::Symbol(p.name("a size, a symbol or `?`")?),
            };
            Ok(Axis { size, denotation: None })
        })?;
        Ok(if axes.is_empty() { None } else { Some(axes) })
    }

    /// Empty, `name`, or `domain, name`; both may contain dots.
    fn opaque(&mut self) -> Result<TypeKind, TextError> {
        if self.is(')') {
            return Ok(TypeKind::Opaque { domain: None, name: None });
        }
        let first = self.dotted("a domain or a name")?.join(".");
        if !self.eat(',')? {
            return Ok(TypeKind::Opaque { domain: None, name: Some(first) });
        }
        let name = self.dotted("a name")?.join(".");
        Ok(TypeKind::Opaque { domain: Some(first), name: Some(name) })
    }
}

// ---- tensors
impl Parser<'_> {
    /// The elements of a dense or sparse tensor of the given type. `offset` and `name` are for messages.
    pub fn constant(&mut self, ty: &Type, offset: usize, name: &str) -> Result<Constant, TextError> {
        let called = if name.is_empty() { "the tensor".into() } else { format!("`{name}`") };
        let (dtype, axes, sparse) = match &ty.kind {
            TypeKind::Tensor { dtype: Some(dtype), shape: Some(axes) } => (*dtype, axes, false),
            TypeKind::SparseTensor { dtype: Some(dtype), shape: Some(axes) } => (*dtype, axes, true),
            _ => {
                let why = "has a value, so its type must be a tensor of known element type and rank";
                return self.error_at(offset, format!("{called} {why}"));
            }
        };
        let sizes: Option<Vec<usize>> = axes.iter().map(size).collect();
        let Some(shape) = sizes else {
            return self.error_at(offset, format!("{called} has a value, so its sizes must be numbers"));
        };
        if self.is('[') {
            self.pairs()?;
            let why = "has external data, which the textual syntax does not support";
            return self.error_at(offset, format!("{called} {why}"));
        }
        self.require('{')?;
        if !sparse {
            return Ok(Constant::Dense(self.elements(dtype, &shape, offset, &called)?));
        }
        let values = self.tensor()?;
        self.require(',')?;
        let indices = self.tensor()?;
        self.require('}')?;
        if values.dtype() != dtype {
            return self.error_at(
                offset,
                format!("{called} is declared as {dtype} but has {} values", values.dtype()),
            );
        }
        let dims = shape.into_iter().map(|d| d as i64).collect();
        Ok(Constant::Sparse(SparseTensor::new(values, indices, dims)))
    }

    fn tensor(&mut self) -> Result<Tensor, TextError> {
        let offset = self.offset;
        let ty = self.ty()?;
        match self.constant_after(&ty, offset)? {
            Some(Constant::Dense(tensor)) => Ok(tensor),
            _ => self.error_at(offset, "expected a dense tensor"),
        }
    }

    /// `name? =? {elements}` after a type; `None` if it is absent.
    fn constant_after(&mut self, ty: &Type, offset: usize) -> Result<Option<Constant>, TextError> {
        let named = matches!(self.token, Token::Word(_) | Token::Text(_));
        if !named && !self.is('{') && !self.is('=') {
            return Ok(None);
        }
        let name = if named { self.name("a name")? } else { String::new() };
        self.eat('=')?;
        let mut constant = self.constant(ty, offset, &name)?;
        if let (false, Constant::Dense(tensor)) = (name.is_empty(), &mut constant) {
            tensor.origin = Some(Origin { name: Some(name), ..Origin::default() }.into());
        }
        Ok(Some(constant))
    }

    /// `1, 2, 3}`. Memory is proportional to the text, not to the shape.
    fn elements(
        &mut self,
        dtype: DataType,
        shape: &[usize],
        offset: usize,
        called: &str,
    ) -> Result<Tensor, TextError> {
        use DataType as D;
        let by_value = self.at_number() && !matches!(self.token, Token::Number(n) if is_integer(n));
        let tensor = match dtype {
            D::String => Tensor::strings(shape, self.list('}', Self::string)?),
            D::Float | D::Complex64 => Tensor::new(dtype, shape, self.reals::<f32>(true, Element::write)?),
            D::Double | D::Complex128 => Tensor::new(dtype, shape, self.reals::<f64>(true, Element::write)?),
            D::Float16 if by_value => {
                let data = self.reals::<f64>(false, |v, to| f16::from_f64(v).write(to))?;
                Tensor::new(dtype, shape, data)
            }
            D::Bfloat16 if by_value => {
                let data = self.reals::<f64>(false, |v, to| bf16::from_f64(v).write(to))?;
                Tensor::new(dtype, shape, data)
            }
            _ => Tensor::new(dtype, shape, self.integers(dtype)?),
        };
        tensor.or_else(|_| {
            self.error_at(
                offset,
                format!("{called} has a different number of elements than its shape {shape:?}"),
            )
        })
    }

    /// Floats up to `}`. Integers are rejected unless `integers`, since they could be meant as bit patterns.
    fn reals<R: Real>(
        &mut self,
        integers: bool,
        write: impl Fn(R, &mut Vec<u8>),
    ) -> Result<Vec<u8>, TextError> {
        let mut data = vec![];
        self.list('}', |p| {
            if !integers && matches!(p.token, Token::Number(n) if is_integer(n)) {
                return p.expected("a number with a point or an exponent, like the first one");
            }
            write(p.real()?, &mut data);
            Ok(())
        })?;
        Ok(data)
    }

    fn real<R: Real>(&mut self) -> Result<R, TextError> {
        let (Token::Number(text) | Token::Word(text)) = self.token else { return self.expected("a number") };
        let Some(value) = R::parse(text) else { return self.expected("a number in the range of its type") };
        self.advance()?;
        Ok(value)
    }

    /// Integers up to `}`, packed. Floats of at most 16 bits are bit patterns.
    fn integers(&mut self, dtype: DataType) -> Result<Vec<u8>, TextError> {
        use DataType as D;
        let bits = dtype.bits();
        let signed = matches!(dtype, D::Int2 | D::Int4 | D::Int8 | D::Int16 | D::Int32 | D::Int64);
        let (least, most) =
            if signed { (-(1_i128 << (bits - 1)), (1 << (bits - 1)) - 1) } else { (0, (1 << bits) - 1) };
        let what = format!("an integer from {least} to {most} ({dtype})");
        let mut data = vec![];
        self.list('}', |p| {
            let Token::Number(text) = p.token else { return p.expected(&what) };
            let value = text.parse::<i128>().ok().filter(|v| (least..=most).contains(v));
            let Some(value) = value else { return p.expected(&what) };
            p.advance()?;
            if bits >= 8 {
                data.extend_from_slice(&value.to_le_bytes()[..bits as usize / 8]);
                return Ok(());
            }
            data.push(value as u8);
            Ok(())
        })?;
        Ok(if bits < 8 { pack_bits(bits, &data) } else { data })
    }

    fn string(&mut self) -> Result<Bytes, TextError> {
        if !matches!(self.token, Token::Text(_) | Token::Bytes(_)) {
            return self.expected("a string");
        }
        Ok(match self.advance()? {
            Token::Text(text) => text.into_owned().into(),
            Token::Bytes(bytes) => bytes.into(),
            _ => unreachable!("checked above"),
        })
    }
}

// ---- attributes
impl Parser<'_> {
    /// `: kind = value`, where one of kind and value may be absent; subgraphs are nested in `graph`.
    pub fn attribute_value(&mut self, name: &str, graph: &Graph) -> Result<Attribute, TextError> {
        let mut kind = None;
        if self.eat(':')? {
            kind = match self.token {
                Token::Word("undefined") => None,
                Token::Word(word) if KINDS.contains(&word) => Some(word),
                _ => return self.expected("the type of an attribute"),
            };
            self.advance()?;
            if kind.is_none() && !self.is('=') {
                return Ok(Attribute::Undefined);
            }
        }
        self.require('=')?;
        let offset = self.offset;
        let value = if self.eat('[')? {
            let item = kind.map(|k| k.trim_end_matches('s'));
            let items = self.list(']', |p| p.single(item, graph))?;
            match (items.is_empty(), kind) {
                (true, None) => {
                    return self.error_at(offset, format!("the empty list `{name}` needs a type"));
                }
                (true, Some(kind)) => empty_list(kind),
                (false, _) => list(items),
            }
        } else {
            Some(self.single(kind, graph)?)
        };
        match (value, kind) {
            (None, None) => self.error_at(offset, format!("the values of `{name}` have different types")),
            (Some(value), None) => Ok(value),
            (Some(value), Some(kind)) if kind_of(&value).is_none_or(|k| k == kind) => Ok(value),
            (_, Some(kind)) => self.error_at(offset, format!("`{name}` is not of type {kind}")),
        }
    }

    /// One value; an integer is converted if `kind` is a float.
    fn single(&mut self, kind: Option<&str>, graph: &Graph) -> Result<Attribute, TextError> {
        if self.at_type() {
            let offset = self.offset;
            let ty = self.ty()?;
            return Ok(match self.constant_after(&ty, offset)? {
                None => Attribute::Type(ty),
                Some(Constant::Dense(tensor)) => Attribute::Tensor(tensor),
                Some(Constant::Sparse(sparse)) => Attribute::SparseTensor(Box::new(sparse)),
            });
        }
        Ok(match self.token {
            Token::Number(text) if is_integer(text) && kind != Some("float") => {
                Attribute::Int(self.integer("an integer that fits into 64 bits")?)
            }
            _ if self.at_number() => Attribute::Float(self.real()?),
            Token::Mark('@') => {
                self.advance()?;
                let number = kind.and_then(|k| KINDS.iter().position(|name| *name == k));
                let kind = number.map_or(0, |n| n as i32 + 1);
                Attribute::Reference { name: self.name("the name of an attribute")?, kind }
            }
            Token::Word(_) | Token::Text(_) | Token::Bytes(_) => {
                let word = matches!(self.token, Token::Word(_));
                let text = if word { self.name("a name")?.into() } else { self.string()? };
                if !word && !self.is('(') {
                    return Ok(Attribute::String(text));
                }
                let Ok(name) = String::from_utf8(text.into()) else { return self.expected("a graph") };
                let mut body = graph.nested();
                self.named_graph(name, &mut body)?;
                Attribute::Graph(Box::new(body))
            }
            _ => return self.expected("the value of an attribute"),
        })
    }
}

/// The name of the type of an attribute value; `None` for references and undefined values.
fn kind_of(value: &Attribute) -> Option<&'static str> {
    use Attribute as A;
    Some(match value {
        A::Float(_) => "float",
        A::Int(_) => "int",
        A::String(_) => "string",
        A::Tensor(_) => "tensor",
        A::Graph(_) => "graph",
        A::SparseTensor(_) => "sparse_tensor",
        A::Type(_) => "type_proto",
        A::Floats(_) => "floats",
        A::Ints(_) => "ints",
        A::Strings(_) => "strings",
        A::Tensors(_) => "tensors",
        A::Graphs(_) => "graphs",
        A::SparseTensors(_) => "sparse_tensors",
        A::Types(_) => "type_protos",
        A::Reference { .. } | A::Undefined => return None,
    })
}

fn empty_list(kind: &str) -> Option<Attribute> {
    Some(match kind {
        "floats" => Attribute::Floats(vec![]),
        "ints" => Attribute::Ints(vec![]),
        "strings" => Attribute::Strings(vec![]),
        "tensors" => Attribute::Tensors(vec![]),
        "graphs" => Attribute::Graphs(vec![]),
        "sparse_tensors" => Attribute::SparseTensors(vec![]),
        "type_protos" => Attribute::Types(vec![]),
        _ => return None,
    })
}

/// The values as a list; `None` if their types differ.
fn list(items: Vec<Attribute>) -> Option<Attribute> {
    macro_rules! all {
        ($one:ident => $many:ident, $item:ident => $value:expr) => {{
            let value = |a| if let Attribute::$one($item) = a { Some($value) } else { None };
            Attribute::$many(items.into_iter().map(value).collect::<Option<_>>()?)
        }};
    }
    Some(match items.first()? {
        Attribute::Float(_) => all!(Float => Floats, v => v),
        Attribute::Int(_) => all!(Int => Ints, v => v),
        Attribute::String(_) => all!(String => Strings, v => v),
        Attribute::Tensor(_) => all!(Tensor => Tensors, v => v),
        Attribute::Graph(_) => all!(Graph => Graphs, v => *v),
        Attribute::SparseTensor(_) => all!(SparseTensor => SparseTensors, v => *v),
        Attribute::Type(_) => all!(Type => Types, v => v),
        _ => return None,
    })
}

fn size(axis: &Axis) -> Option<usize> {
    if let AxisSize::Fixed(n) = axis.size { usize::try_from(n).ok() } else { None }
}
