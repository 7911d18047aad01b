use crate::analysis::fusions::is_fused;
use crate::framework::matching::{bypass, cancel, is_plain, same_shape, spans, uniform};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{
    Attribute, DataType, Decline, Dim, Model, NodeRef, ValueRef, expect,
    ops::{PadView, PoolView, ReduceView, SliceAxis, SliceView, TransposeView, is_deterministic, is_updated},
};

pass! {
    /// Remove nodes that return their input bit for bit.
    ///
    /// `Identity`, `Dropout` at inference, `Cast` to the same type; `Transpose`, `Pad`, `Slice`, `Resize` and
    /// pooling that move nothing; `Reshape`, `Expand`, `Tile` and other views that keep the shape for all
    /// values of the symbols; reductions over axes of size 1; `Concat`, `Split`, `Sum`, `Max`, `Min`, `Mean`
    /// of one value; binary operators with their neutral element: `x·1`, `x/1`, `x-0`, `x+(-0)`, `x¹`, and
    /// `x+0` for integers (for floats it turns -0 into +0: see `drop-neutral`); `ScatterND` of as many rows as
    /// there are, in order.
    ///
    /// Declines where the node may broadcast its input to another shape, and where a graph output would
    /// become a graph input or another output.
    #[pass("drop-noops", Exact, "no-op dropped", "no-ops dropped")]
    pub struct DropNoops {}
}

/// Operators that can be no-ops.
#[rustfmt::skip]
const OPS: &[&str] = &[
    "Identity", "Dropout", "Cast", "CastLike", "BitCast",
    "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Expand", "Tile", "DepthToSpace", "SpaceToDepth",
    "Pad", "Slice", "Split", "Concat", "Resize", "Upsample",
    "Sum", "Max", "Min", "Mean", "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd",
    "AveragePool", "MaxPool", "GlobalAveragePool", "GlobalMaxPool",
    "Add", "Sub", "Mul", "Div", "Pow", "And", "Or", "Xor", "BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitShift",
    "Where", "ScatterND",
];

impl Pass for DropNoops {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, OPS, |at| {
            let (x, y) = (equal_input(at)?, at.output()?);
            expect(!is_fused(at))?;
            if let Some(updated) = [x, y].into_iter().find(|&value| is_updated(value)) {
                return Err(Decline::because(format!("`{}` is updated in place", updated.name())));
            }
            // A copy of the updates costs less.
            if at.is("ScatterND") { cancel(at, x) } else { bypass(at, x) }
        })
    }
}

/// Returns the input that equals the output; declines if there is none.
fn equal_input(at: NodeRef<'_>) -> Result<ValueRef<'_>, Decline> {
    is_plain(at)?;
    let output = at.output()?;
    let x = at.input(0)?;
    let same = || same_shape(x, output);
    let unchanged = match at.op() {
        "Identity" => true,
        "Dropout" => is_deterministic(at),
        "Cast" | "BitCast" => {
            let to = i32::try_from(at.int("to", 0)).ok().and_then(DataType::from_number);
            x.dtype().is_some() && x.dtype() == to
        }
        "CastLike" => x.dtype().is_some() && x.dtype() == at.input(1)?.dtype(),
        "Transpose" => TransposeView::of(at)?.is_identity(),
        // These keep the order of elements, so equal shapes suffice.
        "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze" | "Expand" | "Tile" => {
            same() || both_vectors(x, output)
        }
        "DepthToSpace" | "SpaceToDepth" => at.int("blocksize", 0) == 1,
        "Pad" => PadView::of(at)?.pads.iter().all(|&p| p == (0, 0)),
        "Slice" => takes_all(at, x, output)?,
        // A single part is the entire tensor.
        "Split" => at.outputs().len() == 1,
        "Concat" | "Sum" | "Max" | "Min" | "Mean" => at.inputs().len() == 1,
        "Resize" | "Upsample" => keeps_size(at, x, output)?,
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" => {
            let view = ReduceView::of(at)?;
            view.axes.is_empty() || view.keepdims && view.axes.iter().all(|&a| has_size_1(x, a))
        }
        "AveragePool" | "MaxPool" => {
            let view = PoolView::of(at)?;
            let ones = |v: &[usize]| v.iter().all(|&n| n == 1);
            ones(&view.kernel) && ones(&view.strides) && view.pads.iter().all(|&p| p == (0, 0))
        }
        "GlobalAveragePool" | "GlobalMaxPool" => {
            let rank = x.rank()?;
            (2..rank).all(|a| has_size_1(x, a))
        }
        "Where" => return chosen(at, output),
        "ScatterND" => return scattered(at, output),
        _ => return beside_neutral(at, output),
    };
    expect(unchanged)?;
    Ok(x)
}

