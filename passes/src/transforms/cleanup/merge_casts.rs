use crate::framework::matching::{cancel, is_plain};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Attribute, DataType, Decline, Model, NodeRef, Patch, Tensor, expect};

pass! {
    /// Merge two casts where the first loses nothing: `C→B ∘ A→C = A→B` if every `A` is a `C`.
    ///
    /// `CastLike` becomes a `Cast` if the type is known, and the cast of a `ConstantOfShape` changes its value.
    ///
    /// `int32→int64→int32` and `float16→float→float16` are removed, `float→int64→float` is kept. Declines for
    /// strings, for floats of at most 8 bits, whose casts have options, and from floats to integers, where
    /// the result for numbers out of range depends on the intermediate type.
    #[pass("merge-casts", Exact, "cast merged", "casts merged")]
    pub struct MergeCasts {}
}

impl Pass for MergeCasts {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["CastLike"], to_known_type)?;
        cx.rewrite(model, &["Cast"], |at| merged(at).or_else(|decline| filled(at).map_err(|_| decline)))
    }
}

fn merged(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let inner = at.input(0)?.produced_by("Cast")?;
    is_plain(inner)?;
    let x = inner.input(0)?;
    let known = |v: pare_graph::ValueRef<'_>| v.dtype().ok_or(Decline::Mismatch);
    let (from, by, to) = (known(x)?, known(at.input(0)?)?, known(at.output()?)?);
    expect(holds(by, from) && format(to).is_some() && !(from.is_float() && to.is_integer()))?;
    if from == to {
        return cancel(at, x);
    }
    let mut patch = Patch::at(at);
    let cast = patch.copy(at, &[Some(x.into())]);
    patch.replace(at.output()?, cast);
    Ok(patch)
}

/// `CastLike` of a known type as `Cast`.
fn to_known_type(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let (x, y) = (at.input(0)?, at.output()?);
    let to = at.input(1)?.dtype().ok_or_else(|| {
        Decline::because(format!("the type of `{}` is unknown", at.input(1).map_or("", |v| v.name())))
    })?;
    let mut node = at.node().clone().with("to", i64::from(to.number()));
    node.op = "Cast".into();
    let mut patch = Patch::at(at);
    let cast = patch.node(y.name(), node, &[x.into()]);
    patch.replace(y, cast);
    Ok(patch)
}

/// `Cast` of a `ConstantOfShape` whose value the type represents.
fn filled(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let (between, y) = (at.input(0)?, at.output()?);
    let fill = between.produced_by("ConstantOfShape")?;
    is_plain(fill)?;
    let to = y.dtype().filter(|&to| format(to).is_some()).ok_or(Decline::Mismatch)?;
    let value = match fill.attr("value") {
        None => Tensor::vector(&[0_f32]),
        Some(Attribute::Tensor(value)) => value.clone(),
        _ => return Err(Decline::Mismatch),
    };
    let number = value.single().filter(|_| format(value.dtype()).is_some()).ok_or(Decline::Mismatch)?;
    let cast = Tensor::from_f64(to, &[1], &[number]).map_err(|_| Decline::Mismatch)?;
    expect(cast.single() == Some(number))?;
    between.sole_use()?;
    let mut patch = Patch::at(at);
    let node = fill.node().clone().with("value", Attribute::Tensor(cast));
    let new = patch.node(y.name(), node, &[fill.input(0)?.into()]);
    patch.replace(y, new);
    Ok(patch)
}

/// The number format of a type: signedness, digits (bits), and whether it is a float.
fn format(dtype: DataType) -> Option<(bool, u32, bool)> {
    use DataType as D;
    Some(match dtype {
        D::Bool => (false, 1, false),
        D::Uint8 | D::Uint16 | D::Uint32 | D::Uint64 => (false, dtype.bits(), false),
        D::Int8 | D::Int16 | D::Int32 | D::Int64 => (true, dtype.bits() - 1, false),
        D::Bfloat16 => (true, 8, true),
        D::Float16 => (true, 11, true),
        D::Float => (true, 24, true),
        D::Double => (true, 53, true),
        _ => return None,
    })
}

