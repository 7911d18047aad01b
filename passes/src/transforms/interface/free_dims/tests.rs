//! Freed axes, and the nodes that do not allow it.

use super::*;
use crate::framework::testing::{model, run_pass, tools, try_pass};
use crate::framework::{Effect, testing::same};
use pare_graph::text;

fn free(dims: &[(&str, &str)]) -> FreeDims {
    FreeDims { dims: dims.iter().map(|&(key, symbol)| (key.into(), symbol.into())).collect() }
}

/// Asserts the result of freeing the batch, and that fixing it again returns the outputs of the original.
#[track_caller]
fn check(before: &str, after: &str) -> FreedAxis {
    check_axes(&[("batch", "N")], before, after)
}

#[track_caller]
fn check_axes(dims: &[(&str, &str)], before: &str, after: &str) -> FreedAxis {
    let (original, mut changed) = (model(before), model(before));
    let report = run_pass(free(dims), &mut changed);
    changed.check().unwrap();
    assert_eq!(text::print_graph(&changed.graph), text::print_graph(&model(after).graph));
    let Some(InterfaceChange::Freed(axis)) = report.interface().next().cloned() else { panic!() };
    let mut fixed = changed;
    let pass = super::super::SetDims { dims: [("N".to_owned(), axis.size as i64)].into_iter().collect() };
    run_pass(pass, &mut fixed);
    same(&original, &fixed, Effect::Exact);
    axis
}

#[track_caller]
fn refusal(dims: &[(&str, &str)], source: &str) -> String {
    try_pass(free(dims), &mut model(source), tools()).unwrap_err().to_string()
}

#[test]
fn targets_of_reshapes_follow() {
    let axis = check(
        "g (float[1,4,6] x) => (float[1,24] y, float[2,4,3] h)
            <int64[4] heads = {1, 4, 2, 3}, int64[3] merged = {2, 4, 3}, int64[2] flat = {1, -1}> {
            r = Reshape(x, heads) t = Transpose<perm = [0,2,1,3]>(r)
            h = Reshape(t, merged) y = Reshape(x, flat) }",
        "g (float[N,4,6] x) => (float[N,24] y, float[?,4,3] h)
            <int64[4] shape = {-1, 4, 2, 3}, int64[3] shape_1 = {-1, 4, 3}, int64[2] shape_2 = {-1, 24}> {
            r = Reshape(x, shape) t = Transpose<perm = [0,2,1,3]>(r)
            h = Reshape(t, shape_1) y = Reshape(x, shape_2) }",
    );
    assert_eq!((axis.size, axis.related_by), (1, None));
    assert_eq!(axis.outputs, [("y".to_owned(), 0), ("h".to_owned(), 0)]);
}

#[test]
fn channels_that_are_shuffled_together_with_the_batch_follow() {
    check(
        "g (float[1,6,2,2] x) => (float[1,3,2,2] y)
            <int64[3] pairs = {3, 2, 4}, int64[5] halves = {2, -1, 3, 2, 2}, int64 first = {0}> {
            r = Reshape(x, pairs) t = Transpose<perm = [1,0,2]>(r) h = Reshape(t, halves) y = Gather<axis = 0>(h, first) }",
        "g (float[N,6,2,2] x) => (float[N,3,2,2] y)
            <int64[5] halves = {2, -1, 3, 2, 2}, int64 first = {0}, int64[3] shape = {-1, 2, 4}> {
            r = Reshape(x, shape) t = Transpose<perm = [1,0,2]>(r) h = Reshape(t, halves) y = Gather<axis = 0>(h, first) }",
    );
}

#[test]
fn tables_of_all_positions_follow() {
    check(
        "g (float[1,3] x) => (float[1,1,3,1] y) <int64[1,1,3] all = {0, 1, 2}> {
            f = Flatten<axis = 2>(x) y = Gather<axis = 0>(f, all) }",
        "g (float[N,3] x) => (float[N,1,3,1] y) <int64[4] shape_1 = {-1, 1, 3, 1}> {
            f = Flatten<axis = 2>(x) y = Reshape(f, shape_1) }",
    );
}

