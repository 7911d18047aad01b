//! Operators that select, split and join elements: `Slice`, `Gather`, `Concat`, `Split`, ….

use super::{
    cx::{Cx, Facts, Ints, Shape, filled, one, tensor},
    dims::{self, MAX_RANK, plus, product, unknowns},
};
use crate::{DataType, Dim};

/// `Slice`: starts, ends and axes are attributes before operator set 10.
pub(super) fn slice(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    let Some(from) = cx.shape(0) else { return one(dtype, None) };
    let mut shape = from.to_vec();
    let list = |name, slot| match cx.at.ints(name) {
        Some(ints) => Some(ints.iter().map(|&n| Dim::from(n)).collect()),
        None => cx.content(slot).map(std::borrow::Cow::into_owned),
    };
    let (starts, ends): (Option<Vec<Dim>>, Option<Vec<Dim>>) = (list("starts", 1), list("ends", 2));
    let given = [&starts, &ends].into_iter().flatten().map(Vec::len).max();
    let count = given.or_else(|| cx.length(1));
    let axes = match cx.ints_or_input("axes", 3) {
        Ints::Known(axes) => Some(axes),
        Ints::Unknown => None,
        Ints::Absent => count.filter(|&n| n <= from.len()).map(|n| (0..n as i64).collect()),
    };
    let Some(axes) = axes else { return one(dtype, unknowns(from.len())) };
    let steps = if cx.input(4).is_some() { cx.numbers(4) } else { Some(vec![1; axes.len()]) };
    let mut range = None;
    for (i, &axis) in axes.iter().enumerate() {
        let axis = dims::axis(axis, from.len())?;
        let item = |list: &Option<Vec<Dim>>| {
            list.as_ref().and_then(|l| l.get(i)).cloned().unwrap_or_else(Dim::integer)
        };
        let step = steps.as_ref().and_then(|s| s.get(i)).copied();
        if step == Some(0) {
            return Err("a step is 0".into());
        }
        let bounds = step.and_then(|step| bounds(&from[axis], &item(&starts), &item(&ends), step));
        shape[axis] = match (&bounds, step) {
            (Some((start, end)), Some(step)) => extent(&from[axis], start, end, step),
            _ => Dim::unknown(),
        };
        range = bounds.zip(step);
    }
    let content = match (cx.content(0), range) {
        (Some(items), Some(((start, end), step))) if from.len() == 1 && axes.len() == 1 => {
            start.known().zip(end.known()).map(|(start, end)| strided(&items, start, end, step))
        }
        (Some(items), _) if axes.is_empty() => Some(items.into_owned()),
        _ => None,
    };
    Ok(vec![filled(dtype, Some(shape), content)])
}

fn strided(items: &[Dim], mut at: i64, end: i64, step: i64) -> Vec<Dim> {
    let mut taken = vec![];
    while if step > 0 { at < end } else { at > end } {
        taken.extend(usize::try_from(at).ok().and_then(|i| items.get(i)).cloned());
        at = at.saturating_add(step);
    }
    taken
}

/// Start and end of a slice, counted from the front and clamped to the axis; `None` if they are unknown.
fn bounds(size: &Dim, start: &Dim, end: &Dim, step: i64) -> Option<(Dim, Dim)> {
    if size.known() == Some(0) {
        return Some((Dim::from(0_i64), Dim::from(0_i64)));
    }
    // The range of the end: up to the size forwards, down to -1 backwards.
    let (low, high) = if step > 0 { (0, size.clone()) } else { (-1, plus(size, -1)) };
    let low_start = Dim::from(0_i64);
    Some((clamp(size, start, &low_start, &high)?, clamp(size, end, &Dim::from(low), &high)?))
}

/// The position `at`, counted from the front and clamped to `low` and `high`; `None` if it is unknown.
fn clamp(size: &Dim, at: &Dim, low: &Dim, high: &Dim) -> Option<Dim> {
    if let (Some(n), Some(at), Some(high)) = (size.known(), at.known(), high.known()) {
        let front = if at < 0 { at.saturating_add(n) } else { at };
        return Some(Dim::from(front.min(high).max(low.known()?)));
    }
    match at.known() {
        Some(0) => Some(low.clone().maximum(&Dim::from(0_i64))),
        // Conventional values for the end and the start of an axis.
        Some(n) if n >= i64::from(i32::MAX) => Some(high.clone()),
        Some(n) if n <= -i64::from(i32::MAX) => Some(low.clone()),
        // Clamped unless it is within the axis for every size.
        Some(n) if n > 0 => Some(if high.at_least(n) { at.clone() } else { at.minimum(high) }),
        Some(n) => {
            let front = plus(size, n);
            Some(if size.at_least(-n) { front } else { front.maximum(low) })
        }
        None if at == size => Some(high.clone()),
        None if at.at_least(0) => Some(if inside(at, size) { at.clone() } else { at.minimum(high) }),
        None => None,
    }
}