fn has_size_1(x: ValueRef<'_>, axis: usize) -> bool {
    x.shape().and_then(|s| s.get(axis)).and_then(Dim::known) == Some(1)
}

/// A reshape from vector to vector is a no-op, whatever the length.
fn both_vectors(x: ValueRef<'_>, output: ValueRef<'_>) -> bool {
    let reshaped = output.producer().is_some_and(|at| at.is("Reshape"));
    reshaped && x.shape().map(<[Dim]>::len) == Some(1) && output.shape().map(<[Dim]>::len) == Some(1)
}

/// Returns true if a slice takes every element in order.
fn takes_all(at: NodeRef<'_>, x: ValueRef<'_>, output: ValueRef<'_>) -> Result<bool, Decline> {
    let view = SliceView::of(at)?;
    // With step 1, equal sizes mean that every element is taken.
    if view.axes.iter().all(|cut| cut.step == 1) && same_shape(x, output) {
        return Ok(true);
    }
    let is_complete = |cut: &SliceAxis| {
        let size = x.shape().and_then(|s| s.get(cut.axis)).and_then(Dim::size);
        match size {
            Some(size) => cut.step == 1 && cut.on(size) == (0, size),
            // The specification uses INT_MAX as the end of an axis of unknown size.
            None => cut.step == 1 && cut.start == 0 && cut.end >= i64::from(i32::MAX),
        }
    };
    Ok(view.axes.iter().all(is_complete))
}

/// Returns true if a resampling maps every position to itself: scale 1, or an unchanged size.
fn keeps_size(at: NodeRef<'_>, x: ValueRef<'_>, output: ValueRef<'_>) -> Result<bool, Decline> {
    // The region of `tf_crop_and_resize` may be smaller than the tensor, and `tf_half_pixel_for_nn` shifts
    // positions.
    let mode = at.string("coordinate_transformation_mode", "half_pixel");
    expect(
        ["half_pixel", "half_pixel_symmetric", "pytorch_half_pixel", "align_corners", "asymmetric"]
            .contains(&mode),
    )?;
    if at.is("Resize") && at.optional(3).is_some() {
        return Ok(same_shape(x, output));
    }
    let slot = if at.is("Resize") && at.opset() >= 11 { 2 } else { 1 };
    match (at.attr("scales"), at.optional(slot)) {
        (Some(Attribute::Floats(scales)), None) => Ok(scales.iter().all(|&s| s == 1.0)),
        (None, Some(scales)) => Ok(uniform(scales.constant()?) == Some(1.0)),
        _ => Err(Decline::Mismatch),
    }
}

/// Returns the branch of a `Where` with a constant, uniform condition.
fn chosen<'g>(at: NodeRef<'g>, output: ValueRef<'g>) -> Result<ValueRef<'g>, Decline> {
    let taken = uniform(at.input(0)?.constant()?).ok_or(Decline::Mismatch)?;
    let branch = at.input(if taken == 0.0 { 2 } else { 1 })?;
    expect(same_shape(branch, output))?;
    Ok(branch)
}

