//! Operators that create tensors from attributes and shapes.

use super::{
    Stop,
    call::{Call, sizes},
    here, invalid, number,
    place::assemble,
};
use crate::{Attribute, DataType, Tensor};

pub(super) fn constant(call: Call<'_>) -> Result<Tensor, Stop> {
    call.at.node().literal().cloned().ok_or(Stop::NotHere)
}

pub(super) fn constant_of_shape(call: Call<'_>) -> Result<Tensor, Stop> {
    let shape = sizes(&call.ints_in(0)?)?;
    let value = match call.at.attr("value") {
        Some(Attribute::Tensor(value)) if value.len() == 1 => value.clone(),
        Some(_) => return invalid("its value does not have one element"),
        None => Tensor::scalar(0_f32),
    };
    let count = call.count(value.dtype(), &shape)?;
    assemble(call, &[&value], &shape, (0..count).map(|_| (0, 0)))
}

pub(super) fn eye_like(call: Call<'_>) -> Result<Tensor, Stop> {
    let like = call.input(0)?;
    let dtype = match call.at.attr("dtype") {
        Some(&Attribute::Int(number)) => dtype_of(number)?,
        _ => like.dtype(),
    };
    let (&[rows, columns], k) = (like.shape(), call.at.int("k", 0)) else {
        return invalid("its input is not a matrix");
    };
    call.count(dtype, &[rows, columns])?;
    let on = |i: usize| ((i % columns) as i64).checked_sub((i / columns) as i64) == Some(k);
    let cells = 0..rows * columns;
    if dtype.is_float() {
        number::from_floats(dtype, &[rows, columns], cells.map(|i| Ok(f64::from(u8::from(on(i))))))
    } else {
        number::from_integers(dtype, &[rows, columns], false, cells.map(|i| Ok(i128::from(on(i)))))
    }
}

/// The element type with this number in `TensorProto.DataType`.
pub(super) fn dtype_of(number: i64) -> Result<DataType, Stop> {
    let dtype = i32::try_from(number).ok().and_then(DataType::from_number);
    dtype.map_or_else(|| invalid(format!("element type {number} is unknown")), Ok)
}

pub(super) fn shape(call: Call<'_>) -> Result<Tensor, Stop> {
    let shape = call.input(0)?.shape();
    let rank = shape.len() as i64;
    let position = |name, default| {
        let given = call.at.int(name, default);
        (if given < 0 { given.saturating_add(rank) } else { given }).clamp(0, rank) as usize
    };
    let (start, end) = (position("start", 0), position("end", rank));
    let sizes: Vec<_> = shape.iter().map(|&n| n as i64).collect();
    Ok(Tensor::vector(sizes.get(start..end).unwrap_or_default()))
}

pub(super) fn size(call: Call<'_>) -> Result<Tensor, Stop> {
    Ok(Tensor::scalar(call.input(0)?.len() as i64))
}

/// `start, start + delta, …` before `limit`.
pub(super) fn range(call: Call<'_>) -> Result<Tensor, Stop> {
    let inputs = call.all()?;
    let dtype = inputs[0].dtype();
    if inputs.len() != 3 || inputs.iter().any(|t| t.len() != 1 || t.dtype() != dtype) {
        return invalid("its inputs are not three scalars of one type");
    }
    let counted = |n: u128| -> Result<usize, Stop> {
        let n = usize::try_from(n).map_err(|_| Stop::TooLarge(u64::MAX))?;
        call.count(dtype, &[n])
    };
    if let Ok(read) = number::integer_reader(dtype) {
        let [start, limit, delta] = [0, 1, 2].map(|i| read(inputs[i].bytes(), 0));
        if delta == 0 {
            return invalid("its step is 0");
        }
        let span = if delta > 0 { limit - start } else { start - limit };
        let n = counted(span.max(0).unsigned_abs().div_ceil(delta.unsigned_abs()))?;
        let values = (0..n as i128).map(|i| Ok(start + i * delta));
        return number::from_integers(dtype, &[n], false, values);
    }
    here(matches!(dtype, DataType::Float | DataType::Double))?;
    let [start, limit, delta] = [0, 1, 2].map(|i| inputs[i].single().unwrap_or(f64::NAN));
    let rounded = |v: f64| if dtype == DataType::Float { f64::from(v as f32) } else { v };
    let n = (rounded(limit - start) / delta).ceil();
    here(n.is_finite())?;
    let n = counted(n.max(0.0) as u128)?;
    // Engines accumulate: each element is the rounded sum of the previous one and the step.
    let sums = std::iter::successors(Some(start), |&v| Some(rounded(v + delta)));
    number::from_floats(dtype, &[n], sums.take(n).map(Ok))
}
