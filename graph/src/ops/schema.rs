//! What the ONNX standard says about its operators: inputs, outputs, attributes and types of every version.
//!
//! The table is the text file `schema.txt`, written by `schema.py`, which explains its lines. It is read once, on
//! first use. A schema counts from the operator set it came with until the next version of the operator.

use crate::{At, Attribute, DataType, Fact, graph::standard_domain};
use std::{collections::HashMap, fmt, ops::Range, sync::OnceLock};

/// One version of an operator.
#[derive(Clone, Debug)]
pub struct Schema {
    /// Name of the operator.
    pub name: &'static str,
    /// Its domain; empty for `ai.onnx`.
    pub domain: &'static str,
    /// The operator set that brought this version.
    pub since: i64,
    /// Whether models must no longer use it.
    pub deprecated: bool,
    /// Whether it may draw random numbers.
    pub random: bool,
    /// Inputs; the last may stand for several.
    pub inputs: Vec<Formal>,
    /// Outputs; the last may stand for several.
    pub outputs: Vec<Formal>,
    /// Attributes, sorted by name.
    pub attributes: Vec<AttributeSchema>,
    /// The type variables: inputs and outputs of one variable have one type.
    pub variables: Vec<(&'static str, TypeSet)>,
}

/// A formal input or output.
#[derive(Clone, Debug)]
pub struct Formal {
    /// Its name in the standard.
    pub name: &'static str,
    /// How many values it stands for.
    pub arity: Arity,
    /// The types it may have.
    pub types: TypeSet,
    /// Which of [`Schema::variables`] is its type; `None` if it has a type of its own.
    pub variable: Option<usize>,
    /// Whether all of a variadic one have the same type.
    pub homogeneous: bool,
}

/// How many values a formal input or output stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arity {
    /// One.
    Single,
    /// One or none.
    Optional,
    /// At least this many; each may be omitted.
    Variadic(usize),
}

/// An attribute as the standard has it.
#[derive(Clone, Debug)]
pub struct AttributeSchema {
    /// Its name.
    pub name: &'static str,
    /// What it holds.
    pub kind: AttributeKind,
    /// Whether a node must have it.
    pub required: bool,
    default: Option<&'static str>,
}

/// What an attribute may hold, numbered as in `AttributeProto.AttributeType`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum AttributeKind {
    Float = 1,
    Int = 2,
    String = 3,
    Tensor = 4,
    Graph = 5,
    Floats = 6,
    Ints = 7,
    Strings = 8,
    Tensors = 9,
    Graphs = 10,
    SparseTensor = 11,
    SparseTensors = 12,
    Type = 13,
    Types = 14,
}

/// A set of types: element types of dense tensors, and of what wraps them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeSet {
    /// One bit for each element type, by number, in the order of `WRAPS`.
    elements: [u32; WRAPS.len()],
    map: bool,
}

const WRAPS: [&str; 5] = ["", "seq(", "optional(", "optional_seq(", "sparse("];

/// The schema of an operator in an operator set: the newest version that came with it or before.
pub fn schema(domain: &str, op: &str, opset: i64) -> Option<&'static Schema> {
    let table = table();
    let versions = &table.schemas[table.operators.get(&(standard_domain(domain), op))?.clone()];
    versions.iter().rev().find(|s| s.since <= opset)
}

/// Whether the standard describes the operators of this domain.
pub fn is_known_domain(domain: &str) -> bool {
    newest_opset(domain).is_some()
}

/// The newest operator set of a domain that the table describes; later ones may have more.
pub fn newest_opset(domain: &str) -> Option<i64> {
    let domain = standard_domain(domain);
    table().domains.iter().find(|d| d.0 == domain).map(|d| d.1)
}

