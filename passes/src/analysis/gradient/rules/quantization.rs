//! Rounding between `QuantizeLinear` and `DequantizeLinear`, through which gradients pass straight.
//!
//! The rounded value has the gradient of the number that it represents, so that the scale does not matter.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use pare_graph::{DataType, Decline};

/// `y = (x − z)·s`: the number that `x` represents is `y`, so `dx = dy`. The scale has none.
pub(super) fn dequantize(s: &Step<'_>) -> Done {
    if s.wants(1) {
        return s.because("has a scale that depends on a parameter");
    }
    s.unary(|_, _, dy| dy)
}

/// `y = clamp(round(x/s) + z)`, `dx = dy` where `y` is not clamped. The scale has none.
pub(super) fn quantize<'t>(s: &Step<'t>) -> Done {
    if s.wants(1) {
        return s.because("has a scale that depends on a parameter");
    }
    let (x, scale, y, dy) = (s.x(0)?, s.x(1)?, s.y()?, s.dy()?);
    let (low, high) = limits(y.dtype()).ok_or(Decline::Mismatch)?;
    let rank = x.rank()?;
    let along = |vector: Term<'t>| -> Result<Term<'t>, Decline> {
        if vector.rank()? == 0 || vector.rank()? == rank {
            return Ok(vector);
        }
        let axis = s.int("axis", 1);
        let axis = usize::try_from(if axis < 0 { axis + rank as i64 } else { axis });
        let axis = axis.ok().filter(|&axis| axis < rank).ok_or(Decline::Mismatch)?;
        Ok(vector.unsqueeze(&(1..rank - axis).collect::<Vec<_>>()))
    };
    s.give_with(0, || {
        let scale = along(scale)?;
        let zero = match s.optional(2) {
            Some(zero) => Some(along(zero.cast(x.dtype()))?),
            None => None,
        };
        let scaled = x / scale;
        let position = zero.map_or(scaled, |zero| scaled + zero);
        // Numbers up to half a step beyond a limit are rounded to it.
        let kept = position.above(low - 0.5).op2("And", position.below(high + 0.5));
        Ok(dy.where_true(kept))
    });
    Ok(())
}

/// The smallest and the largest integer of a type.
fn limits(dtype: DataType) -> Option<(f64, f64)> {
    let top = 2_f64.powi(dtype.bits() as i32);
    match dtype {
        DataType::Uint2 | DataType::Uint4 | DataType::Uint8 | DataType::Uint16 => Some((0.0, top - 1.0)),
        DataType::Int2 | DataType::Int4 | DataType::Int8 | DataType::Int16 => {
            Some((-top / 2.0, top / 2.0 - 1.0))
        }
        _ => None,
    }
}