/// Returns true if type `wide` represents every value of type `narrow`.
fn holds(wide: DataType, narrow: DataType) -> bool {
    let (Some(w), Some(n)) = (format(wide), format(narrow)) else { return false };
    let ((wide_sign, wide_digits, wide_floats), (sign, digits, floats)) = (w, n);
    // Neither of the 16-bit floats contains the other: one has more digits, the other a larger exponent.
    let short = |d| matches!(d, DataType::Float16 | DataType::Bfloat16);
    let exponent = wide == narrow || !short(wide) || !floats;
    (wide_sign || !sign) && wide_digits >= digits && (wide_floats || !floats) && exponent
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn removes_lossless_cast() {
        check(
            MergeCasts::default(),
            "g (int32[2] x) => (int32[2] y, float[2] z) {
                a = Cast<to = 7>(x) b = Cast<to = 6>(a) y = Neg(b) c = Cast<to = 1>(a) z = Neg(c) }",
            "g (int32[2] x) => (int32[2] y, float[2] z) { y = Neg(x) c = Cast<to = 1>(x) z = Neg(c) }",
        );
    }

    #[test]
    fn merges_casts_from_input_to_output() {
        check(
            MergeCasts::default(),
            "g (int32[2] x) => (int32[2] y) { a = Cast<to = 7>(x) y = Cast<to = 6>(a) }",
            "g (int32[2] x) => (int32[2] y) { y = Identity(x) }",
        );
    }

    #[test]
    fn casts_to_known_types() {
        check(
            MergeCasts::default(),
            "g (int32[2] x, float z) => (float[2] y, int64[2] w) <int64 k = {1}> {
                y = CastLike(x, z) w = CastLike(x, k) }",
            "g (int32[2] x, float z) => (float[2] y, int64[2] w) { y = Cast<to = 1>(x) w = Cast<to = 7>(x) }",
        );
    }

    #[test]
    fn casts_the_value_of_a_filled_tensor() {
        check(
            MergeCasts::default(),
            "g (int64[1] s) => (int64[N] y, bool[M] z) {
                a = ConstantOfShape(s) y = Cast<to = 7>(a)
                b = ConstantOfShape<value = int64[1] {1}>(s) z = Cast<to = 9>(b) }",
            "g (int64[1] s) => (int64[N] y, bool[M] z) {
                y = ConstantOfShape<value = int64[1] {0}>(s) z = ConstantOfShape<value = bool[1] {1}>(s) }",
        );
        no_match(
            MergeCasts::default(),
            "g (int64[1] s) => (int64[N] y) {
                a = ConstantOfShape<value = float[1] {1.5}>(s) y = Cast<to = 7>(a) }",
        );
    }

    #[test]
    fn keeps_lossy_cast() {
        no_match(
            MergeCasts::default(),
            "g (float[2] x) => (float[2] y) { a = Cast<to = 7>(x) y = Cast<to = 1>(a) }",
        );
        no_match(
            MergeCasts::default(),
            "g (float[2] x) => (int32[2] y) { a = Cast<to = 11>(x) y = Cast<to = 6>(a) }",
        );
    }

    #[test]
    fn orders_types_by_inclusion() {
        use DataType as D;
        let all = [
            D::Bool,
            D::Uint8,
            D::Int8,
            D::Int16,
            D::Int32,
            D::Int64,
            D::Uint64,
            D::Float16,
            D::Bfloat16,
            D::Float,
            D::Double,
        ];
        let held_by = |wide| all.into_iter().filter(|&n| holds(wide, n)).collect::<Vec<_>>();
        assert_eq!(held_by(D::Int64), [D::Bool, D::Uint8, D::Int8, D::Int16, D::Int32, D::Int64]);
        assert_eq!(held_by(D::Bfloat16), [D::Bool, D::Uint8, D::Int8, D::Bfloat16]);
        assert_eq!(
            held_by(D::Float),
            [D::Bool, D::Uint8, D::Int8, D::Int16, D::Float16, D::Bfloat16, D::Float]
        );
        assert_eq!(held_by(D::Uint64), [D::Bool, D::Uint8, D::Uint64]);
    }
}