/// The names of the operators in an operator set that models may use.
pub fn operators(domain: &str, opset: i64) -> impl Iterator<Item = &'static str> {
    let domain = standard_domain(domain).to_owned();
    let names = table().operators.keys().filter(move |k| k.0 == domain).copied();
    names.filter(move |&(d, op)| schema(d, op, opset).is_some_and(|s| !s.deprecated)).map(|(_, op)| op)
}

impl At<'_> {
    /// The schema of the node's operator; none if it is not standard, or not in the imported operator set.
    pub fn schema(self) -> Option<&'static Schema> {
        schema(self.node().domain(), self.op(), self.graph.opset(self.node().domain())?)
    }
}

impl Schema {
    /// How many inputs a node must list.
    pub fn min_inputs(&self) -> usize {
        least(&self.inputs)
    }

    /// How many inputs a node may list; `None`: any number.
    pub fn max_inputs(&self) -> Option<usize> {
        most(&self.inputs)
    }

    /// How many outputs a node must list.
    pub fn min_outputs(&self) -> usize {
        least(&self.outputs)
    }

    /// How many outputs a node may list; `None`: any number.
    pub fn max_outputs(&self) -> Option<usize> {
        most(&self.outputs)
    }

    /// The formal input that input `slot` of a node belongs to.
    pub fn input(&self, slot: usize) -> Option<&Formal> {
        formal(&self.inputs, slot)
    }

    /// The formal output that output `slot` of a node belongs to.
    pub fn output(&self, slot: usize) -> Option<&Formal> {
        formal(&self.outputs, slot)
    }

    /// The attribute of this name.
    pub fn attribute(&self, name: &str) -> Option<&AttributeSchema> {
        self.attributes.binary_search_by_key(&name, |a| a.name).ok().map(|i| &self.attributes[i])
    }
}

fn formal(formals: &[Formal], slot: usize) -> Option<&Formal> {
    let variadic = || formals.last().filter(|f| matches!(f.arity, Arity::Variadic(_)));
    formals.get(slot).or_else(variadic)
}

/// Up to the last one that must be there; optional ones before a variadic one hold their place.
fn least(formals: &[Formal]) -> usize {
    let needed = |(i, f): (usize, &Formal)| match f.arity {
        Arity::Single => i + 1,
        Arity::Optional => 0,
        Arity::Variadic(least) => i + least,
    };
    formals.iter().enumerate().map(needed).max().unwrap_or(0)
}

fn most(formals: &[Formal]) -> Option<usize> {
    let endless = formals.iter().any(|f| matches!(f.arity, Arity::Variadic(_)));
    (!endless).then_some(formals.len())
}

impl AttributeSchema {
    /// What a node that lacks it means; none if the standard names no value.
    pub fn default(&self) -> Option<Attribute> {
        let text = self.default?;
        let items = || text.trim_matches(['[', ']']).split(',').filter(|item| !item.is_empty());
        let quoted = |item: &str| item.trim_matches('"').to_owned().into_bytes().into();
        Some(match self.kind {
            AttributeKind::Float => Attribute::Float(text.parse().ok()?),
            AttributeKind::Int => Attribute::Int(text.parse().ok()?),
            AttributeKind::String => Attribute::String(quoted(text)),
            AttributeKind::Floats => {
                Attribute::Floats(items().map(str::parse).collect::<Result<_, _>>().ok()?)
            }
            AttributeKind::Ints => Attribute::Ints(items().map(str::parse).collect::<Result<_, _>>().ok()?),
            AttributeKind::Strings => Attribute::Strings(items().map(quoted).collect()),
            _ => return None,
        })
    }
}

impl AttributeKind {
    const NAMES: [(Self, &str); 14] = [
        (Self::Float, "float"),
        (Self::Int, "int"),
        (Self::String, "string"),
        (Self::Tensor, "tensor"),
        (Self::Graph, "graph"),
        (Self::Floats, "floats"),
        (Self::Ints, "ints"),
        (Self::Strings, "strings"),
        (Self::Tensors, "tensors"),
        (Self::Graphs, "graphs"),
        (Self::SparseTensor, "sparse_tensor"),
        (Self::SparseTensors, "sparse_tensors"),
        (Self::Type, "type"),
        (Self::Types, "types"),
    ];

