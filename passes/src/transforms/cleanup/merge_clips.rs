use crate::framework::matching::{bypass, has_clip, is_plain};
use crate::{
    framework::{Context, NodeBuilder, Pass, PassError},
    pass,
};
use pare_graph::{
    Decline, Model, NodeRef, Patch, expect,
    ops::{ClipView, Trait},
};

pass! {
    /// Merge nested clips, and remove those whose bounds already hold.
    ///
    /// With ranges `A ⊆ B`: `clip_A(clip_B(x)) = clip_A(x)` and `clip_B(clip_A(x)) = clip_A(x)`, where `Relu`
    /// clips to `[0, ∞]`. Of ranges that overlap, `clip_A(clip_B(x)) = clip_{A∩B}(x)`. The results of `Sigmoid`,
    /// `HardSigmoid` and `Softmax` are in `[0, 1]`. Declines where a bound is not constant.
    #[pass("merge-clips", Exact, "clip merged", "clips merged")]
    pub struct MergeClips {}
}

impl Pass for MergeClips {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Clip", "Relu"], |at| {
            is_plain(at)?;
            let (x, y) = (at.input(0)?, at.output()?);
            let inner = x.producer().ok_or(Decline::Mismatch)?;
            let (outer, kept) = (ClipView::of(at)?, range(inner)?);
            if is_within(&kept, &outer) {
                return bypass(at, x);
            }
            expect(ClipView::of(inner).is_ok() && outer.low <= outer.high)?;
            if !is_within(&outer, &kept) {
                return intersection(at, inner, &outer, &kept);
            }
            let mut inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Into::into)).collect();
            inputs[0] = Some(inner.input(0)?.into());
            let mut patch = Patch::at(at);
            let clipped = patch.copy(at, &inputs);
            patch.replace(y, clipped);
            Ok(patch)
        })
    }
}

/// One clip to the common range of two.
fn intersection(at: NodeRef<'_>, inner: NodeRef<'_>, a: &ClipView, b: &ClipView) -> Result<Patch, Decline> {
    let (between, y) = (at.input(0)?, at.output()?);
    let (low, high) = (a.low.max(b.low), a.high.min(b.high));
    let dtype = between.dtype().ok_or(Decline::Mismatch)?;
    expect(low <= high && has_clip(dtype, at.opset()))?;
    between.sole_use()?;
    let mut patch = Patch::at(at);
    let new = NodeBuilder::new(at.graph, &mut patch, y.name()).clip(inner.input(0)?.into(), dtype, low, high);
    patch.replace(y, new.map_err(|_| Decline::Mismatch)?);
    Ok(patch)
}

fn is_within(a: &ClipView, b: &ClipView) -> bool {
    b.low <= a.low && a.high <= b.high
}

/// The range of an operator's results.
fn range(at: NodeRef<'_>) -> Result<ClipView, Decline> {
    is_plain(at)?;
    match at.op() {
        "Clip" | "Relu" => {
            let view = ClipView::of(at)?;
            // If the bounds are crossed, the upper one wins.
            expect(view.low <= view.high)?;
            Ok(view)
        }
        _ if at.has(Trait::UnitInterval) => Ok(ClipView { low: 0.0, high: 1.0 }),
        _ => Err(Decline::Mismatch),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn removes_clips_whose_bounds_hold() {
        check(
            MergeClips::default(),
            "g (float[2] x) => (float[2] y) <float zero = {0}, float six = {6}> {
                a = Clip(x, zero, six) b = Relu(a) c = Sigmoid(b) d = Clip(c, zero, six) y = Neg(d) }",
            "g (float[2] x) => (float[2] y) <float zero = {0}, float six = {6}> {
                a = Clip(x, zero, six) c = Sigmoid(a) y = Neg(c) }",
        );
    }

    #[test]
    fn removes_wider_inner_clip() {
        check(
            MergeClips::default(),
            "g (float[2] x) => (float[2] y) <float zero = {0}, float six = {6}> {
                a = Relu(x) y = Clip(a, zero, six) }",
            "g (float[2] x) => (float[2] y) <float zero = {0}, float six = {6}> { y = Clip(x, zero, six) }",
        );
    }

    #[test]
    fn clips_to_the_intersection() {
        check(
            MergeClips::default(),
            "g (float[2] x) => (float[2] y) <float zero = {0}, float one = {1}, float six = {6}> {
                a = Clip(x, one) y = Clip(a, zero, six) }",
            "g (float[2] x) => (float[2] y) <float y_min = {1}, float y_max = {6}> { y = Clip(x, y_min, y_max) }",
        );
        check(
            MergeClips::default(),
            "g (float[2] x) => (float[2] y) <float low = {-1}, float high = {1}> {
                a = Clip(x, low, high) y = Relu(a) }",
            "g (float[2] x) => (float[2] y) <float y_min = {0}, float y_max = {1}> { y = Clip(x, y_min, y_max) }",
        );
        check(
            MergeClips::default(),
            "g (float[2] x) => (float[2] y) <float low = {-1}, float high = {1}> {
                a = Clip(x, low) y = Clip(a, \"\", high) }",
            "g (float[2] x) => (float[2] y) <float y_min = {-1}, float y_max = {1}> { y = Clip(x, y_min, y_max) }",
        );
    }

    #[test]
    fn clips_integers_to_the_intersection() {
        check(
            MergeClips::default(),
            "g (int32[N,3] x) => (int32[N,3] y) <int32 one = {1}, int32 four = {4}, int32 seven = {7}> {
                a = Clip(x, \"\", four) b = Clip(a, one, seven) y = Clip(b) }",
            "g (int32[N,3] x) => (int32[N,3] y) <int32 b_min = {1}, int32 b_max = {4}> { y = Clip(x, b_min, b_max) }",
        );
    }

    #[test]
    fn keeps_disjoint_ranges_and_open_bounds() {
        no_match(
            MergeClips::default(),
            "g (float[2] x) => (float[2] y) <float one = {1}, float three = {3}, float six = {6}> {
                a = Clip(x, \"\", one) y = Clip(a, three, six) }",
        );
        let why = declines(
            MergeClips::default(),
            "g (float[2] x, float low) => (float[2] y) { a = Clip(x, low) y = Relu(a) }",
        );
        assert_eq!(why, ["`min` of Clip producing `a` is not constant"]);
    }
}
