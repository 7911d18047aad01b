//! Layers of one shape over one input, side by side in one layer whose output is split again.
//!
//! There are as many multiply-accumulates as before, in fewer calls; what the split copies is the price.

use super::{
    emit::{Writer, name},
    kernel::Kernel,
    layer::{DEPTH, Form, Layer, Part, composite, composite_kernel},
    work::{self, Work},
};
use pare_graph::{Attribute, Decline, Edge, Node, NodeRef, Patch, Tensor, ValueRef, expect};

/// Layers over one input, each with a sum behind it if that is its bias.
pub struct Siblings<'g> {
    units: Vec<Vec<Layer<'g>>>,
}

impl<'g> Siblings<'g> {
    /// The layer and all others over its input with the same kernel, strides and padding, if it is the first of several.
    pub fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let first = plain(at)?;
        let same = |other: &Layer<'_>| {
            other.input.id == first.input.id
                && (other.forms, &other.outline.axes) == (first.forms, &first.outline.axes)
                && (other.at.op(), other.dtype()) == (first.at.op(), first.dtype())
        };
        let users = first.input.users();
        let users = users.into_iter().filter(|(_, wire)| *wire == Edge::Input(0));
        let layers: Vec<_> = users.filter_map(|(user, _)| plain(user).ok()).filter(same).collect();
        expect(layers.len() > 1 && layers[0].at.id == at.id)?;
        Ok(Self { units: layers.into_iter().map(with_bias).collect() })
    }

    /// What they are applied to.
    pub fn input(&self) -> ValueRef<'g> {
        self.units[0][0].input
    }

    /// What they make.
    pub fn outputs(&self) -> Vec<ValueRef<'g>> {
        self.units.iter().map(|unit| unit[unit.len() - 1].output()).collect()
    }

    /// What they cost, and what one layer and a split would.
    pub fn work(&self) -> Option<(Work, Work)> {
        let sizes = self.units[0][0].sizes();
        let before: Work = self.units.iter().map(|unit| work::of_chain(unit, &sizes)).sum();
        let outlines: Vec<_> = self.units.iter().map(|u| Some(composite(u)?.0)).collect::<Option<_>>()?;
        let mut outline = outlines[0].clone();
        outline.outputs = outlines.iter().map(|o| o.outputs).sum();
        outline.offset.bias = outlines.iter().any(|o| o.offset.bias);
        outline.elements()?;
        let first = &self.units[0][0];
        let rows = work::rows(first);
        let stacked = work::of_composite(&outline, first.forms, &sizes, rows, first.at.is("Gemm"));
        let split = Work { nodes: 1, moves: work::elements(&outline, &sizes, rows), ..Work::default() };
        Some((before, stacked + split))
    }

    /// The patch that puts one layer in their place.
    pub fn patch(&self) -> Result<Patch, Decline> {
        let kernels = self.units.iter().map(|u| composite_kernel(u)).collect::<Result<Vec<_>, _>>()?;
        let (first, sizes) = (&self.units[0][0], self.units[0][0].sizes());
        let all: Vec<_> = self.units.iter().flatten().cloned().collect();
        let stacked = Kernel::stack(&kernels).ok_or(Decline::Mismatch)?;
        let mut writer = Writer::at(first.at, &all)?;
        let y = writer.layer(first.input.into(), &stacked, first.forms, &sizes, first.at.is("Gemm"))?;
        let axis = match first.forms.1 {
            Form::Window(_) => 1,
            Form::Rows => -1,
        };
        let parts: Vec<_> = kernels.iter().map(|k| k.outputs() as i64).collect();
        let (mut node, mut inputs) = (Node::new("Split").with("axis", axis), vec![Some(y)]);
        if first.at.opset() < 13 {
            node = node.with("split", Attribute::Ints(parts));
        } else {
            inputs.push(Some(writer.integers("_split", Tensor::vector(&parts))));
        }
        let outputs = self.outputs();
        let names: Vec<_> = outputs.iter().map(|o| Some(o.name())).collect();
        let made = writer.patch.node_with(node, &inputs, &names);
        for (output, part) in outputs.into_iter().zip(made) {
            writer.patch.replace(output, part.ok_or(Decline::Mismatch)?);
        }
        Ok(writer.patch)
    }

    /// The layers in words.
    pub fn describe(&self) -> String {
        self.units.iter().map(|u| name(u[0].at)).collect::<Vec<_>>().join(" and ")
    }

    /// What makes others of the same shapes equally fast.
    pub fn key(&self) -> String {
        let layers = self.units.iter().flatten().map(|l| (l.at.op(), &l.outline, l.forms));
        format!("siblings {:?} {:?}", layers.collect::<Vec<_>>(), self.input().shape())
    }
}

fn plain(at: NodeRef<'_>) -> Result<Layer<'_>, Decline> {
    let layer = Layer::of(at, 0)?;
    let whole = matches!(layer.part, Part::Conv { .. } | Part::Matrix { .. });
    expect(whole && layer.outline.group == 1 && layer.forms.0 == layer.forms.1)?;
    Ok(layer)
}

fn with_bias(layer: Layer<'_>) -> Vec<Layer<'_>> {
    let output = layer.output();
    let sum = output.sole_user().ok().filter(|user| layer.at.is("MatMul") && user.is("Add"));
    let sum = sum.and_then(|user| Layer::of(user, DEPTH).ok());
    let sum = sum.filter(|sum| sum.input.id == output.id && sum.forms == layer.forms);
    [Some(layer), sum].into_iter().flatten().collect()
}