    /// What an attribute holds; for a reference what it says it refers to.
    pub fn of(attribute: &Attribute) -> Option<Self> {
        Some(match attribute {
            Attribute::Float(_) => Self::Float,
            Attribute::Int(_) => Self::Int,
            Attribute::String(_) => Self::String,
            Attribute::Tensor(_) => Self::Tensor,
            Attribute::Graph(_) => Self::Graph,
            Attribute::SparseTensor(_) => Self::SparseTensor,
            Attribute::Type(_) => Self::Type,
            Attribute::Floats(_) => Self::Floats,
            Attribute::Ints(_) => Self::Ints,
            Attribute::Strings(_) => Self::Strings,
            Attribute::Tensors(_) => Self::Tensors,
            Attribute::Graphs(_) => Self::Graphs,
            Attribute::SparseTensors(_) => Self::SparseTensors,
            Attribute::Types(_) => Self::Types,
            Attribute::Reference { kind, .. } => {
                let place = usize::try_from(kind.checked_sub(1)?).ok()?;
                Self::NAMES.get(place)?.0
            }
            Attribute::Undefined => return None,
        })
    }
}

impl fmt::Display for AttributeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::NAMES[*self as usize - 1].1)
    }
}

impl TypeSet {
    /// Whether dense tensors of this element type belong to it.
    pub fn allows_tensor(&self, dtype: DataType) -> bool {
        self.elements[0] & bit(dtype) != 0
    }

    /// Whether a value with this fact may belong to it; what is not known may.
    pub fn allows(&self, fact: &Fact) -> bool {
        let wrapped = |wrap: usize, dtype: Option<DataType>| match dtype {
            Some(dtype) => self.elements[wrap] & bit(dtype) != 0,
            None => self.elements[wrap] != 0,
        };
        match fact {
            Fact::Unknown => true,
            Fact::Tensor(tensor) => wrapped(0, tensor.dtype),
            // Sequences of maps (as `ZipMap` makes them) stand under `map`.
            Fact::Sequence(item) if matches!(**item, Fact::Unknown | Fact::Other) => {
                self.map || wrapped(1, None)
            }
            Fact::Sequence(item) => wrapped(1, item.dtype()),
            Fact::Optional(item) => match &**item {
                Fact::Unknown => wrapped(2, None) || wrapped(3, None),
                Fact::Sequence(item) => wrapped(3, item.dtype()),
                item => wrapped(2, item.dtype()),
            },
            Fact::Other => self.map || wrapped(4, None),
        }
    }

    /// The set written as in the table; groups must be known already.
    fn parse(text: &str, groups: &HashMap<&str, u32>) -> Option<Self> {
        let (mut set, mut wrap) = (Self::default(), 0);
        for word in text.split(',') {
            let (open, word) = word.find('(').map_or(("", word), |i| word.split_at(i + 1));
            if !open.is_empty() {
                wrap = WRAPS.iter().position(|w| *w == open)?;
            }
            let name = word.trim_end_matches(')');
            match name {
                "map" => set.map = true,
                _ => {
                    set.elements[wrap] |= groups.get(name).copied().or_else(|| name.parse().ok().map(bit))?;
                }
            }
            if name.len() < word.len() {
                wrap = 0;
            }
        }
        Some(set)
    }
}

/// The types by name, for messages: `float16, float, seq(float)`.
impl fmt::Display for TypeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = vec![];
        for (wrap, bits) in WRAPS.iter().zip(self.elements) {
            let close = &"))"[..wrap.matches('(').count()];
            let dtypes = (1..32).filter_map(DataType::from_number).filter(|&d| bits & bit(d) != 0);
            names.extend(dtypes.map(|d| format!("{wrap}{d}{close}")));
        }
        names.extend(self.map.then(|| "map".to_owned()));
        f.write_str(&names.join(", "))
    }
}

