//! Selection of the layers of a chain to compose, by dynamic programming.
//!
//! Composing three layers may pay where no pair does: expanding 1×1, depthwise 3×3 and projecting 1×1 become
//! one 3×3. So every run of consecutive layers is a candidate, and the best division of the chain into runs
//! is computed over its prefixes.

use super::{
    axis::{Axis, Border},
    cost::{self, LayerCost},
    emit::{Writer, display_name},
    layer::{
        LayerWeights, Layout, Layouts, LinearLayer, MAX_DEPTH, chain_producing, composite, composite_kernel,
        lifted_kernel,
    },
};
use crate::transforms::fold::preceding::ChannelAffine;
use pare_graph::{Decline, NodeRef, Patch, ValueRef, expect};

/// Consecutive layers that compose.
pub struct Candidate<'l, 'g> {
    /// The layers.
    pub layers: &'l [LinearLayer<'g>],
    /// The border of the composite.
    pub border: Border,
    /// The cost of the layers.
    pub before: LayerCost,
    /// The cost of the composite.
    pub after: LayerCost,
}

impl<'l, 'g> Candidate<'l, 'g> {
    /// The composition of these layers; `None` if they do not compose or have no product.
    pub fn of(layers: &'l [LinearLayer<'g>]) -> Option<Self> {
        let first = layers.first()?;
        let joins = layers.iter().any(|l| matches!(l.weights, LayerWeights::Join(_)));
        if layers.len() < 2 && !joins || !layers.iter().any(LinearLayer::is_product) {
            return None;
        }
        let (outline, border) = composite(layers)?;
        let (layouts, sizes) = (layouts(layers), first.sizes());
        let after = if border == Border::Seam {
            expect(matches!(layouts.output, Layout::Spatial(_))).ok()?;
            cost::of_tiles(&outline, &cost::runs(layers)?)
        } else {
            let open = sizes.iter().any(Option::is_none);
            expect(!open || layouts.input == layouts.output).ok()?;
            cost::of_composite(&outline, layouts, &sizes, cost::rows(first), is_gemm(layers))
        };
        Some(Self { layers, border, before: cost::of_chain(layers, &sizes), after })
    }

    /// The patch that replaces the layers by the composite.
    pub fn patch(&self) -> Result<Patch, Decline> {
        let (first, last) = (&self.layers[0], &self.layers[self.layers.len() - 1]);
        let mut writer = Writer::at(last.at, self.layers)?;
        let (x, sizes) = (first.input.into(), first.sizes());
        let y = if let Some(affine) = self.affine() {
            writer.affine(first.at, &affine, is_flattened(first))?
        } else if self.border == Border::Seam {
            let before = composite_kernel(&self.layers[..self.layers.len() - 1])?;
            let next = lifted_kernel(last.kernel()?, before.axes.len());
            Writer::expect_accurate(&before.compose_interior(&next))?;
            let runs = cost::runs(self.layers).ok_or(Decline::Mismatch)?;
            let known: Option<Vec<_>> = sizes.into_iter().collect();
            writer.tiles(x, &before.tiles(&next, &runs), &known.ok_or(Decline::Mismatch)?)?
        } else {
            let kernel = composite_kernel(self.layers)?;
            writer.layer(x, &kernel, layouts(self.layers), &sizes, is_gemm(self.layers))?
        };
        writer.patch.replace(last.output(), y);
        Ok(writer.patch)
    }

    /// The per-channel map that follows the product, with the product's bias; `None` if other layers follow
    /// or precede it.
    fn affine(&self) -> Option<ChannelAffine> {
        let (product, rest) = self.layers.split_first()?;
        let (LayerWeights::Conv { bias, .. } | LayerWeights::Matrix { bias, .. }) = &product.weights else {
            return None;
        };
        let mut affine = ChannelAffine { scale: vec![1.0; bias.len()], shift: bias.clone() };
        for layer in rest {
            let LayerWeights::Diagonal { scale, shift } = &layer.weights else { return None };
            if layer.outline.axes.iter().any(|&axis| axis != Axis::POINT) {
                return None;
            }
            affine.scale.iter_mut().zip(scale).for_each(|(scale, s)| *scale *= s);
            affine.shift.iter_mut().zip(scale).zip(shift).for_each(|((b, s), t)| *b = s * *b + t);
        }
        Some(affine)
    }

    /// The names of the layers, from input to output: `conv1`∘`conv2`.
    pub fn describe(&self) -> String {
        self.layers.iter().map(|l| display_name(l.at)).collect::<Vec<_>>().join("∘")
    }

    /// A key under which layers of the same shapes share their timing.
    pub fn key(&self) -> String {
        fn outlines(layers: &[LinearLayer<'_>]) -> String {
            let outline = |l: &LinearLayer<'_>| {
                let inner = match &l.weights {
                    LayerWeights::Join(join) => join.branches.iter().map(|b| outlines(b)).collect(),
                    _ => vec![],
                };
                format!("{} {:?} {:?} {inner:?}", l.at.op(), l.outline, l.layouts)
            };
            layers.iter().map(outline).collect::<Vec<_>>().join(", ")
        }
        format!("{} {:?}", outlines(self.layers), self.layers[0].input.shape())
    }

    /// The increase of the cost, as a reason to decline.
    pub fn cost_increase(&self) -> String {
        let (name, macs) = (self.describe(), cost::ratio(self.after.macs, self.before.macs));
        if self.after.macs > self.before.macs {
            return format!("{name} would cost {macs}× the MACs");
        }
        let nodes = self.after.nodes as i64 - self.before.nodes as i64;
        let total = cost::ratio(self.after.total(), self.before.total());
        format!("{name} would cost {total}× as much ({macs}× the MACs, {nodes:+} nodes)")
    }
}

