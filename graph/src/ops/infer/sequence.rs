//! Sequences, optionals and strings.

use super::{
    cx::{Cx, Facts, one, tensor},
    dims::common,
};
use crate::{Attribute, DataType, Dim, Fact};

fn item(fact: &Fact) -> Fact {
    match fact {
        Fact::Sequence(item) | Fact::Optional(item) => item.as_ref().clone(),
        _ => Fact::Unknown,
    }
}

/// The fact without content, which differs between the tensors of a sequence.
fn without_content(fact: &Fact) -> Fact {
    tensor(fact.dtype(), fact.shape().map(<[Dim]>::to_vec))
}

/// `SequenceConstruct`.
pub(super) fn construct(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype(0..cx.inputs.len())?;
    let facts = (0..cx.inputs.len()).map(|slot| without_content(cx.fact(slot)));
    let all = facts.reduce(|a, b| common(&a, &b)).unwrap_or_default();
    Ok(vec![Fact::Sequence(Box::new(tensor(dtype, all.shape().map(<[Dim]>::to_vec))))])
}

/// `SequenceEmpty`.
pub(super) fn empty(cx: &Cx) -> Facts {
    let dtype = cx.dtype_attr("dtype").unwrap_or(DataType::Float);
    Ok(vec![Fact::Sequence(Box::new(tensor(Some(dtype), None)))])
}

/// `SequenceAt`.
pub(super) fn at(cx: &Cx) -> Facts {
    Ok(vec![item(cx.fact(0))])
}

/// `SequenceInsert`.
pub(super) fn insert(cx: &Cx) -> Facts {
    let all = common(&item(cx.fact(0)), &without_content(cx.fact(1)));
    let dtype = cx.fact(1).dtype().or(item(cx.fact(0)).dtype());
    Ok(vec![Fact::Sequence(Box::new(tensor(dtype, all.shape().map(<[Dim]>::to_vec))))])
}

/// `SequenceErase`: type of the input.
pub(super) fn erase(cx: &Cx) -> Facts {
    Ok(vec![cx.fact(0).clone()])
}

/// `SequenceLength`.
pub(super) fn length(_: &Cx) -> Facts {
    one(Some(DataType::Int64), Some(vec![]))
}

/// `SplitToSequence`: parts along an axis, which parts of size 1 do not have without `keepdims`.
pub(super) fn split(cx: &Cx) -> Facts {
    let mut shape = cx.dims(0);
    if let Some(dims) = &mut shape {
        let axis = cx.axis("axis", 0, dims.len())?;
        if cx.input(1).is_none() {
            if cx.at.int("keepdims", 1) != 0 {
                dims[axis] = Dim::from(1_i64);
            } else {
                dims.remove(axis);
            }
        } else {
            dims[axis] = part_size(cx, &dims[axis]);
        }
    }
    Ok(vec![Fact::Sequence(Box::new(tensor(cx.dtype(0), shape)))])
}

/// The common size of all parts of an axis.
fn part_size(cx: &Cx, size: &Dim) -> Dim {
    let Some(sizes) = cx.content(1) else { return Dim::unknown() };
    let (first, rank) = (sizes.first(), cx.rank(1));
    match (first, rank) {
        // A scalar is the size of every part if it divides the size.
        (Some(n), Some(0)) if size.exact_div(n).is_some() => n.clone(),
        (Some(n), Some(1)) if sizes.iter().all(|s| s == n) => n.clone(),
        _ => Dim::unknown(),
    }
}

/// `ConcatFromSequence`: the size along the axis is unknown.
pub(super) fn concat(cx: &Cx) -> Facts {
    let item = item(cx.fact(0));
    let mut shape = item.shape().map(<[Dim]>::to_vec);
    if let Some(dims) = &mut shape {
        if cx.at.int("new_axis", 0) != 0 {
            let axis = cx.axis("axis", 0, dims.len() + 1)?;
            dims.insert(axis, Dim::unknown());
        } else {
            let axis = cx.axis("axis", 0, dims.len())?;
            dims[axis] = Dim::unknown();
        }
    }
    one(item.dtype(), shape)
}

/// `Optional`: of the type of the input, or of attribute `type`.
pub(super) fn optional(cx: &Cx) -> Facts {
    let inner = match (cx.input(0), cx.at.attr("type")) {
        (Some(_), _) => match cx.fact(0) {
            Fact::Tensor(_) => without_content(cx.fact(0)),
            other => other.clone(),
        },
        (None, Some(Attribute::Type(ty))) => ty.fact(),
        _ => Fact::Unknown,
    };
    Ok(vec![Fact::Optional(Box::new(inner))])
}

/// `OptionalGetElement`: since operator set 18, the input may also be a tensor or a sequence.
pub(super) fn get(cx: &Cx) -> Facts {
    Ok(vec![match cx.fact(0) {
        Fact::Optional(inner) => inner.as_ref().clone(),
        other => other.clone(),
    }])
}

/// `OptionalHasElement`: a boolean scalar.
pub(super) fn has(_: &Cx) -> Facts {
    one(Some(DataType::Bool), Some(vec![]))
}

/// `StringConcat`.
pub(super) fn string_concat(cx: &Cx) -> Facts {
    one(Some(DataType::String), super::elementwise::broadcast(cx, [0, 1])?)
}

/// `StringSplit`: the substrings along a new axis, and their number.
pub(super) fn string_split(cx: &Cx) -> Facts {
    let shape = || cx.dims(0);
    let pieces = shape().map(|s| [s, vec![Dim::unknown()]].concat());
    Ok(vec![tensor(Some(DataType::String), pieces), tensor(Some(DataType::Int64), shape())])
}

/// `StringNormalizer`: stop words are removed.
pub(super) fn string_normalizer(cx: &Cx) -> Facts {
    let drops = matches!(cx.at.attr("stopwords"), Some(Attribute::Strings(words)) if !words.is_empty());
    let mut shape = cx.dims(0);
    if let Some(last) = shape.as_mut().and_then(|s| s.last_mut()).filter(|_| drops) {
        *last = Dim::unknown();
    }
    one(Some(DataType::String), shape)
}

/// `TfIdfVectorizer`: one column per n-gram.
pub(super) fn tf_idf(cx: &Cx) -> Facts {
    let columns = cx.at.ints("ngram_indexes").and_then(|i| i.iter().max()?.checked_add(1));
    let columns = columns.map_or_else(Dim::unknown, Dim::from);
    let shape = match cx.shape(0) {
        Some([]) => Some(vec![columns]),
        Some([lead @ .., _]) => Some([lead, &[columns]].concat()),
        None => None,
    };
    one(Some(DataType::Float), shape)
}

/// `ImageDecoder`: `[height, width, channels]`.
pub(super) fn image(cx: &Cx) -> Facts {
    let channels = if cx.at.string("pixel_format", "RGB") == "Grayscale" { 1_i64 } else { 3 };
    let shape = vec![Dim::unknown(), Dim::unknown(), Dim::from(channels)];
    one(Some(DataType::Uint8), Some(shape))
}