fn bit(dtype: DataType) -> u32 {
    1 << dtype.number()
}

/// The table as it is searched.
#[derive(Default)]
struct Table {
    schemas: Vec<Schema>,
    operators: HashMap<(&'static str, &'static str), Range<usize>>,
    domains: Vec<(&'static str, i64)>,
}

fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table::parse(include_str!("schema.txt")).expect("schema.py wrote the table"))
}

impl Table {
    fn parse(text: &'static str) -> Option<Self> {
        let mut table = Self::default();
        let mut groups = HashMap::new();
        let mut sets = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            if let Some((name, members)) = line.strip_prefix("group ").and_then(|l| l.split_once('=')) {
                let bits = TypeSet::parse(members, &groups)?.elements[0];
                groups.insert(name, bits);
            } else if let Some((domain, newest)) =
                line.strip_prefix("domain ").and_then(|l| l.split_once(' '))
            {
                table.domains.push((standard_domain(domain), newest.parse().ok()?));
            } else {
                let mut set = |text| match sets.get(text) {
                    Some(&set) => Some(set),
                    None => {
                        sets.entry(text).insert_entry(TypeSet::parse(text, &groups)?).get().to_owned().into()
                    }
                };
                let schema = parse_line(table.domains.last()?.0, line, &mut set)?;
                let place = table.schemas.len();
                table.operators.entry((schema.domain, schema.name)).or_insert(place..place).end = place + 1;
                table.schemas.push(schema);
            }
        }
        Some(table)
    }
}

fn parse_line(
    domain: &'static str,
    line: &'static str,
    set: &mut dyn FnMut(&'static str) -> Option<TypeSet>,
) -> Option<Schema> {
    let mut parts = line.split(" | ");
    let (head, outputs) = parts.next()?.split_once(" ->")?;
    let attributes =
        parts.next().unwrap_or("").split_whitespace().map(parse_attribute).collect::<Option<_>>()?;
    let variable = |text: &'static str| {
        let (name, types) = text.split_once('=')?;
        Some((name, set(types)?))
    };
    let variables: Vec<_> =
        parts.next().unwrap_or("").split_whitespace().map(variable).collect::<Option<_>>()?;

    let mut words = head.split_whitespace();
    let (name, since) = (words.next()?, words.next()?.parse().ok()?);
    let (mut deprecated, mut random, mut inputs) = (false, false, vec![]);
    for word in words {
        match word {
            "deprecated" => deprecated = true,
            "random" => random = true,
            word => inputs.push(parse_formal(word, &variables, set)?),
        }
    }
    let outputs = outputs.split_whitespace().map(|o| parse_formal(o, &variables, set));
    let outputs = outputs.collect::<Option<_>>()?;
    Some(Schema { name, domain, since, deprecated, random, inputs, outputs, attributes, variables })
}

