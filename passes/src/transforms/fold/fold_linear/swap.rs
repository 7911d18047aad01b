//! Exchange of 1×1 convolutions and the average pools that follow them.
//!
//! An average over positions and a sum over channels commute, `mean(W·x + b) = W·mean(x) + b`, and there are
//! fewer positions after the pool.

use super::layer::{LayerWeights, Layout, LinearLayer};
use pare_graph::{
    Decline, NodeRef, Patch, expect,
    ops::{PoolView, ReduceView},
};

/// Moves a pool before the 1×1 convolution that it reads.
pub fn pool(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let pooled = at.input(0)?;
    let conv = LinearLayer::of(pooled.produced_by("Conv")?, 0)?;
    pooled.sole_use()?;
    let LayerWeights::Conv { bias, .. } = &conv.weights else { return Err(Decline::Mismatch) };
    let Layout::Spatial(spatial) = conv.layouts.input else { return Err(Decline::Mismatch) };
    expect(conv.outline.is_pointwise() && conv.outline.axes.iter().all(|a| a.stride == 1))?;
    match at.op() {
        "AveragePool" => {
            let view = PoolView::of(at)?;
            let padded = view.counts_padding && (view.pads.iter().any(|&p| p != (0, 0)) || view.ceil);
            // A bias would be averaged with the padding.
            expect(!padded || bias.iter().all(|&b| b == 0.0))?;
            // With stride 1 there are as many positions after the pool as before it.
            expect(view.strides.iter().any(|&s| s > 1))?;
        }
        "GlobalAveragePool" => expect(at.is("GlobalAveragePool"))?,
        "ReduceMean" => {
            let view = ReduceView::of(at)?;
            expect(
                at.is("ReduceMean") && view.keepdims && view.axes == (2..spatial + 2).collect::<Vec<_>>(),
            )?;
        }
        _ => return Err(Decline::Mismatch),
    }
    // With many more inputs than outputs, averaging them all costs more than it saves.
    let (inputs, outputs) = (conv.outline.inputs, conv.outline.outputs);
    expect(inputs <= 16 * outputs)?;
    let mut patch = Patch::at(at);
    let others =
        |node: NodeRef<'_>| node.inputs().into_iter().skip(1).map(|i| i.map(Into::into)).collect::<Vec<_>>();
    let small = patch.copy(at, &[vec![Some(conv.input.into())], others(at)].concat());
    let result = patch.copy(conv.at, &[vec![Some(small)], others(conv.at)].concat());
    patch.replace(at.output()?, result);
    Ok(patch)
}
