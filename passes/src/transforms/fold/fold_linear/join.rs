//! Branches over one input that meet in an `Add`, `Sum` or `Concat`, read as one layer.
//!
//! Taps of the branches that read the same input add up: tap `a` of a branch lies at `a·d − before` from the place of
//! its output. A branch without any layer is the identity.

use super::{
    axis::{Axis, Border, gcd},
    kernel::Kernel,
    layer::{Form, Layer, Part, chain_making, common_group, composite, composite_kernel},
    outline::{Offset, Outline},
};
use pare_graph::{Decline, NodeRef, ValueRef, expect, ops::axis_of};

/// Branches over one input.
#[derive(Clone)]
pub struct Join<'g> {
    /// The layers of each branch, in the order of the operands.
    pub branches: Vec<Vec<Layer<'g>>>,
    /// Whether their outputs are put side by side instead of added.
    pub side_by_side: bool,
}

impl<'g> Join<'g> {
    /// All layers of all branches.
    pub fn layers(&self) -> impl Iterator<Item = &Layer<'g>> {
        self.branches.iter().flatten()
    }

    /// The merged layer with its weights.
    pub fn kernel(&self, layer: &Layer<'_>) -> Result<Kernel, Decline> {
        let channels = layer.outline.inputs;
        let identity = || {
            let axes = vec![Axis::POINT; layer.outline.axes.len()];
            Kernel::diagonal(&vec![1.0; channels], vec![0.0; channels], axes)
        };
        let kernel = |branch: &Vec<Layer<'_>>| {
            if branch.is_empty() { Ok(identity()) } else { composite_kernel(branch) }
        };
        let branches = self.branches.iter().map(kernel).collect::<Result<Vec<_>, _>>()?;
        let joined = if self.side_by_side { Kernel::stack(&branches) } else { Kernel::sum(&branches) };
        joined.ok_or(Decline::Mismatch)
    }
}

/// An `Add`, `Sum` or `Concat` of branches over one input.
pub fn of(at: NodeRef<'_>, depth: usize) -> Result<Layer<'_>, Decline> {
    let depth = depth.checked_sub(1).ok_or(Decline::Mismatch)?;
    let operands: Option<Vec<_>> = at.inputs().into_iter().collect();
    let operands = operands.filter(|o| (2..=8).contains(&o.len())).ok_or(Decline::Mismatch)?;
    expect(at.opset() >= 7 && operands.iter().all(|o| !o.is_constant()))?;
    let side_by_side = at.is("Concat");
    let (input, branches) = from_one_input(&operands, depth).ok_or(Decline::Mismatch)?;
    // What lies nearest is one layer at least, and tells the form.
    let first = branches.iter().find_map(|b| b.first()).ok_or(Decline::Mismatch)?;
    let forms = (first.forms.0, branches.iter().find_map(|b| b.last()).map_or(first.forms.1, |l| l.forms.1));
    let spatial = match forms {
        (Form::Window(n), Form::Window(m)) if n == m => n,
        (Form::Rows, Form::Rows) => 0,
        _ => return Err(Decline::Mismatch),
    };
    expect(branches.iter().flatten().all(|l| l.forms == forms))?;
    if side_by_side {
        let rank = at.output()?.rank()?;
        expect(axis_of(at)? == if forms.0 == Form::Rows { rank - 1 } else { 1 })?;
    }
    let identity = Outline {
        outputs: first.outline.inputs,
        inputs: first.outline.inputs,
        group: first.outline.inputs,
        axes: vec![Axis::POINT; spatial],
        offset: Offset::default(),
    };
    let outline = |branch: &Vec<Layer<'_>>| {
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
    let offset = Offset { bias: any(|o| o.bias), ones: any(|o| o.ones), shift: false, map: any(|o| o.map) };
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
    Ok(Layer { at, input, outline, forms, part: Part::Join(Join { branches, side_by_side }) })
}

/// The nearest value that all operands come from through layers alone, with the layers of each.
fn from_one_input<'g>(
    operands: &[ValueRef<'g>],
    depth: usize,
) -> Option<(ValueRef<'g>, Vec<Vec<Layer<'g>>>)> {
    // An operand that something else uses too can only be the input itself.
    let chain = |&o: &ValueRef<'g>| if o.sole_use().is_ok() { chain_making(o, depth) } else { vec![] };
    let chains: Vec<_> = operands.iter().map(chain).collect();
    let sources = |i: usize| {
        let inputs = chains[i].iter().rev().map(|layer| layer.input);
        std::iter::once(operands[i]).chain(inputs)
    };
    sources(0).find_map(|source| {
        // The last so many layers of the chain lie between the source and the operand.
        let between = |i: usize| {
            let length = sources(i).position(|value| value.id == source.id)?;
            Some(chains[i][chains[i].len() - length..].to_vec())
        };
        let branches: Option<Vec<_>> = (0..operands.len()).map(between).collect();
        Some((source, branches?))
    })
}