#[test]
fn a_batch_of_several_samples_follows() {
    check(
        "g (float[3,2] x) => (float[3,2] y, float[6] z)
            <float[3,2] table = {1, 2, 1, 2, 1, 2}, int64[1] flat = {6}, int64[2] to = {3, 2}> {
            y = Add(x, table) e = Expand(x, to) z = Reshape(e, flat) }",
        "g (float[N,2] x) => (float[N,2] y, float[?] z)
            <float[1,2] table_1 = {1, 2}, int64[2] shape = {1, 2}, int64[1] shape_1 = {-1}> {
            y = Add(x, table_1) e = Expand(x, shape) z = Reshape(e, shape_1) }",
    );
}

#[test]
fn slices_and_sizes_follow() {
    check(
        "g (float[1,2,4,4] x) => (float[1,2,8,8] y, float[1,2,4,4] z)
            <int64[4] sizes = {1, 2, 8, 8}, int64[1] start = {0}, int64[1] end = {1}, int64[1] axis = {0}> {
            y = Resize<mode = \"nearest\">(x, , , sizes) z = Slice(x, start, end, axis) }",
        "g (float[N,2,4,4] x) => (float[N,2,8,8] y, float[N,2,4,4] z)
            <int64[1] start = {0}, int64[1] axis = {0}, float[4] scales = {1, 1, 2, 2}, int64[1] ends = {2147483647}> {
            y = Resize<mode = \"nearest\">(x, , scales) z = Slice(x, start, ends, axis) }",
    );
}

#[test]
fn rows_that_are_joined_to_every_sample_are_expanded() {
    check(
        "g (float[1,2,3] x) => (float[1,3,3] y) <float[1,1,3] cls = {1, 2, 3}> { y = Concat<axis = 1>(cls, x) }",
        "g (float[N,2,3] x) => (float[N,3,3] y)
            <float[1,1,3] cls = {1, 2, 3}, int64[1] axis = {0}, int64[2] back = {1, 3}> {
            sizes = Shape(x) size = Gather(sizes, axis) shape = Concat<axis = 0>(size, back)
            cls_1 = Expand(cls, shape) y = Concat<axis = 1>(cls_1, x) }",
    );
    let axis = check_axes(
        &[("x.1", "N")],
        "g (float[4,1,2] x) => (float[1,1,3] h)
            <float[1,3,2] w = {1,2,3,4,5,6}, float[1,3,3] r = {1,2,3,4,5,6,7,8,9}, float[1,1,3] state = {0,1,2}> {
            y, h = RNN<hidden_size = 3>(x, w, r, , , state) }",
        "g (float[4,N,2] x) => (float[1,N,3] h)
            <float[1,3,2] w = {1,2,3,4,5,6}, float[1,3,3] r = {1,2,3,4,5,6,7,8,9}, float[1,1,3] state = {0,1,2},
             int64[1] axis = {1}, int64[1] front = {1}, int64[1] back = {3}> {
            sizes = Shape(x) size = Gather(sizes, axis) shape = Concat<axis = 0>(front, size, back)
            state_1 = Expand(state, shape) y, h = RNN<hidden_size = 3>(x, w, r, , , state_1) }",
    );
    assert_eq!((axis.related_by, axis.outputs), (None, vec![("h".to_owned(), 1)]));
}

#[test]
fn computed_sizes_need_no_change() {
    let source = |n: &str| {
        format!(
            "g (float[{n},2,3] x) => (float[{n},6] y) <int64[1] zero = {{0}}, int64[1] rest = {{-1}}> {{
            s = Shape(x) b = Gather(s, zero) to = Concat<axis = 0>(b, rest) y = Reshape(x, to) }}"
        )
    };
    check(&source("2"), &source("N"));
}