fn parse_formal(
    word: &'static str,
    variables: &[(&'static str, TypeSet)],
    set: &mut dyn FnMut(&'static str) -> Option<TypeSet>,
) -> Option<Formal> {
    let (name, rest) = word.split_once(':')?;
    let ty = rest.trim_end_matches(['?', '+', '*', '~']);
    let arity = match rest.as_bytes().get(ty.len()) {
        Some(b'?') => Arity::Optional,
        Some(b'+') => Arity::Variadic(1),
        Some(b'*') => Arity::Variadic(0),
        _ => Arity::Single,
    };
    let variable = variables.iter().position(|v| v.0 == ty);
    let types = match variable {
        Some(i) => variables[i].1,
        None => set(ty)?,
    };
    Some(Formal { name, arity, types, variable, homogeneous: !rest.ends_with('~') })
}

fn parse_attribute(word: &'static str) -> Option<AttributeSchema> {
    let (spec, default) = word.split_once('=').map_or((word, None), |(spec, default)| (spec, Some(default)));
    let (name, kind) = spec.split_once(':')?;
    let required = kind.ends_with('!');
    let wanted = kind.trim_end_matches('!');
    let kind = AttributeKind::NAMES.iter().find(|k| k.1 == wanted)?.0;
    Some(AttributeSchema { name, kind, required, default })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_table_is_read() {
        let lines = include_str!("schema.txt").lines().filter(|l| l.contains(" ->")).count();
        assert_eq!(table().schemas.len(), lines);
        assert_eq!(newest_opset("ai.onnx"), Some(28));
        assert_eq!(newest_opset("com.microsoft"), None);
        for schema in &table().schemas {
            assert!(schema.attributes.is_sorted_by_key(|a| a.name), "{}", schema.name);
            let defaults = schema.attributes.iter().filter_map(|a| a.default.map(|_| a));
            defaults.for_each(|a| assert_eq!(AttributeKind::of(&a.default().unwrap()), Some(a.kind)));
        }
    }

    #[test]
    fn versions_count_until_the_next() {
        let since = |opset| schema("", "Conv", opset).map(|s| s.since);
        assert_eq!(
            [since(0), since(1), since(10), since(11), since(21), since(22)],
            [None, Some(1), Some(1), Some(11), Some(11), Some(22)]
        );
        assert!(schema("ai.onnx", "Upsample", 10).unwrap().deprecated);
        assert!(schema("", "Conf", 20).is_none());
        assert!(operators("", 9).any(|op| op == "Upsample"));
        assert!(!operators("", 10).any(|op| op == "Upsample"));
    }

    #[test]
    fn counts_follow_from_the_formals() {
        let counts = |op, opset| {
            let s = schema("", op, opset).unwrap();
            (s.min_inputs(), s.max_inputs(), s.min_outputs(), s.max_outputs())
        };
        assert_eq!(counts("Conv", 11), (2, Some(3), 1, Some(1)));
        assert_eq!(counts("Resize", 11), (3, Some(4), 1, Some(1)));
        assert_eq!(counts("Concat", 13), (1, None, 1, Some(1)));
        assert_eq!(counts("Loop", 1), (3, None, 1, None));
        assert_eq!(counts("Loop", 13), (2, None, 1, None));
        assert_eq!(counts("Constant", 13), (0, Some(0), 1, Some(1)));
    }

    #[test]
    fn attributes_have_kinds_and_defaults() {
        let of = |op, name| schema("", op, 14).unwrap().attribute(name).cloned().unwrap();
        assert_eq!(of("Gemm", "alpha").default(), Some(Attribute::Float(1.0)));
        assert_eq!(of("Conv", "auto_pad").default(), Some(Attribute::string("NOTSET")));
        assert_eq!(of("LSTM", "layout").kind, AttributeKind::Int);
        assert_eq!(of("Conv", "pads").default(), None);
        assert!(of("Concat", "axis").required && !of("Softmax", "axis").required);
        assert!(schema("", "Softmax", 13).unwrap().attribute("axes").is_none());
    }

    #[test]
    fn types_are_sets() {
        let identity = schema("", "Identity", 16).unwrap().inputs[0].types;
        let float = || Fact::tensor(DataType::Float, vec![]);
        assert!(identity.allows(&float()) && identity.allows(&Fact::Sequence(Box::new(float()))));
        assert!(!identity.allows(&Fact::tensor(DataType::Int4, vec![])));
        let conv = schema("", "Conv", 11).unwrap().inputs[0].types;
        assert_eq!(conv.to_string(), "float, float16, double");
        assert!(!conv.allows(&Fact::Sequence(Box::new(float()))) && conv.allows(&Fact::Unknown));
        let sequence = schema("", "SequenceAt", 11).unwrap().inputs[0].types;
        assert!(sequence.to_string().contains("seq(double)") && !sequence.allows(&float()));
    }
}
