//! A view of an `Add`, `Sum` or `Concat` of branches over one input as a single layer.
//!
//! Taps of the branches that read the same input add up: tap `a` of a branch reads at offset `a·d − before`
//! from the position of its output. A branch without layers is the identity.

use super::{
    axis::{Axis, Border, gcd},
    kernel::Kernel,
    layer::{
        LayerWeights, Layout, Layouts, LinearLayer, chain_producing, common_group, composite,
        composite_kernel,
    },
    outline::{Offset, Ones, Outline},
};
use pare_graph::{Decline, NodeRef, ValueRef, expect, ops::axis_of};

/// Branches over one input.
#[derive(Clone)]
pub struct Join<'g> {
    /// The layers of each branch, in the order of the operands.
    pub branches: Vec<Vec<LinearLayer<'g>>>,
    /// True if their outputs are concatenated instead of added.
    pub side_by_side: bool,
}

impl<'g> Join<'g> {
    /// All layers of all branches.
    pub fn layers(&self) -> impl Iterator<Item = &LinearLayer<'g>> {
        self.branches.iter().flatten()
    }

    /// The joined layer with its weights.
    pub fn kernel(&self, layer: &LinearLayer<'_>) -> Result<Kernel, Decline> {
        let channels = layer.outline.inputs;
        let identity = || {
            let axes = vec![Axis::POINT; layer.outline.axes.len()];
            Kernel::diagonal(&vec![1.0; channels], vec![0.0; channels], axes)
        };
        let kernel = |branch: &Vec<LinearLayer<'_>>| {
            if branch.is_empty() { Ok(identity()) } else { composite_kernel(branch) }
        };
        let branches = self.branches.iter().map(kernel).collect::<Result<Vec<_>, _>>()?;
        let joined = if self.side_by_side { Kernel::stack(&branches) } else { Kernel::sum(&branches) };
        joined.ok_or(Decline::Mismatch)
    }
}

/// An `Add`, `Sum` or `Concat` of branches over one input.
pub fn of(at: NodeRef<'_>, depth: usize) -> Result<LinearLayer<'_>, Decline> {
    let depth = depth.checked_sub(1).ok_or(Decline::Mismatch)?;
    let operands: Option<Vec<_>> = at.inputs().into_iter().collect();
    let operands = operands.filter(|o| (2..=8).contains(&o.len())).ok_or(Decline::Mismatch)?;
    expect(at.opset() >= 7 && operands.iter().all(|o| !o.is_constant()))?;
    let side_by_side = at.is("Concat");
    let (input, branches) = from_one_input(&operands, depth).ok_or(Decline::Mismatch)?;
    // At least one branch has a layer, which determines the layout.
    let first = branches.iter().find_map(|b| b.first()).ok_or(Decline::Mismatch)?;
    let output = branches.iter().find_map(|b| b.last()).map_or(first.layouts.output, |l| l.layouts.output);
    let layouts = Layouts { input: first.layouts.input, output };
    let spatial = match (layouts.input, layouts.output) {
        (Layout::Spatial(n), Layout::Spatial(m)) if n == m => n,
        (Layout::Rows, Layout::Rows) => 0,
        _ => return Err(Decline::Mismatch),
    };
    expect(branches.iter().flatten().all(|l| l.layouts == layouts))?;
    if side_by_side {
        let rank = at.output()?.rank()?;
        expect(axis_of(at)? == if layouts.input == Layout::Rows { rank - 1 } else { 1 })?;
    }
    let identity = Outline {
        outputs: first.outline.inputs,
        inputs: first.outline.inputs,
        group: first.outline.inputs,
        axes: vec![Axis::POINT; spatial],
        offset: Offset::default(),
    };
    let outline = |branch: &Vec<LinearLayer<'_>>| {
        if branch.is_empty() {
            Some(identity.clone())
        } else {
            composite(branch).filter(|(_, border)| *border != Border::Seam).map(|(outline, _)| outline)
        }
    };
    let outlines: Option<Vec<_>> = branches.iter().map(outline).collect();
    let outlines = outlines.ok_or(Decline::Mismatch)?;
    let axes = Outline::common(&outlines).ok_or(Decline::Mismatch)?;
    let any = |f: fn(&Offset) -> bool| outlines.iter().any(|o| f(&o.offset));
    let ones = any(|o| o.ones.is_some()).then_some(Ones::Channel);
    let offset = Offset { bias: any(|o| o.bias), ones, map: any(|o| o.map) };
    let (outputs, group) = if side_by_side {
        expect(!offset.map)?;
        (outlines.iter().map(|o| o.outputs).sum(), 1)
    } else {
        expect(outlines.iter().all(|o| o.outputs == outlines[0].outputs))?;
        (outlines[0].outputs, common_group(&outlines))
    };
    expect(outlines.iter().all(|o| o.inputs == identity.inputs))?;
    let group = gcd(group, identity.inputs);
    let outline = Outline { outputs, inputs: identity.inputs, group, axes, offset };
    Ok(LinearLayer {
        at,
        input,
        outline,
        layouts,
        weights: LayerWeights::Join(Join { branches, side_by_side }),
    })
}

/// The nearest value from which all operands are computed by layers only, and the layers of each.
fn from_one_input<'g>(
    operands: &[ValueRef<'g>],
    depth: usize,
) -> Option<(ValueRef<'g>, Vec<Vec<LinearLayer<'g>>>)> {
    // An operand with other uses can only be the input itself.
    let chain = |&o: &ValueRef<'g>| if o.sole_use().is_ok() { chain_producing(o, depth) } else { vec![] };
    let chains: Vec<_> = operands.iter().map(chain).collect();
    let sources = |i: usize| {
        let inputs = chains[i].iter().rev().map(|layer| layer.input);
        std::iter::once(operands[i]).chain(inputs)
    };
    sources(0).find_map(|source| {
        // The layers between the source and the operand are the last ones of the chain.
        let between = |i: usize| {
            let length = sources(i).position(|value| value.id == source.id)?;
            Some(chains[i][chains[i].len() - length..].to_vec())
        };
        let branches: Option<Vec<_>> = (0..operands.len()).map(between).collect();
        Some((source, branches?))
    })
}