#[test]
fn other_axes_may_be_related() {
    let dims = [("x.1", "N")];
    let source = |n: &str, to: &str, name: &str| {
        format!(
            "g (float[1,{n},2] x) => (float[1,2] y) <int64[3] {name} = {{{to}}}, int64 first = {{0}}> {{
            t = Transpose<perm = [0,2,1]>(x) p = MatMul(x, t) a = Softmax<axis = -1>(p) v = MatMul(a, x)
            r = Reshape(v, {name}) y = Gather<axis = 1>(r, first) }}"
        )
    };
    let after = source("N", "1, -1, 2", "shape");
    let after = after.replace(
        "int64[3] shape = {1, -1, 2}, int64 first = {0}",
        "int64 first = {0}, int64[3] shape = {1, -1, 2}",
    );
    let axis = check_axes(&dims, &source("4", "1, 4, 2", "to"), &after);
    assert_eq!(axis.related_by.as_deref(), Some("MatMul producing `p`"));
    // The samples of the batch are not.
    let mut changed = model(&source("4", "1, 4, 2", "to"));
    let report = run_pass(free(&[("batch", "N")]), &mut changed);
    assert!(
        report.interface().any(|c| matches!(c, InterfaceChange::Freed(axis) if axis.related_by.is_none()))
    );
}

#[test]
fn refuses_what_relates_the_batch() {
    let batch = [("batch", "N")];
    let why = |source: &str| refusal(&batch, source);
    assert_eq!(
        why("g (float[2,3] x) => (float[2,3] y) { y = Softmax<axis = 0>(x) }"),
        "`free-dims`: Softmax producing `y` relates the samples of the batch"
    );
    assert_eq!(
        why("g (float[1,3] x) => (float[3] y) <int64[1] a = {0}> { y = Squeeze(x, a) }"),
        "`free-dims`: Squeeze producing `y` removes the freed axis"
    );
    assert_eq!(
        why("g (float[2,3] x) => (float[2,3] y) <float[2,3] w = {1,2,3,4,5,6}> { y = Add(x, w) }"),
        "`free-dims`: `w` has a fixed size along the freed axis"
    );
    assert_eq!(
        why("g (float[2,3] x) => (float[3] y) <int64 first = {0}> { y = Gather<axis = 0>(x, first) }"),
        "`free-dims`: Gather producing `y` relates the samples of the batch"
    );
    assert_eq!(
        why("g (float[2,3] x) => (float[2,2] y) { t = Transpose<perm = [1,0]>(x) y = MatMul(x, t) }"),
        "`free-dims`: MatMul producing `y` relates the samples of the batch"
    );
    assert_eq!(
        why("g (float[2,3] x) => (float[3,2] y) <int64[2] to = {3, 2}> { y = Reshape(x, to) }"),
        "`free-dims`: Reshape producing `y` divides the freed axis"
    );
    assert_eq!(
        why(
            "g (float[1,3] x, bool c) => (float[1,3] y) { y = If(c) <then_branch = t () => (float[1,3] p) { p = Neg(x) }, else_branch = e () => (float[1,3] q) { q = Exp(x) }> }"
        ),
        "`free-dims`: a subgraph of If producing `y` reads the freed axis"
    );
}

#[test]
fn refuses_axes_that_are_not_fixed_or_differ() {
    let source = "g (float[2,3] x, float[M,1] u) => (float[2,3] y, float[M,1] v) { y = Neg(x) v = Neg(u) }";
    assert_eq!(refusal(&[("batch", "N")], source), "`free-dims`: axis 0 of `u` has no fixed size");
    assert_eq!(refusal(&[("x.0", "M")], source), "`free-dims`: the model already has a symbol `M`");
    assert_eq!(refusal(&[("x.2", "N")], source), "`free-dims`: no input has the axis `x.2`");
    assert_eq!(
        refusal(&[("x.0", "N"), ("x.1", "N")], source),
        "`free-dims`: axis 1 of `x` has size 3, but `x` has 2"
    );
    let text = |text: &str| text.parse::<crate::Pipeline>().map(|p| p.to_string()).map_err(|e| e.message);
    assert_eq!(text("free-dims{*.1=S,batch=N}").unwrap(), "free-dims{*.1=S,batch=N}");
    assert_eq!(text("free-dims{x=N}").unwrap_err(), "`free-dims`: `x` is neither `batch` nor `input.axis`");
}
