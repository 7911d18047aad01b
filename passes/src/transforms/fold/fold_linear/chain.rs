//! Which layers of a chain are composed: the choice that costs least, by dynamic programming.
//!
//! A pair may not pay where three layers do: expanding 1×1, depthwise 3×3 and projecting 1×1 become one 3×3. So all
//! runs of neighbours are weighed, and the best division of the chain into runs is found from its prefixes.

use super::{
    axis::{Axis, Border},
    emit::{Writer, name},
    layer::{DEPTH, Form, Layer, Part, chain_making, composite, composite_kernel, lifted_kernel},
    work::{self, Work},
};
use crate::transforms::fold::preceding::Affine;
use pare_graph::{Decline, NodeRef, Patch, ValueRef, expect};

/// Layers that could become one.
pub struct Candidate<'l, 'g> {
    /// The layers.
    pub layers: &'l [Layer<'g>],
    /// Whether it falls into tiles.
    pub border: Border,
    /// What the layers cost.
    pub before: Work,
    /// What the composite costs.
    pub after: Work,
}

impl<'l, 'g> Candidate<'l, 'g> {
    /// These layers as one, if they compose and there is something to multiply with.
    pub fn of(layers: &'l [Layer<'g>]) -> Option<Self> {
        let first = layers.first()?;
        let joins = layers.iter().any(|l| matches!(l.part, Part::Join(_)));
        if layers.len() < 2 && !joins || !layers.iter().any(Layer::is_product) {
            return None;
        }
        let (outline, border) = composite(layers)?;
        let (forms, sizes) = (forms(layers), first.sizes());
        let after = if border == Border::Seam {
            expect(matches!(forms.1, Form::Window(_))).ok()?;
            work::of_tiles(&outline, &work::runs(layers)?)
        } else {
            let open = sizes.iter().any(Option::is_none);
            expect(!open || forms.0 == forms.1).ok()?;
            work::of_composite(&outline, forms, &sizes, work::rows(first), is_gemm(layers))
        };
        Some(Self { layers, border, before: work::of_chain(layers, &sizes), after })
    }

    /// The patch that puts the composite in the place of the layers.
    pub fn patch(&self) -> Result<Patch, Decline> {
        let (first, last) = (&self.layers[0], &self.layers[self.layers.len() - 1]);
        let mut writer = Writer::at(last.at, self.layers)?;
        let (x, sizes) = (first.input.into(), first.sizes());
        let y = if let Some(affine) = self.affine() {
            writer.affine(first.at, &affine)?
        } else if self.border == Border::Seam {
            let before = composite_kernel(&self.layers[..self.layers.len() - 1])?;
            let next = lifted_kernel(last.kernel()?, before.axes.len());
            Writer::guard(&before.within(&next))?;
            let runs = work::runs(self.layers).ok_or(Decline::Mismatch)?;
            let known: Option<Vec<_>> = sizes.into_iter().collect();
            writer.tiles(x, &before.tiles(&next, &runs), &known.ok_or(Decline::Mismatch)?)?
        } else {
            let kernel = composite_kernel(self.layers)?;
            writer.layer(x, &kernel, forms(self.layers), &sizes, is_gemm(self.layers))?
        };
        writer.patch.replace(last.output(), y);
        Ok(writer.patch)
    }

    /// If the layers are one product, and behind it only what goes channel by channel: that, with the bias.
    fn affine(&self) -> Option<Affine> {
        let (product, rest) = self.layers.split_first()?;
        let (Part::Conv { bias, .. } | Part::Matrix { bias, .. }) = &product.part else { return None };
        let mut affine = Affine { scale: vec![1.0; bias.len()], shift: bias.clone() };
        for layer in rest {
            let Part::Diagonal { scale, shift } = &layer.part else { return None };
            if layer.outline.axes.iter().any(|&axis| axis != Axis::POINT) {
                return None;
            }
            affine.scale.iter_mut().zip(scale).for_each(|(whole, s)| *whole *= s);
            affine.shift.iter_mut().zip(scale).zip(shift).for_each(|((b, s), t)| *b = s * *b + t);
        }
        Some(affine)
    }

    /// The layers in words: `conv1`∘`conv2` as in `conv2(conv1(x))` written from left to right.
    pub fn describe(&self) -> String {
        self.layers.iter().map(|l| name(l.at)).collect::<Vec<_>>().join("∘")
    }

    /// What makes others of the same shapes equally fast.
    pub fn key(&self) -> String {
        fn outlines(layers: &[Layer<'_>]) -> String {
            let outline = |l: &Layer<'_>| {
                let inner = match &l.part {
                    Part::Join(join) => join.branches.iter().map(|b| outlines(b)).collect(),
                    _ => vec![],
                };
                format!("{} {:?} {:?} {inner:?}", l.at.op(), l.outline, l.forms)
            };
            layers.iter().map(outline).collect::<Vec<_>>().join(", ")
        }
        format!("{} {:?}", outlines(self.layers), self.layers[0].input.shape())
    }

    /// Why it does not pay.
    pub fn dear(&self) -> String {
        let (name, macs) = (self.describe(), work::ratio(self.after.macs, self.before.macs));
        if self.after.macs > self.before.macs {
            return format!("{name} would cost {macs}× the MACs");
        }
        let nodes = self.after.nodes as i64 - self.before.nodes as i64;
        let total = work::ratio(self.after.total(), self.before.total());
        format!("{name} would cost {total}× the work ({macs}× the MACs, {nodes:+} nodes)")
    }
}

