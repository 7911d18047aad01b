//! Parser of the schema table.

use super::{Arity, AttributeKind, AttributeSchema, Formal, Schema, TypeSet};
use crate::standard_domain;
use std::{collections::HashMap, ops::Range, sync::OnceLock};

/// All schemas, with the index range of every operator by domain and name.
#[derive(Default)]
pub(super) struct Table {
    pub(super) schemas: Vec<Schema>,
    pub(super) operators: HashMap<(&'static str, &'static str), Range<usize>>,
    pub(super) domains: Vec<(&'static str, i64)>,
}

pub(super) fn table() -> &'static Table {
    static TABLE: OnceLock<Table> = OnceLock::new();
    TABLE.get_or_init(|| Table::parse(include_str!("schema.txt")).expect("valid schema table"))
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
                let mut set = |text| -> Option<TypeSet> {
                    if let Some(&set) = sets.get(text) {
                        return Some(set);
                    }
                    let set = TypeSet::parse(text, &groups)?;
                    sets.insert(text, set);
                    Some(set)
                };
                let schema = parse_line(table.domains.last()?.0, line, &mut set)?;
                let index = table.schemas.len();
                table.operators.entry((schema.domain, schema.name)).or_insert(index..index).end = index + 1;
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
    let (mut deprecated, mut inputs) = (false, vec![]);
    for word in words {
        match word {
            "deprecated" => deprecated = true,
            word => inputs.push(parse_formal(word, &variables, set)?),
        }
    }
    let outputs = outputs.split_whitespace().map(|o| parse_formal(o, &variables, set));
    let outputs = outputs.collect::<Option<_>>()?;
    Some(Schema { name, domain, since, deprecated, inputs, outputs, attributes, variables })
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
    let kind_name = kind.trim_end_matches('!');
    let kind = AttributeKind::NAMES.iter().find(|k| k.1 == kind_name)?.0;
    Some(AttributeSchema { name, kind, required, default })
}