/// Returns true if `at ≤ size` for all values of the symbols.
fn inside(at: &Dim, size: &Dim) -> bool {
    (size - at).at_least(0)
}

/// The number of elements from `start` to `end`.
fn extent(size: &Dim, start: &Dim, end: &Dim, step: i64) -> Dim {
    // The span is not negative if it ends at the end or starts at the front.
    let ordered = step > 0 && (end == size || start.known() == Some(0));
    let span = if step > 0 { end - start } else { start - end };
    let count = span.ceil_div(&Dim::from(step.checked_abs().unwrap_or(i64::MAX)));
    match count.known() {
        Some(n) => Dim::from(n.max(0)),
        None if ordered || span.at_least(0) => count,
        None => count.maximum(&Dim::from(0_i64)),
    }
}

/// `Gather`: the axes of the indices replace `axis`.
pub(super) fn gather(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    let Some(data) = cx.shape(0) else { return one(dtype, None) };
    let axis = cx.axis("axis", 0, data.len())?;
    let Some(indices) = cx.shape(1) else { return one(dtype, None) };
    let shape = [&data[..axis], indices, &data[axis + 1..]].concat();
    let content = cx.content(0).zip(cx.numbers(1)).and_then(|(items, indices)| {
        let item = |&i: &i64| dims::axis(i, items.len()).ok().map(|i| items[i].clone());
        (data.len() == 1).then(|| indices.iter().map(item).collect::<Option<Vec<_>>>())?
    });
    Ok(vec![filled(dtype, Some(shape), content)])
}

/// `GatherElements`: the shape of the indices.
pub(super) fn gather_elements(cx: &Cx) -> Facts {
    if let (Some(a), Some(b)) = (cx.rank(0), cx.rank(1))
        && a != b
    {
        return Err(format!("{} and {} differ in rank", cx.name(0), cx.name(1)));
    }
    one(cx.dtype(0), cx.dims(1))
}

/// `GatherND`: the last axis of the indices holds a position for each indexed axis.
pub(super) fn gather_nd(cx: &Cx) -> Facts {
    let batch = cx.size("batch_dims", 0);
    let (Some(data), Some(indices)) = (cx.shape(0), cx.shape(1)) else { return one(cx.dtype(0), None) };
    let shape = match indices.split_last() {
        Some((last, lead)) => {
            let Some(depth) = last.size() else { return one(cx.dtype(0), None) };
            let skip = batch.checked_add(depth).filter(|&s| s <= data.len());
            let Some(skip) = skip else {
                return Err(format!("{} indexes more axes than {} has", cx.name(1), cx.name(0)));
            };
            [lead, &data[skip..]].concat()
        }
        None => return Err(format!("{} is a scalar", cx.name(1))),
    };
    one(cx.dtype(0), Some(shape))
}

/// `Concat`: the sum of the sizes along the axis; other sizes are equal.
pub(super) fn concat(cx: &Cx) -> Facts {
    let all = 0..cx.inputs.len();
    let dtype = cx.same_dtype(all.clone())?;
    let shape = joined(cx, cx.at.int("axis", 1))?;
    // Unknown elements are propagated as such.
    let items = |slot| match (cx.content(slot), cx.fact(slot).fixed_shape().as_deref()) {
        (Some(items), _) => Some(items.into_owned()),
        (None, Some(&[n])) if n <= dims::MAX_CONTENT => Some((0..n).map(|_| Dim::integer()).collect()),
        _ => None,
    };
    let short =
        shape.as_ref().is_some_and(|s| s.len() == 1 && s[0].size().is_some_and(|n| n <= dims::MAX_CONTENT));
    let content = if short { all.map(items).collect::<Option<Vec<_>>>().map(|c| c.concat()) } else { None };
    let content = content.filter(|c| c.iter().any(Dim::is_of_sizes));
    Ok(vec![filled(dtype, shape, content)])
}

