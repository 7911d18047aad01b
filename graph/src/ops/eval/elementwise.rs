//! Elementwise arithmetic, comparison and logic.

use super::{
    Stop,
    call::{Call, broadcast},
    here, invalid,
    number::{Read, float_reader, from_floats, from_integers, integer_reader, is_unsigned},
    place::Places,
};
use crate::{Attribute, DataType, Tensor};
use std::cmp::Ordering;

type Result<T, E = Stop> = std::result::Result<T, E>;

pub(super) fn elementwise(call: Call<'_>) -> Result<Tensor> {
    let op = call.at.op();
    // Before operator set 7, `axis` aligns the second input.
    let broadcasts =
        !matches!(op, "Add" | "Sub" | "Mul" | "Div" | "And" | "Or" | "Xor" | "Equal" | "Less" | "Greater");
    here(broadcasts || call.at.opset() >= 7)?;
    // Operators without inputs are unknown ones.
    let Some(first) = call.optional(0) else { return Err(Stop::NotHere) };
    match op {
        "Clip" => clip(call),
        "Relu" => extreme(call, &[first, &call.fill(first.dtype())?], Ordering::Greater),
        "Max" => extreme(call, &call.all()?, Ordering::Greater),
        "Min" => extreme(call, &call.all()?, Ordering::Less),
        "Equal" => compare(call, Ordering::is_eq),
        "Less" => compare(call, Ordering::is_lt),
        "LessOrEqual" => compare(call, Ordering::is_le),
        "Greater" => compare(call, Ordering::is_gt),
        "GreaterOrEqual" => compare(call, Ordering::is_ge),
        "And" | "Or" | "Xor" | "Not" => logic(call),
        _ if first.dtype().is_float() => floats(call),
        _ => integers(call),
    }
}

/// The broadcast shape of two operands, and the pairs of their elements.
fn pairs<'t, T: 't>(
    call: Call<'_>,
    a: &'t Tensor,
    b: &'t Tensor,
    reader: fn(DataType) -> Result<Read<T>>,
) -> Result<(Vec<usize>, impl Iterator<Item = (T, T)> + 't)> {
    if a.dtype() != b.dtype() {
        return invalid(format!("{} and {} are different types", a.dtype(), b.dtype()));
    }
    let (shape, read) = (broadcast(a.shape(), b.shape())?, reader(a.dtype())?);
    call.count(a.dtype(), &shape)?;
    let indices = |t: &Tensor| Places::broadcast(t.shape(), &shape).flatten();
    let both = indices(a).zip(indices(b));
    Ok((shape.clone(), both.map(move |(i, j)| (read(a.bytes(), i), read(b.bytes(), j)))))
}

/// Both inputs of a binary operator, or the input of a unary one twice.
fn operands(call: Call<'_>) -> Result<(&Tensor, &Tensor)> {
    let is_unary = matches!(
        call.at.op(),
        "Abs" | "BitwiseNot" | "Ceil" | "Floor" | "Neg" | "Not" | "Round" | "Sign" | "Sqrt"
    );
    Ok((call.input(0)?, call.input(usize::from(!is_unary))?))
}

/// `a^b` in single precision for the exponents of attention scales, else NaN. Engines multiply for squares,
/// and call the same routine of the C library for the others.
fn power(a: f64, b: f64) -> f64 {
    match b {
        2.0 => a * a,
        -1.0 | -0.5 | 0.5 if a > 0.0 => f64::from((a as f32).powf(b as f32)),
        _ => f64::NAN,
    }
}

fn floats(call: Call<'_>) -> Result<Tensor> {
    let f: fn(f64, f64) -> f64 = match call.at.op() {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" => |a, b| a / b,
        "Neg" => |a, _| -a,
        "Abs" => |a, _| a.abs(),
        "Sqrt" => |a, _| a.sqrt(),
        "Floor" => |a, _| a.floor(),
        "Ceil" => |a, _| a.ceil(),
        "Round" => |a, _| a.round_ties_even(),
        "Pow" if [0, 1].map(|i| call.input(i).ok().map(Tensor::dtype)) == [Some(DataType::Float); 2] => power,
        // The remainder of two floats is always exact; its sign is that of the dividend.
        "Mod" if call.at.int("fmod", 0) != 0 => |a, b| a % b,
        _ => return Err(Stop::NotHere),
    };
    let (a, b) = operands(call)?;
    let (shape, pairs) = pairs(call, a, b, float_reader)?;
    let number = |(a, b)| Some(f(a, b)).filter(|v| !v.is_nan()).ok_or(Stop::NotHere);
    from_floats(a.dtype(), &shape, pairs.map(number))
}

