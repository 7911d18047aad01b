//! Two convolutions as one with the larger of their kernels: no longer exact, but a start for a fit.

use super::{
    axis::Axis,
    chain::Candidate,
    emit::Writer,
    kernel::{Kernel, places},
    layer::{DEPTH, Layer, Part, chain_making},
    named,
};
use pare_graph::{Decline, NodeRef, Patch, expect};
use std::ops::Range;

/// The patch that puts the middle of the composite's kernel in the place of a convolution and the one before it, where
/// the whole kernel would cost more than both. Declines where padding is too narrow for the middle to be one.
pub fn cropped(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let chain = chain_making(at.output()?, DEPTH);
    let pair = chain.len().checked_sub(2).map(|from| &chain[from..]).ok_or(Decline::Mismatch)?;
    expect(pair.iter().all(|l| matches!(l.part, Part::Conv { .. })))?;
    let candidate = Candidate::of(pair).ok_or(Decline::Mismatch)?;
    expect(candidate.after.macs > candidate.before.macs)?;
    let kept = kept(pair).ok_or(Decline::Mismatch)?;
    let (first, last) = (&pair[0], &pair[1]);
    let whole = first.kernel()?.within(&last.kernel()?);
    let kernel = middle(&whole, &kept);
    let patch = || {
        let mut writer = Writer::at(last.at, pair)?;
        let y = writer.layer(
            first.input.into(),
            &kernel,
            (first.forms.0, last.forms.1),
            &first.sizes(),
            false,
        )?;
        writer.patch.replace(last.output(), y);
        Ok(writer.patch)
    };
    named(candidate.describe(), patch())
}

/// The taps of the composite that stay, along each axis: as many as the larger kernel has, from the middle.
fn kept(pair: &[Layer<'_>]) -> Option<Vec<Range<usize>>> {
    let axes = pair[0].outline.axes.iter().zip(&pair[1].outline.axes);
    let along = |(a, b): (&Axis, &Axis)| {
        let whole = a.then(*b);
        let lost = whole.taps - a.taps.max(b.taps).min(whole.taps);
        let front = lost / 2;
        // What is cut off must have met padding at the first output, and at the last.
        let room = |pads: usize, cut: usize| pads >= cut * whole.dilation;
        (room(whole.before, front) && room(whole.after, lost - front))
            .then_some(front..whole.taps - (lost - front))
    };
    axes.map(along).collect()
}

fn middle(whole: &Kernel, kept: &[Range<usize>]) -> Kernel {
    let index = |place: &Vec<usize>| place.iter().zip(&whole.axes).fold(0, |at, (&p, a)| at * a.taps + p);
    let taps: Vec<_> = places(kept).iter().map(index).collect();
    let axis = |(a, kept): (&Axis, &Range<usize>)| Axis {
        taps: kept.len(),
        before: a.before - kept.start * a.dilation,
        after: a.after - (a.taps - kept.end) * a.dilation,
        ..*a
    };
    let axes = whole.axes.iter().zip(kept).map(axis).collect();
    Kernel::new(whole.weight.select(ndarray::Axis(2), &taps), whole.group, axes, whole.bias.clone())
}

#[cfg(test)]
mod tests {
    use super::cropped;
    use crate::framework::testing::model;
    use pare_graph::Graph;

    fn after(source: &str) -> Option<Graph> {
        let mut model = model(source);
        model.infer().unwrap();
        let end = model.graph.producer(model.graph.find("y").unwrap()).unwrap().0;
        let patch = cropped(model.graph.at(end)).ok()?;
        model.graph.apply(patch).unwrap();
        Some(model.graph)
    }

    /// `w` is `[1,2,3]` along both axes, `v` is `[1,10,100]`.
    fn chain(size: usize, first: &str, second: &str, outputs: usize) -> String {
        format!(
            "g (float[N,1,{size},{size}] x) => (float[N,1,{outputs},{outputs}] y) <
                float[1,1,3,3] w = {{1,2,3,2,4,6,3,6,9}}, float[1] b = {{1}},
                float[1,1,3,3] v = {{1,10,100,10,100,1000,100,1000,10000}}> {{
                h = Conv<{first}>(x, w, b) y = Conv<{second}>(h, v) }}"
        )
    }

    const PADDED: &str = "pads = [1,1,1,1]";

    fn outer(of: [f64; 3]) -> Vec<f64> {
        of.iter().flat_map(|a| of.map(|b| a * b)).collect()
    }

    #[test]
    fn the_middle_of_the_kernel_stays() {
        let graph = after(&chain(9, PADDED, PADDED, 9)).unwrap();
        let node = graph.at(graph.nodes()[0]);
        assert_eq!(graph.node_count(), 1);
        // 1,2,3 and 1,10,100 make 1, 12, 123, 230, 300.
        assert_eq!(node.input(1).unwrap().constant_f64().unwrap(), outer([12.0, 123.0, 230.0]));
        assert_eq!(node.input(2).unwrap().constant_f64().unwrap(), [111.0 * 111.0]);
        assert_eq!(node.ints("pads"), Some(&[1, 1, 1, 1][..]));
        // A stride of the first spreads the second over 7 taps: 1, 2, 13, 20, 130, 200, 300.
        let graph = after(&chain(9, &format!("{PADDED}, strides = [2,2]"), PADDED, 5)).unwrap();
        let node = graph.at(graph.nodes()[0]);
        assert_eq!(node.input(1).unwrap().constant_f64().unwrap(), outer([13.0, 20.0, 130.0]));
        assert_eq!((node.ints("pads"), node.ints("strides")), (Some(&[1, 1, 1, 1][..]), Some(&[2, 2][..])));
    }

    #[test]
    fn without_padding_there_is_no_middle() {
        assert!(after(&chain(19, "pads = [0,0,0,0]", "pads = [0,0,0,0]", 15)).is_none());
    }
}