fn joined(cx: &Cx, axis: i64) -> Shape {
    let mut known = (0..cx.inputs.len()).filter_map(|slot| Some((slot, cx.shape(slot)?)));
    let Some((first, shape)) = known.next() else { return Ok(None) };
    let mut shape = shape.to_vec();
    let axis = dims::axis(axis, shape.len())?;
    for (slot, next) in known {
        if next.len() != shape.len() {
            return Err(format!("{} and {} differ in rank", cx.name(first), cx.name(slot)));
        }
        for (i, dim) in next.iter().enumerate() {
            if i == axis {
                shape[i] = &shape[i] + dim;
            } else {
                let differ = || format!("{} and {} differ along axis {i}", cx.name(first), cx.name(slot));
                shape[i] = shape[i].unify(dim).ok_or_else(differ)?;
            }
        }
    }
    if cx.inputs.len() > (0..cx.inputs.len()).filter(|&s| cx.shape(s).is_some()).count() {
        shape[axis] = Dim::unknown();
    }
    Ok(Some(shape))
}

/// `Split`: parts of given sizes, or equal parts, of which the last may be smaller.
pub(super) fn split(cx: &Cx) -> Facts {
    let (dtype, n) = (cx.dtype(0), cx.outputs);
    let Some(from) = cx.shape(0) else { return Ok(vec![tensor(dtype, None); n]) };
    let axis = cx.axis("axis", 0, from.len())?;
    let sizes: Vec<Dim> = match (cx.at.ints("split"), cx.input(1).is_some()) {
        (Some(sizes), _) => sizes.iter().map(|&s| Dim::from(s)).collect(),
        (None, true) => match cx.content(1) {
            Some(sizes) => sizes.into_owned(),
            None => (0..n).map(|_| Dim::unknown()).collect(),
        },
        // Before operator set 18, the parts must be equal.
        (None, false) if cx.at.opset() < 18 => vec![from[axis].floor_div(&Dim::from(n)); n],
        (None, false) => equal_parts(&from[axis], n),
    };
    if sizes.len() != n {
        return Err(format!("{} sizes for {n} outputs", sizes.len()));
    }
    let total = sizes.iter().fold(Dim::from(0_i64), |sum, s| &sum + s);
    if total.unify(&from[axis]).is_none() {
        return Err(format!("the parts of axis {axis} of {} add up to {total}", cx.name(0)));
    }
    // Content of the parts of a vector.
    let (items, mut at) = (cx.content(0), 0);
    let part = |size: Dim| {
        let mut shape = from.to_vec();
        let piece = size.size().and_then(|len| {
            let end = usize::saturating_add(at, len);
            let piece = items.as_ref().and_then(|i| i.get(at..end)).map(<[Dim]>::to_vec);
            at = end;
            piece
        });
        shape[axis] = size;
        filled(dtype, Some(shape), piece)
    };
    Ok(sizes.into_iter().map(part).collect())
}

fn equal_parts(size: &Dim, n: usize) -> Vec<Dim> {
    let part = size.ceil_div(&Dim::from(n));
    let Some(last) = n.checked_sub(1) else { return vec![] };
    if let Some(part) = size.exact_div(&Dim::from(n)) {
        return vec![part; n];
    }
    let rest = size - &(&part * &Dim::from(last));
    // The last parts are empty if the size is too small for n parts.
    let clip = |i: usize| match (size.known(), part.known()) {
        (Some(s), Some(p)) => Dim::from(s.saturating_sub(p.saturating_mul(i as i64)).clamp(0, p)),
        _ if i == last => rest.clone(),
        _ => part.clone(),
    };
    (0..n).map(clip).collect()
}

/// `TopK`: k is an attribute before operator set 10.
pub(super) fn top_k(cx: &Cx) -> Facts {
    let mut shape = cx.dims(0);
    if let Some(shape) = &mut shape {
        let axis = cx.axis("axis", -1, shape.len())?;
        let k = match cx.at.attr("k") {
            Some(_) => Some(Dim::from(cx.at.int("k", 1))),
            None => cx.content(1).and_then(|c| c.first().cloned()),
        };
        let k = k.filter(Dim::is_of_sizes).unwrap_or_else(Dim::unknown);
        if let (Some(k), Some(n)) = (k.known(), shape[axis].known())
            && (k < 0 || k > n)
        {
            return Err(format!("k = {k} is out of range for axis {axis} of {}", cx.name(0)));
        }
        shape[axis] = k;
    }
    Ok(vec![tensor(cx.dtype(0), shape.clone()), tensor(Some(DataType::Int64), shape)])
}