fn integers(call: Call<'_>) -> Result<Tensor> {
    let dtype = call.input(0)?.dtype();
    let (unsigned, fmod) = (is_unsigned(dtype), call.at.int("fmod", 0) != 0);
    // Arguments: both operands and the width of the type. `None`: processors differ.
    let f: fn(i128, i128, i128) -> Option<i128> = match call.at.op() {
        "Add" => |a, b, _| Some(a + b),
        "Sub" => |a, b, _| Some(a - b),
        "Mul" => |a, b, _| a.checked_mul(b),
        "Div" => |a, b, _| a.checked_div(b),
        "Mod" if fmod => |a, b, _| a.checked_rem(b),
        "Mod" => |a, b, _| a.checked_rem(b).map(|r| if r != 0 && (r < 0) != (b < 0) { r + b } else { r }),
        "Neg" => |a, _, _| Some(-a),
        "Abs" => |a, _, _| Some(a.abs()),
        "Sign" => |a, _, _| Some(a.signum()),
        "BitwiseAnd" => |a, b, _| Some(a & b),
        "BitwiseOr" => |a, b, _| Some(a | b),
        "BitwiseXor" => |a, b, _| Some(a ^ b),
        "BitwiseNot" => |a, _, _| Some(!a),
        "BitShift" if unsigned && call.at.string("direction", "") == "LEFT" => {
            |a, b, bits| (b < bits).then(|| a << b)
        }
        "BitShift" if unsigned => |a, b, bits| (b < bits).then(|| a >> b),
        _ => return Err(Stop::NotHere),
    };
    here(dtype != DataType::Bool)?;
    let (a, b) = operands(call)?;
    let (shape, pairs) = pairs(call, a, b, integer_reader)?;
    let bits = i128::from(dtype.bits());
    let values = pairs.map(|(a, b)| f(a, b, bits).ok_or(Stop::NotHere));
    from_integers(dtype, &shape, unsigned, values)
}

fn logic(call: Call<'_>) -> Result<Tensor> {
    let (a, b) = operands(call)?;
    if a.dtype() != DataType::Bool {
        return invalid(format!("{} is not boolean", a.dtype()));
    }
    let (shape, pairs) = pairs(call, a, b, integer_reader)?;
    let value = |(a, b): (i128, i128)| match call.at.op() {
        "And" => a & b,
        "Or" => a | b,
        "Xor" => a ^ b,
        _ => 1 - a,
    };
    from_integers(DataType::Bool, &shape, false, pairs.map(|p| Ok(value(p))))
}

fn compare(call: Call<'_>, holds: fn(Ordering) -> bool) -> Result<Tensor> {
    let (a, b) = (call.input(0)?, call.input(1)?);
    let bools = |shape: &[usize], values: &mut dyn Iterator<Item = bool>| {
        from_integers(DataType::Bool, shape, false, values.map(|v| Ok(i128::from(v))))
    };
    if let (Some(x), Some(y)) = (a.as_strings(), b.as_strings()) {
        let shape = broadcast(a.shape(), b.shape())?;
        call.count(DataType::Bool, &shape)?;
        let indices = |t: &Tensor| Places::broadcast(t.shape(), &shape).flatten();
        let mut values = indices(a).zip(indices(b)).map(|(i, j)| holds(x[i].cmp(&y[j])));
        return bools(&shape, &mut values);
    }
    if a.dtype().is_float() {
        let (shape, pairs) = pairs(call, a, b, float_reader)?;
        // Comparisons with NaN are false.
        let mut values = pairs.map(|(a, b)| a.partial_cmp(&b).is_some_and(holds));
        return bools(&shape, &mut values);
    }
    let (shape, pairs) = pairs(call, a, b, integer_reader)?;
    bools(&shape, &mut pairs.map(|(a, b)| holds(a.cmp(&b))))
}

/// The larger or smaller of two floats. Engines differ for zeros of both signs and for NaN.
pub(super) fn extreme_float(a: f64, b: f64, wanted: Ordering) -> Result<f64> {
    match a.partial_cmp(&b) {
        None => Err(Stop::NotHere),
        Some(Ordering::Equal) if a.to_bits() != b.to_bits() => Err(Stop::NotHere),
        Some(order) if order == wanted => Ok(a),
        Some(_) => Ok(b),
    }
}

/// The larger or smaller of two integers.
pub(super) fn extreme_integer(a: i128, b: i128, wanted: Ordering) -> i128 {
    if a.cmp(&b) == wanted { a } else { b }
}

fn extreme(call: Call<'_>, inputs: &[&Tensor], wanted: Ordering) -> Result<Tensor> {
    let Some((&first, rest)) = inputs.split_first() else { return invalid("it has no inputs") };
    rest.iter().try_fold(first.clone(), |best, &other| {
        if best.dtype().is_float() {
            let (shape, pairs) = pairs(call, &best, other, float_reader)?;
            return from_floats(best.dtype(), &shape, pairs.map(|(a, b)| extreme_float(a, b, wanted)));
        }
        let (shape, pairs) = pairs(call, &best, other, integer_reader)?;
        from_integers(best.dtype(), &shape, false, pairs.map(|(a, b)| Ok(extreme_integer(a, b, wanted))))
    })
}

/// `min(max(x, low), high)`, with the bounds from inputs or, before operator set 11, from attributes.
fn clip(call: Call<'_>) -> Result<Tensor> {
    let data = call.input(0)?;
    let bound = |slot: usize, name: &str| match (call.optional(slot), call.at.attr(name)) {
        (Some(bound), _) if bound.len() == 1 => bound.reshaped(&[]).map(Some).map_err(Stop::from),
        (Some(_), _) => invalid(format!("`{name}` is not a scalar")),
        (None, Some(Attribute::Float(bound))) => {
            super::cast::converted(call, &Tensor::scalar(*bound), data.dtype()).map(Some)
        }
        (None, _) => Ok(None),
    };
    let mut result = data.clone();
    for (slot, name, wanted) in [(1, "min", Ordering::Greater), (2, "max", Ordering::Less)] {
        if let Some(bound) = bound(slot, name)? {
            result = extreme(call, &[&result, &bound], wanted)?;
        }
    }
    Ok(result)
}