/// Returns the updates of a `ScatterND` that replaces every row.
fn scattered<'g>(at: NodeRef<'g>, output: ValueRef<'g>) -> Result<ValueRef<'g>, Decline> {
    let (indices, updates) = (at.input(1)?, at.input(2)?);
    expect(at.string("reduction", "none") == "none" && same_shape(updates, output))?;
    // Row numbers, one in each row of the indices.
    let ([rows, one], Some([all, ..])) = (indices.shape().unwrap_or(&[]), output.shape()) else {
        return Err(Decline::Mismatch);
    };
    expect(one.known() == Some(1))?;
    if let Ok(numbers) = indices.constant_ints() {
        expect(numbers.into_iter().eq(0..all.known().ok_or(Decline::Mismatch)?))?;
        return Ok(updates);
    }
    let column = indices.producer().filter(|at| at.is("Unsqueeze") || at.is("Reshape"));
    let range = column.ok_or(Decline::Mismatch)?.input(0)?.produced_by("Range")?;
    expect(range.input(0)?.scalar()? == 0.0 && range.input(2)?.scalar()? == 1.0)?;
    // The declared length may be another symbol than the number of rows that the limit is computed from.
    let limit = range.input(1)?.value().fact.content().and_then(|limit| limit.first());
    expect(rows == all || limit == Some(all))?;
    Ok(updates)
}