/// `OneHot`: a new axis of size `depth`.
pub(super) fn one_hot(cx: &Cx) -> Facts {
    let shape = match cx.shape(0) {
        Some(indices) => {
            let axis = cx.axis("axis", -1, indices.len() + 1)?;
            let depth = cx.content(1).and_then(|c| c.first().cloned());
            let depth = depth.or_else(|| cx.floats(1).and_then(|f| f.first().map(|&d| Dim::from(d as i64))));
            let mut shape = indices.to_vec();
            shape.insert(axis, depth.filter(Dim::is_of_sizes).unwrap_or_else(Dim::unknown));
            Some(shape)
        }
        None => None,
    };
    one(cx.dtype(2), shape)
}

/// `NonZero`: one column per non-zero element.
pub(super) fn non_zero(cx: &Cx) -> Facts {
    let rank = cx.rank(0).map_or_else(Dim::unknown, Dim::from);
    one(Some(DataType::Int64), Some(vec![rank, Dim::unknown()]))
}

/// `Compress`: along an axis, or of the flattened input.
pub(super) fn compress(cx: &Cx) -> Facts {
    let kept = cx.numbers(1).map(|flags| flags.iter().filter(|&&f| f != 0).count());
    let kept = kept.map_or_else(Dim::unknown, Dim::from);
    if cx.at.attr("axis").is_none() {
        return one(cx.dtype(0), Some(vec![kept]));
    }
    let mut shape = cx.dims(0);
    if let Some(shape) = &mut shape {
        let axis = cx.axis("axis", 0, shape.len())?;
        shape[axis] = kept;
    }
    one(cx.dtype(0), shape)
}

/// `Unique`: the values, first indices, inverse indices and counts.
pub(super) fn unique(cx: &Cx) -> Facts {
    let count = Dim::unknown();
    let mut shape = cx.dims(0);
    let mut inverse = shape.as_deref().map_or_else(Dim::unknown, product);
    if cx.at.attr("axis").is_none() {
        shape = Some(vec![count.clone()]);
    } else if let Some(shape) = &mut shape {
        let axis = cx.axis("axis", 0, shape.len())?;
        inverse = std::mem::replace(&mut shape[axis], count.clone());
    }
    let list = |n: Dim| tensor(Some(DataType::Int64), Some(vec![n]));
    Ok(vec![tensor(cx.dtype(0), shape), list(count.clone()), list(inverse), list(count)])
}

/// `ArrayFeatureExtractor`: selected columns of the last axis.
pub(super) fn array_features(cx: &Cx) -> Facts {
    let Some(dims) = cx.shape(0) else { return one(cx.dtype(0), None) };
    let count = cx.shape(1).map_or_else(Dim::unknown, product);
    let mut shape = dims.to_vec();
    match shape.last_mut() {
        Some(last) => *last = count,
        None => return one(cx.dtype(0), None),
    }
    if shape.len() == 1 {
        shape.insert(0, Dim::from(1_i64));
    }
    one(cx.dtype(0), Some(shape).filter(|s| s.len() <= MAX_RANK))
}

/// `Scatter…`: shape and type of the first input; the updates have the same type.
pub(super) fn scatter(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 2])?;
    let shape = cx.dims(0);
    let indices = cx.shape(1);
    if cx.at.op() != "ScatterND"
        && let (Some(indices), Some(updates)) = (indices, cx.shape(2))
        && indices.len() != updates.len()
    {
        return Err(format!("{} and {} differ in rank", cx.name(1), cx.name(2)));
    }
    // Content of a vector with updates.
    let content = match (cx.content(0), cx.numbers(1), cx.content(2)) {
        (Some(items), Some(at), Some(new)) if cx.at.attr("reduction").is_none() && at.len() == new.len() => {
            let mut items = items.into_owned();
            for (at, new) in at.iter().zip(new.iter()) {
                let slot = dims::axis(*at, items.len())?;
                items[slot] = new.clone();
            }
            Some(items)
        }
        _ => None,
    };
    Ok(vec![filled(dtype, shape, content)])
}
