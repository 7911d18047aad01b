//! `Cast` and `CastLike`.

use super::{
    Stop,
    call::Call,
    create::dtype_of,
    here, invalid,
    number::{float_reader, from_floats, from_integers, integer_reader},
};
use crate::{Attribute, DataType, Tensor};

pub(super) fn cast(call: Call<'_>) -> Result<Tensor, Stop> {
    let to = match call.at.attr("to") {
        _ if call.at.is("CastLike") => call.input(1)?.dtype(),
        Some(&Attribute::Int(number)) => dtype_of(number)?,
        Some(_) => return Err(Stop::NotHere),
        None => return invalid("`to` is missing"),
    };
    converted(call, call.input(0)?, to)
}

/// Converts every element to type `to`. Floats are truncated towards zero to integers, and `NotHere` out of
/// range, where processors differ. Integers of at least 8 bits wrap.
pub(super) fn converted(call: Call<'_>, data: &Tensor, to: DataType) -> Result<Tensor, Stop> {
    let (from, shape, bytes) = (data.dtype(), data.shape(), data.bytes());
    if from == to {
        return Ok(data.clone());
    }
    call.count(to, shape)?;
    let all = 0..data.len();
    let is_narrow_float = from.is_float() && from.bits() <= 8;
    here(!is_narrow_float || matches!(to, DataType::Float | DataType::Double))?;
    match (float_reader(from), float_reader(to)) {
        (Ok(read), Ok(_)) => from_floats(to, shape, all.map(|i| number(read(bytes, i)))),
        (Ok(read), Err(_)) if to == DataType::Bool => {
            from_integers(to, shape, false, all.map(|i| Ok(i128::from(number(read(bytes, i))? != 0.0))))
        }
        (Ok(read), Err(_)) => {
            here(to.bits() >= 8)?;
            let truncated = |i| number(read(bytes, i)).map(|v| v.trunc() as i128);
            from_integers(to, shape, false, all.map(truncated))
        }
        (Err(_), Ok(_)) if is_narrow_float => {
            let values = data.to_f64().unwrap_or_default();
            from_floats(to, shape, values.into_iter().map(number))
        }
        (Err(_), Ok(_)) => {
            let read = integer_reader(from)?;
            // Directly to f32: through f64, large integers would be rounded twice.
            let value = |i| match (to, read(bytes, i)) {
                (DataType::Double, v) => v as f64,
                (_, v) => f64::from(v as f32),
            };
            from_floats(to, shape, all.map(|i| Ok(value(i))))
        }
        (Err(_), Err(_)) => {
            let read = integer_reader(from)?;
            let value = |i| match read(bytes, i) {
                v if to == DataType::Bool => i128::from(v != 0),
                v => v,
            };
            from_integers(to, shape, to.bits() >= 8, all.map(|i| Ok(value(i))))
        }
    }
}

/// Returns `NotHere` for NaN, whose bits are not defined.
fn number(value: f64) -> Result<f64, Stop> {
    here(!value.is_nan())?;
    Ok(value)
}