/// Returns the operand of a binary operator whose other operand is the neutral element.
fn beside_neutral<'g>(at: NodeRef<'g>, output: ValueRef<'g>) -> Result<ValueRef<'g>, Decline> {
    let (a, b) = (at.input(0)?, at.input(1)?);
    let integer = a.dtype().ok_or(Decline::Mismatch)?.is_integer();
    let is = |c: ValueRef<'_>, x: ValueRef<'_>, wanted: fn(f64, bool) -> bool| {
        let Ok(tensor) = c.constant() else { return false };
        spans(x, tensor, output) && uniform(tensor).is_some_and(|v| wanted(v, integer))
    };
    let (both, wanted): (bool, fn(f64, bool) -> bool) = match at.op() {
        // -0 + -0 = -0 and x + -0 = x, but -0 + 0 = 0.
        "Add" => (true, |v, integer| v == 0.0 && (integer || v.is_sign_negative())),
        "Sub" => (false, |v, integer| v == 0.0 && (integer || v.is_sign_positive())),
        "Mul" => (true, |v, _| v == 1.0),
        "Div" => (false, |v, _| v == 1.0),
        // Engines compute integer powers in floats, which loses digits.
        "Pow" => (false, |v, integer| v == 1.0 && !integer),
        "And" => (true, |v, _| v != 0.0),
        "Or" | "Xor" => (true, |v, _| v == 0.0),
        "BitwiseOr" | "BitwiseXor" => (true, |v, _| v == 0.0),
        "BitShift" => (false, |v, _| v == 0.0),
        _ => return Err(Decline::Mismatch),
    };
    if is(b, a, wanted) {
        Ok(a)
    } else if both && is(a, b, wanted) {
        Ok(b)
    } else {
        Err(Decline::Mismatch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, model, no_match, run_pass};

    /// Expects that `op`, the only node between `x` and `Relu`, is removed.
    fn removes(interface: &str, op: &str) {
        let (before, after) = (format!("g {interface} {{ h = {op} y = Relu(h) }}"), "y = Relu(x)");
        let mut changed = model(&before);
        run_pass(DropNoops::default(), &mut changed);
        let text = pare_graph::text::print_graph(&changed.graph);
        assert!(text.contains(after), "{before}\n{text}");
        check(DropNoops::default(), &before, &text);
    }

    fn keeps(interface: &str, op: &str) {
        no_match(DropNoops::default(), &format!("g {interface} {{ h = {op} y = Relu(h) }}"));
    }

    /// ONNX Runtime accepts a body whose input shadows an outer value.
    #[test]
    fn renames_body_input_that_shadows_new_capture() {
        let text = |first: &str, x: &str, captured: &str| {
            format!(
                "g (float[2] x) => (float[2] y) <int64 n = {{3}}, bool t = {{1}}> {{ {first} s = Relu(x)
                    y = Loop(n, t, s) <body = b (int64 i, bool c, float[2] {x}) => (bool d, float[2] o) {{
                        d = Equal(c, t) k = If(d) <then_branch = p () => (float[2] e) {{ e = Mul({x}, {captured}) }},
                            else_branch = q () => (float[2] f) {{ f = Neg({x}) }}>
                        o = Add(k, {captured}) }}> }}"
            )
        };
        check(DropNoops::default(), &text("v = Identity(x)", "x", "v"), &text("", "x_1", "x"));
    }

    #[test]
    fn removes_operators_that_return_their_input() {
        let io = "(float[N,3,4] x) => (float[N,3,4] y)";
        for op in [
            "Identity(x)",
            "Dropout(x)",
            "Cast<to = 1>(x)",
            "CastLike(x, x)",
            "Transpose<perm = [0,1,2]>(x)",
            "Concat<axis = 1>(x)",
            "Sum(x)",
            "Max(x)",
            "Mean(x)",
        ] {
            removes(io, op);
        }
    }

    #[test]
    fn removes_scatters_of_every_row() {
        let graph = |rows: &str, nodes: &str| {
            format!(
                "g (float[{rows},2] x, float[{rows},2] u) => (float[{rows},2] y) <
                    int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{-1}}, int64[3,1] all = {{0,1,2}}, int64[3,1] other = {{0,2,1}}> {{
                    {nodes} y = Relu(h) }}"
            )
        };
        let rows = "s = Shape(x) n = Gather(s, zero) r = Range(zero, n, one) i = Unsqueeze(r, last)";
        for (size, nodes) in [
            ("3", "h = ScatterND(x, all, u)".to_owned()),
            ("N", format!("{rows} h = ScatterND(x, i, u)")),
            ("4", format!("{rows} h = ScatterND(x, i, u)")),
        ] {
            let before = graph(size, &nodes);
            let mut changed = model(&before);
            run_pass(DropNoops::default(), &mut changed);
            let text = pare_graph::text::print_graph(&changed.graph);
            assert!(text.contains("y = Relu(u)"), "{text}");
            check(DropNoops::default(), &before, &text);
        }
        // Between an input and an output, with a declared length.
        check(
            DropNoops::default(),
            &format!(
                "g (float[N,2] x, float[N,2] u) => (float[N,2] y) <
                    int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{-1}}, int64[K] r> {{
                    {} }}",
                format!("{rows} h = ScatterND(x, i, u)").replace("h =", "y =")
            ),
            "g (float[N,2] x, float[N,2] u) => (float[N,2] y) { y = Identity(u) }",
        );
        for (size, nodes) in [
            ("3", "h = ScatterND(x, other, u)".to_owned()),
            ("3", "h = ScatterND<reduction = \"add\">(x, all, u)".to_owned()),
            (
                "N",
                format!("{rows} h = ScatterND(x, i, u)")
                    .replace("Range(zero, n, one)", "Range(n, zero, last_0)")
                    .replace("s = Shape", "last_0 = Squeeze(last) s = Shape"),
            ),
        ] {
            no_match(DropNoops::default(), &graph(size, &nodes));
        }
    }

    #[test]
    fn decides_by_the_value_of_constants() {
        let io = |c: &str| format!("(float[N,3,4] x) => (float[N,3,4] y) <{c}>");
        for (c, op) in [
            ("int64[3] s = {0,3,-1}", "Reshape(x, s)"),
            ("int64[3] s = {0,0,0}", "Reshape(x, s)"),
            ("int64[3] s = {1,3,1}", "Expand(x, s)"),
            ("int64[3] s = {1,1,1}", "Tile(x, s)"),
            ("int64[6] s = {0,0,0,0,0,0}", "Pad(x, s)"),
            ("int64[1] s = {0}, int64[1] e = {9223372036854775807}", "Slice(x, s, e, s)"),
            ("int64[1] s = {-9}, int64[1] e = {3}, int64[1] a = {1}", "Slice(x, s, e, a)"),
            ("float c = {1}", "Mul(x, c)"),
            ("float[1,1] c = {1}", "Mul(c, x)"),
            ("float[4] c = {1,1,1,1}", "Div(x, c)"),
            ("float c = {0}", "Sub(x, c)"),
            ("float c = {-0.0}", "Add(c, x)"),
            ("int64 c = {1}", "Pow(x, c)"),
            ("bool[1] c = {1}, float[1,3,4] z = {0,0,0,0,0,0,0,0,0,0,0,0}", "Where(c, x, z)"),
        ] {
            removes(&io(c), op);
        }
    }

    #[test]
    fn keeps_operators_that_change_their_input() {
        let io = |c: &str| format!("(float[N,3,4] x) => (float[] y) <{c}>");
        for (c, op) in [
            ("int64[3] s = {2,1,1}", "Expand(x, s)"),
            ("int64[6] s = {0,1,0,0,-1,0}", "Pad(x, s)"),
            ("int64[1] s = {1}, int64[1] e = {9223372036854775807}", "Slice(x, s, e, s)"),
            ("int64[1] s = {0}, int64[1] e = {9}", "Slice(x, s, e, s)"),
            ("float c = {0}", "Add(x, c)"),
            ("float c = {0}", "Sub(c, x)"),
            ("float c = {1}", "Div(c, x)"),
            ("float[2,1,1,1] c = {1,1}", "Mul(x, c)"),
            ("float[1,1,1,1] c = {1}", "Mul(x, c)"),
            ("float[2,1,1] c = {1,1}", "Mul(x, c)"),
        ] {
            keeps(&io(c), op);
        }
    }

    #[test]
    fn keeps_training_dropout_and_used_masks() {
        let graph = |flag: u8| {
            format!(
                "g (float[4] x) => (float[4] y) <float r = {{0.5}}, bool t = {{{flag}}}> {{
                    h = Dropout(x, r, t) y = Relu(h) }}"
            )
        };
        let without = "g (float[4] x) => (float[4] y) { y = Relu(x) }";
        check(DropNoops::default(), &graph(0), without);
        no_match(DropNoops::default(), &graph(1));
        check(
            DropNoops::default(),
            "g (float[4] x) => (float[4] y) { h, m = Dropout(x) y = Relu(h) }",
            without,
        );
        no_match(
            DropNoops::default(),
            "g (float[4] x) => (float[4] y, bool[4] m) { h, m = Dropout(x) y = Relu(h) }",
        );
    }

    #[test]
    fn removes_windows_and_scales_of_one() {
        let io = |c: &str| format!("(float[N,3,4,4] x) => (float[N,3,4,4] y) <{c}>");
        removes(&io(""), "AveragePool<kernel_shape = [1,1]>(x)");
        removes(&io(""), "MaxPool<kernel_shape = [1,1]>(x)");
        removes(&io("float[4] s = {1,1,1,1}"), "Resize<mode = \"linear\">(x, , s)");
        removes(&io(""), "DepthToSpace<blocksize = 1>(x)");
        keeps(
            "(float[N,3,4,4] x) => (float[N,3,2,2] y)",
            "MaxPool<kernel_shape = [1,1], strides = [2,2]>(x)",
        );
        removes("(float[N,3,1,1] x) => (float[N,3,1,1] y)", "GlobalAveragePool(x)");
        removes("(float[N,1] x) => (float[N,1] y) <int64[1] a = {1}>", "ReduceSum(x, a)");
    }

    #[test]
    fn keeps_node_with_overridable_constant() {
        no_match(
            DropNoops::default(),
            "g (float[4] x, float c = {1}) => (float[4] y) { h = Mul(x, c) y = Relu(h) }",
        );
    }
}