fn layouts(layers: &[LinearLayer<'_>]) -> Layouts {
    Layouts { input: layers[0].layouts.input, output: layers[layers.len() - 1].layouts.output }
}

/// Returns true if a layer multiplies a flattened input, which has rank 2.
fn is_flattened(layer: &LinearLayer<'_>) -> bool {
    layer.layouts.input != layer.layouts.output
}

/// Returns true if a matrix product is a `Gemm`, which implies an input of rank 2.
fn is_gemm(layers: &[LinearLayer<'_>]) -> bool {
    layers.iter().any(|l| match &l.weights {
        LayerWeights::Join(join) => join.layers().any(|l| l.at.is("Gemm")),
        _ => l.at.is("Gemm"),
    })
}

/// The longest chain of layers that ends with `at`. Declines if the chain continues after it.
pub fn ending(at: NodeRef<'_>) -> Result<Vec<LinearLayer<'_>>, Decline> {
    let output = at.output()?;
    LinearLayer::of(at, MAX_DEPTH)?;
    expect(!continues(output))?;
    Ok(chain_producing(output, MAX_DEPTH))
}

fn continues(output: ValueRef<'_>) -> bool {
    let Ok(mut user) = output.sole_user() else { return false };
    if user.is("Flatten") || user.is("Reshape") {
        let Some(next) = user.output().ok().and_then(|o| o.sole_user().ok()) else { return false };
        user = next;
    }
    LinearLayer::of(user, MAX_DEPTH).is_ok_and(|l| l.input.id == output.id && l.owns_input())
}

/// The last composed run in the division of the chain with the largest total gain; `None` if no run pays.
pub fn best<'l, 'g>(
    chain: &'l [LinearLayer<'g>],
    mut gain_of: impl FnMut(&Candidate<'l, 'g>) -> Option<f64>,
) -> Option<Candidate<'l, 'g>> {
    // most[j]: the largest gain of the first j layers; from[j]: the start of a composed run that ends at j.
    let (mut most, mut from) = (vec![0.0; chain.len() + 1], vec![None; chain.len() + 1]);
    for j in 1..=chain.len() {
        most[j] = most[j - 1];
        for i in 0..j {
            let Some(gain) = Candidate::of(&chain[i..j]).and_then(|c| gain_of(&c)) else { continue };
            if most[i] + gain > most[j] {
                (most[j], from[j]) = (most[i] + gain, Some(i));
            }
        }
    }
    let end = (1..=chain.len()).rev().find(|&j| from[j].is_some())?;
    Candidate::of(&chain[from[end]?..end])
}
