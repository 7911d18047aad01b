use crate::framework::matching::{bypass, is_plain};
use crate::{
    framework::{Context, Pass, PassError},
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
    /// clips to `[0, ∞]`. The results of `Sigmoid`, `HardSigmoid` and `Softmax` are in `[0, 1]`. Declines
    /// where a bound is not constant.
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
            expect(is_within(&outer, &kept) && ClipView::of(inner).is_ok() && outer.low <= outer.high)?;
            let mut inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Into::into)).collect();
            inputs[0] = Some(inner.input(0)?.into());
            let mut patch = Patch::at(at);
            let clipped = patch.copy(at, &inputs);
            patch.replace(y, clipped);
            Ok(patch)
        })
    }
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
    fn keeps_overlapping_ranges_and_open_bounds() {
        no_match(
            MergeClips::default(),
            "g (float[2] x) => (float[2] y) <float zero = {0}, float one = {1}, float six = {6}> {
                a = Clip(x, one) y = Clip(a, zero, six) }",
        );
        let why = declines(
            MergeClips::default(),
            "g (float[2] x, float low) => (float[2] y) { a = Clip(x, low) y = Relu(a) }",
        );
        assert_eq!(why, ["`min` of Clip producing `a` is not constant"]);
    }
}
