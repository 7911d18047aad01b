use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError, node_builder::reshape_target},
    pass,
};
use pare_graph::{DataType, Decline, Dim, Model, NodeRef, Patch, Tensor, ValueRef, expect};

pass! {
    /// Replace values computed from shapes by constants that are equal for all values of the symbols.
    ///
    /// A value whose elements are all known becomes a constant. The target of a `Reshape` becomes a constant
    /// with 0 for unchanged sizes and -1 for at most one other, that of `Expand` one with 1 for unchanged
    /// sizes, and the positions of a `Slice` become numbers and the end of the axis.
    ///
    /// Declines where two or more sizes depend on symbols in another way.
    #[pass("resolve-shapes", Exact, "shape resolved", "shapes resolved")]
    pub struct ResolveShapes {}
}

impl Pass for ResolveShapes {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &[], |at| match at.op() {
            "Reshape" if at.is("Reshape") => known(at).or_else(|_| reshape(at)),
            "Expand" if at.is("Expand") => known(at).or_else(|_| expand(at)),
            "Slice" if at.is("Slice") => known(at).or_else(|_| slice(at)),
            _ => known(at),
        })
    }
}

/// Replaces an output of known content by a constant.
fn known(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    expect(!at.is("Constant"))?;
    let y = at.output()?;
    let fact = &y.value().fact;
    let content = fact.content().ok_or(Decline::Mismatch)?;
    let items: Vec<i64> = content.iter().map(Dim::known).collect::<Option<_>>().ok_or(Decline::Mismatch)?;
    let (dtype, shape) = (y.dtype().ok_or(Decline::Mismatch)?, y.fixed_shape()?);
    let tensor = integers(dtype, &shape, &items).ok_or(Decline::Mismatch)?;
    let mut patch = Patch::at(at);
    let constant = if at.graph.is_function {
        NodeBuilder::new(at.graph, &mut patch, y.name()).constant("value", tensor)
    } else {
        patch.constant(y.name(), tensor)
    };
    patch.replace(y, constant);
    Ok(patch)
}

/// A tensor of these integers, if the type represents them.
fn integers(dtype: DataType, shape: &[usize], items: &[i64]) -> Option<Tensor> {
    let tensor = match dtype {
        DataType::Int64 => Tensor::from_slice(shape, items).ok()?,
        // Floats represent every integer below 2^53.
        _ if dtype.is_integer() || dtype == DataType::Bool => {
            let floats: Vec<_> = items.iter().map(|&i| i as f64).collect();
            Tensor::from_f64(dtype, shape, &floats).ok()?
        }
        _ => return None,
    };
    (tensor.to_i64()? == items).then_some(tensor)
}

/// The patch that replaces inputs of a node by constants.
fn with_constants(at: NodeRef<'_>, constants: &[(usize, &str, Vec<i64>)]) -> Result<Patch, Decline> {
    let mut patch = Patch::at(at);
    let y = at.output()?;
    let mut inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Into::into)).collect();
    for (slot, name, items) in constants {
        // Indices may be 32-bit in the model; all index inputs of a node share one type.
        let tensor = Tensor::vector(items);
        inputs[*slot] = Some(NodeBuilder::new(at.graph, &mut patch, y.name()).constant(name, tensor));
    }
    let made = patch.copy(at, &inputs);
    patch.replace(y, made);
    Ok(patch)
}

fn reshape(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let (x, target, y) = (at.input(0)?, at.input(1)?, at.output()?);
    expect(!target.is_constant())?;
    let to = y.shape().ok_or(Decline::Mismatch)?;
    let open =
        || Decline::because(format!("`{}` has several sizes that no constant target can express", y.name()));
    let target = reshape_target(x.shape(), to).ok_or_else(open)?;
    // `x` may not fit a declared shape: then the model fails at run time and is not changed.
    let count = |shape: &[Dim]| shape.iter().try_fold(1_i64, |n, d| n.checked_mul(d.known()?));
    let fixed: Vec<Dim> = to.iter().filter(|d| d.known().is_some()).cloned().collect();
    let fits = |before: i64| match count(&fixed) {
        Some(0) => before == 0,
        Some(after) if fixed.len() < to.len() => before % after == 0,
        after => after.is_none_or(|after| after == before),
    };
    expect(x.shape().and_then(count).is_none_or(fits))?;
    // Without 0 both settings of `allowzero` agree; with `allowzero = 1`, a 0 is an empty axis.
    expect(at.int("allowzero", 0) == 0 || !target.contains(&0))?;
    with_constants(at, &[(1, "shape", target)])
}

fn expand(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    let (x, target, y) = (at.input(0)?, at.input(1)?, at.output()?);
    expect(!target.is_constant())?;
    let (from, to) = (x.shape().ok_or(Decline::Mismatch)?, y.shape().ok_or(Decline::Mismatch)?);
    let missing = to.len().checked_sub(from.len()).ok_or(Decline::Mismatch)?;
    let size = |(axis, dim): (usize, &Dim)| match dim.known() {
        Some(n) => Some(n),
        None => (axis.checked_sub(missing).and_then(|a| from.get(a)) == Some(dim)).then_some(1),
    };
    // As for `Reshape`: a size other than 1 is kept.
    let is_kept = |(f, t): (&Dim, &Dim)| f.known().zip(t.known()).is_none_or(|(f, t)| f == 1 || f == t);
    expect(from.iter().zip(&to[missing..]).all(is_kept))?;
    let sizes: Option<Vec<_>> = to.iter().enumerate().map(size).collect();
    let open = || Decline::because(format!("`{}` is expanded to a size that is not fixed", y.name()));
    with_constants(at, &[(1, "shape", sizes.ok_or_else(open)?)])
}