fn forms(layers: &[Layer<'_>]) -> (Form, Form) {
    (layers[0].forms.0, layers[layers.len() - 1].forms.1)
}

/// Whether a matrix was written as `Gemm`, so that the input has two axes.
fn is_gemm(layers: &[Layer<'_>]) -> bool {
    layers.iter().any(|l| match &l.part {
        Part::Join(join) => join.layers().any(|l| l.at.is("Gemm")),
        _ => l.at.is("Gemm"),
    })
}

/// The longest chain of layers that ends with `at`; declines if it goes on behind it.
pub fn ending(at: NodeRef<'_>) -> Result<Vec<Layer<'_>>, Decline> {
    let output = at.output()?;
    Layer::of(at, DEPTH)?;
    expect(!goes_on(output))?;
    Ok(chain_making(output, DEPTH))
}

fn goes_on(output: ValueRef<'_>) -> bool {
    let Ok(mut user) = output.sole_user() else { return false };
    if user.is("Flatten") || user.is("Reshape") {
        let Some(next) = user.output().ok().and_then(|o| o.sole_user().ok()) else { return false };
        user = next;
    }
    Layer::of(user, DEPTH).is_ok_and(|l| l.input.id == output.id && l.owns_input())
}

/// The last run of layers in the best division of the chain, by what each run gains; `None` if no run gains anything.
pub fn best<'l, 'g>(
    chain: &'l [Layer<'g>],
    mut gain: impl FnMut(&Candidate<'l, 'g>) -> Option<f64>,
) -> Option<Candidate<'l, 'g>> {
    // most[j]: what the first j layers gain; from[j]: where the last run among them begins, if it is composed.
    let (mut most, mut from) = (vec![0.0; chain.len() + 1], vec![None; chain.len() + 1]);
    for j in 1..=chain.len() {
        most[j] = most[j - 1];
        for i in 0..j {
            let Some(gained) = Candidate::of(&chain[i..j]).and_then(|c| gain(&c)) else { continue };
            if most[i] + gained > most[j] {
                (most[j], from[j]) = (most[i] + gained, Some(i));
            }
        }
    }
    let end = (1..=chain.len()).rev().find(|&j| from[j].is_some())?;
    Candidate::of(&chain[from[end]?..end])
}
