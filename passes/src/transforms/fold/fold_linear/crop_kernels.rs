use super::{
    axis::Axis,
    chain::Candidate,
    emit::Writer,
    kernel::{Kernel, positions},
    layer::{LayerWeights, Layouts, LinearLayer, MAX_DEPTH, chain_producing},
    prefixed,
};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Model, NodeRef, Patch, expect};
use std::ops::Range;

pass! {
    /// Replace two consecutive convolutions by one with the larger of their kernels.
    ///
    /// The composite `W[:,:,t] = Σ W₂[:,:,c]·W₁[:,:,a]` over `c·d₂s₁ + a·d₁ = t·d` (see `fold-linear`) is
    /// cropped to its middle taps, as many as the larger kernel has along each axis. An approximation that
    /// needs a refit: see `crop` of `remove-activations`.
    ///
    /// Declines unless the composite has more multiply-accumulates than both convolutions, and if the padding
    /// is narrower than the taps that are removed.
    #[pass("crop-kernels", Lossy, "composed kernel cropped", "composed kernels cropped")]
    pub struct CropKernels {}
}

impl Pass for CropKernels {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Conv"], cropped)
    }
}

fn cropped(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let chain = chain_producing(at.output()?, MAX_DEPTH);
    let pair = chain.len().checked_sub(2).map(|from| &chain[from..]).ok_or(Decline::Mismatch)?;
    expect(pair.iter().all(|l| matches!(l.weights, LayerWeights::Conv { .. })))?;
    let candidate = Candidate::of(pair).ok_or(Decline::Mismatch)?;
    expect(candidate.after.macs > candidate.before.macs)?;
    let kept = kept_taps(pair).ok_or(Decline::Mismatch)?;
    let (first, last) = (&pair[0], &pair[1]);
    let composite = first.kernel()?.compose_interior(&last.kernel()?);
    let kernel = select_taps(&composite, &kept);
    let patch = || {
        let mut writer = Writer::at(last.at, pair)?;
        let layouts = Layouts { input: first.layouts.input, output: last.layouts.output };
        let y = writer.layer(first.input.into(), &kernel, layouts, &first.sizes(), false)?;
        writer.patch.replace(last.output(), y);
        Ok(writer.patch)
    };
    prefixed(&candidate.describe(), patch())
}

/// The kept taps of the composite along each axis: the middle ones, as many as the larger kernel has.
fn kept_taps(pair: &[LinearLayer<'_>]) -> Option<Vec<Range<usize>>> {
    let axes = pair[0].outline.axes.iter().zip(&pair[1].outline.axes);
    let along = |(a, b): (&Axis, &Axis)| {
        let composite = a.then(*b);
        let removed = composite.taps - a.taps.max(b.taps).min(composite.taps);
        let (front, back) = (removed / 2, removed - removed / 2);
        // The removed taps must read padding only, at the first output and at the last.
        let is_padding = |pads: usize, taps: usize| pads >= taps * composite.dilation;
        (is_padding(composite.before, front) && is_padding(composite.after, back))
            .then_some(front..composite.taps - back)
    };
    axes.map(along).collect()
}

fn select_taps(kernel: &Kernel, kept: &[Range<usize>]) -> Kernel {
    let index = |tap: &Vec<usize>| tap.iter().zip(&kernel.axes).fold(0, |at, (&t, a)| at * a.taps + t);
    let taps: Vec<_> = positions(kept).iter().map(index).collect();
    let axis = |(a, kept): (&Axis, &Range<usize>)| Axis {
        taps: kept.len(),
        before: a.before - kept.start * a.dilation,
        after: a.after - (a.taps - kept.end) * a.dilation,
        ..*a
    };
    let axes = kernel.axes.iter().zip(kept).map(axis).collect();
    Kernel::new(kernel.weight.select(ndarray::Axis(2), &taps), kernel.group, axes, kernel.bias.clone())
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
    fn keeps_the_middle_of_the_kernel() {
        let graph = after(&chain(9, PADDED, PADDED, 9)).unwrap();
        let node = graph.at(graph.nodes()[0]);
        assert_eq!(graph.node_count(), 1);
        // 1,2,3 and 1,10,100 compose to 1, 12, 123, 230, 300.
        assert_eq!(node.input(1).unwrap().constant_f64().unwrap(), outer([12.0, 123.0, 230.0]));
        assert_eq!(node.input(2).unwrap().constant_f64().unwrap(), [111.0 * 111.0]);
        assert_eq!(node.ints("pads"), Some(&[1, 1, 1, 1][..]));
        // A stride of 2 in the first layer dilates the second to 7 taps: 1, 2, 13, 20, 130, 200, 300.
        let graph = after(&chain(9, &format!("{PADDED}, strides = [2,2]"), PADDED, 5)).unwrap();
        let node = graph.at(graph.nodes()[0]);
        assert_eq!(node.input(1).unwrap().constant_f64().unwrap(), outer([13.0, 20.0, 130.0]));
        assert_eq!((node.ints("pads"), node.ints("strides")), (Some(&[1, 1, 1, 1][..]), Some(&[2, 2][..])));
    }

    #[test]
    fn declines_without_padding() {
        assert!(after(&chain(19, "pads = [0,0,0,0]", "pads = [0,0,0,0]", 15)).is_none());
    }
}