fn slice(at: NodeRef<'_>) -> Result<Patch, Decline> {
    is_plain(at)?;
    expect(at.opset() >= 10)?;
    let (x, starts, ends) = (at.input(0)?, at.input(1)?, at.input(2)?);
    expect(!starts.is_constant() || !ends.is_constant())?;
    let content = |v: ValueRef<'_>| v.value().fact.content().map(<[Dim]>::to_vec).ok_or(Decline::Mismatch);
    let (starts_content, ends_content) = (content(starts)?, content(ends)?);
    let places = |slot: usize, default: Vec<i64>| match at.optional(slot) {
        Some(input) => input.constant_ints(),
        None => Ok(default),
    };
    let count = starts_content.len();
    let axes = places(3, (0..count as i64).collect())?;
    let steps = places(4, vec![1; count])?;
    let shape = x.shape().ok_or(Decline::Mismatch)?;
    expect(ends_content.len() == count && axes.len() == count && steps.len() == count)?;
    let (mut starts_known, mut ends_known) = (vec![], vec![]);
    for i in 0..count {
        let axis = if axes[i] < 0 { axes[i] + shape.len() as i64 } else { axes[i] };
        let size = usize::try_from(axis).ok().and_then(|a| shape.get(a)).ok_or(Decline::Mismatch)?;
        starts_known.push(starts_content[i].known().ok_or(Decline::Mismatch)?);
        let end = &ends_content[i];
        // An end at or beyond the size of the axis is its end; an end that is a constant less counts from
        // there.
        let short = (size - end).known();
        ends_known.push(match (end.known(), short) {
            (Some(n), _) => n,
            (None, Some(n)) if n <= 0 && steps[i] > 0 => i64::MAX,
            (None, Some(n)) if n > 0 && end.at_least(0) => -n,
            _ => {
                return Err(Decline::because(format!(
                    "{} ends at a position that is not fixed",
                    at.describe()
                )));
            }
        });
    }
    expect(starts.dtype() == Some(DataType::Int64))?;
    with_constants(at, &[(1, "starts", starts_known), (2, "ends", ends_known)])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn makes_reshape_target_constant() {
        check(
            ResolveShapes::default(),
            "g (float[N,3,4] x) => (float[N,12] y) <int64 i = {0}, int64[1] o = {0}, int64[1] l = {12}> {
                s = Shape(x) n = Gather(s, i) u = Unsqueeze(n, o) t = Concat<axis = 0>(u, l) y = Reshape(x, t) }",
            "g (float[N,3,4] x) => (float[N,12] y) <int64[2] y_shape = {-1,12}> { y = Reshape(x, y_shape) }",
        );
    }

    #[test]
    fn makes_known_elements_constant() {
        check(
            ResolveShapes::default(),
            "g (float[N,3,4] x) => (int64 y) <int64 i = {1}> { s = Shape(x) n = Gather(s, i) y = Add(n, n) }",
            "g (float[N,3,4] x) => (int64 y) <int64 y = {6}> {}",
        );
    }

    #[test]
    fn keeps_declared_shapes_that_do_not_fit() {
        for (x, y, node) in [
            ("float[3,3,4]", "float[2,M,4]", "Reshape(x, s)"),
            ("float[3,3,4]", "float[2,17]", "Reshape(x, s)"),
            ("float[3,3,1]", "float[2,3,5]", "Expand(x, s)"),
            ("float[3]", "float[1]", "Expand(x, s)"),
        ] {
            no_match(ResolveShapes::default(), &format!("g ({x} x, int64[R] s) => ({y} y) {{ y = {node} }}"));
        }
    }

    #[test]
    fn makes_expand_target_and_slice_ends_constant() {
        check(
            ResolveShapes::default(),
            "g (float[N,1] x, float[N,M] z) => (float[N,5] y, float[N,M] v, float[N,b] w) <
                int64 i = {0}, int64[1] o = {0}, int64[1] l = {5}, int64[1] a = {1}> {
                s = Shape(x) n = Gather(s, i) u = Unsqueeze(n, o) t = Concat<axis = 0>(u, l) y = Expand(x, t)
                r = Shape(z) m = Gather(r, a) v = Slice(z, o, m, a) k = Sub(m, a) w = Slice(z, o, k, a) }",
            "g (float[N,1] x, float[N,M] z) => (float[N,5] y, float[N,M] v, float[N,b] w) <
                int64[1] a = {1}, int64[2] y_shape = {1,5}, int64[1] v_starts = {0},
                int64[1] v_ends = {9223372036854775807}, int64[1] w_starts = {0}, int64[1] w_ends = {-1}> {
                y = Expand(x, y_shape) v = Slice(z, v_starts, v_ends, a) w = Slice(z, w_starts, w_ends, a) }",
        );
    }

    #[test]
    fn keeps_sizes_that_no_constant_expresses() {
        let why = declines(
            ResolveShapes::default(),
            "g (float[N,1] x, float[M] z) => (float[N,M] y, float[M,N] w) <int64[1] i = {0}, int64[1] o = {1}> {
                s = Shape(x) n = Gather(s, i) r = Shape(z) t = Concat<axis = 0>(o, r) y = Expand(x, t)
                q = Concat<axis = 0>(r, n) w = Reshape(y, q) }",
        );
        assert_eq!(
            why,
            [
                "`w` has several sizes that no constant target can express",
                "`y` is expanded to a size that is not fixed",
            ]
        );
    }
}
