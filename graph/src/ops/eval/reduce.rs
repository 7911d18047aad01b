//! Reductions that do not depend on the order: sums and products of integers, minima and maxima.

use super::{
    Stop,
    call::{Call, axes},
    elementwise::{extreme_float, extreme_integer},
    here,
    number::{float_reader, from_floats, from_integers, integer_reader},
    place::{Places, strides},
};
use crate::{DataType, Tensor};
use std::cmp::Ordering;

pub(super) fn reduce(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    let reduced_axes = match call.ints("axes", 1)?.filter(|given| !given.is_empty()) {
        Some(given) => axes(&given, data.rank())?,
        None if call.at.int("noop_with_empty_axes", 0) != 0 => return Ok(data.clone()),
        None => (0..data.rank()).collect(),
    };
    let kept: Vec<_> = data
        .shape()
        .iter()
        .enumerate()
        .map(|(a, &n)| if reduced_axes.contains(&a) { 1 } else { n })
        .collect();
    let count = call.count(data.dtype(), &kept)?;
    // The index of the result of each element.
    let strides = strides(&kept);
    let results =
        Places::new(data.shape(), |a, c| Some(if kept[a] == 1 { 0 } else { c * strides[a] })).flatten();
    let (op, bytes) = (call.at.op(), data.bytes());
    let wanted = if op == "ReduceMax" { Ordering::Greater } else { Ordering::Less };
    let extreme = matches!(op, "ReduceMax" | "ReduceMin");

    let reduced = if data.dtype().is_float() {
        here(extreme)?;
        let read = float_reader(data.dtype())?;
        let best = fold(count, results, |i| read(bytes, i), |a, b| extreme_float(a, b, wanted))?;
        from_floats(
            data.dtype(),
            &kept,
            best.into_iter().map(|v| v.filter(|v| !v.is_nan()).ok_or(Stop::NotHere)),
        )
    } else {
        here(data.dtype() != DataType::Bool)?;
        let read = integer_reader(data.dtype())?;
        let (step, empty): (fn(i128, i128) -> Option<i128>, _) = match op {
            "ReduceSum" => (i128::checked_add, Some(0)),
            "ReduceProd" => (i128::checked_mul, Some(1)),
            "ReduceMax" => (|a, b| Some(extreme_integer(a, b, Ordering::Greater)), None),
            _ => (|a, b| Some(extreme_integer(a, b, Ordering::Less)), None),
        };
        let all = fold(count, results, |i| read(bytes, i), |a, b| step(a, b).ok_or(Stop::NotHere))?;
        let values = all.into_iter().map(|v| v.or(empty).ok_or(Stop::NotHere));
        from_integers(data.dtype(), &kept, false, values)
    }?;
    if call.at.int("keepdims", 1) != 0 {
        return Ok(reduced);
    }
    let shape: Vec<_> = (0..kept.len()).filter(|a| !reduced_axes.contains(a)).map(|a| kept[a]).collect();
    Ok(reduced.reshaped(&shape)?)
}

/// Folds each element into its result; `None` for results without elements.
fn fold<T: Copy>(
    count: usize,
    results: impl Iterator<Item = usize>,
    read: impl Fn(usize) -> T,
    step: impl Fn(T, T) -> Result<T, Stop>,
) -> Result<Vec<Option<T>>, Stop> {
    let mut all = vec![None; count];
    for (i, result) in results.enumerate() {
        let value = read(i);
        all[result] = Some(all[result].map_or(Ok(value), |so_far| step(so_far, value))?);
    }
    Ok(all)
}
