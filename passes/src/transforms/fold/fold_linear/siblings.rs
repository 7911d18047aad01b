//! Layers of equal geometry over one input, as a single layer followed by `Split`.
//!
//! The multiply-accumulates stay the same, in fewer calls; the cost is the copy made by the split.

use super::{
    cost::{self, LayerCost},
    emit::{Writer, display_name},
    kernel::Kernel,
    layer::{LayerWeights, Layout, LinearLayer, MAX_DEPTH, composite, composite_kernel},
};
use crate::analysis::fusions::is_fused;
use pare_graph::{Attribute, Decline, Edge, Node, NodeRef, Patch, Tensor, ValueRef, expect};

/// Layers over one input, each with the `Add` of its bias, if any.
pub struct Siblings<'g> {
    branches: Vec<Vec<LinearLayer<'g>>>,
}

impl<'g> Siblings<'g> {
    /// The layer and its siblings with the same kernel size, strides and padding. Declines unless it is the
    /// first of at least two.
    pub fn of(at: NodeRef<'g>) -> Result<Self, Decline> {
        let first = product(at)?;
        let same = |other: &LinearLayer<'_>| {
            other.input.id == first.input.id
                && (other.layouts, &other.outline.axes) == (first.layouts, &first.outline.axes)
                && (other.at.op(), other.dtype()) == (first.at.op(), first.dtype())
        };
        let users = first.input.users();
        let users = users.into_iter().filter(|(_, edge)| *edge == Edge::Input(0));
        let layers: Vec<_> = users.filter_map(|(user, _)| product(user).ok()).filter(same).collect();
        expect(!layers.iter().any(|layer| is_fused(layer.at)))?;
        expect(layers.len() > 1 && layers[0].at.id == at.id)?;
        Ok(Self { branches: layers.into_iter().map(with_bias).collect() })
    }

    /// The common input.
    pub fn input(&self) -> ValueRef<'g> {
        self.branches[0][0].input
    }

    /// The outputs, in order.
    pub fn outputs(&self) -> Vec<ValueRef<'g>> {
        self.branches.iter().map(|branch| branch[branch.len() - 1].output()).collect()
    }

    /// The cost of the layers, and of one layer with a split.
    pub fn cost(&self) -> Option<(LayerCost, LayerCost)> {
        let sizes = self.branches[0][0].sizes();
        let before: LayerCost = self.branches.iter().map(|branch| cost::of_chain(branch, &sizes)).sum();
        let outlines: Vec<_> = self.branches.iter().map(|b| Some(composite(b)?.0)).collect::<Option<_>>()?;
        let mut outline = outlines[0].clone();
        outline.outputs = outlines.iter().map(|o| o.outputs).sum();
        outline.offset.bias = outlines.iter().any(|o| o.offset.bias);
        outline.elements()?;
        let first = &self.branches[0][0];
        let rows = cost::rows(first);
        let stacked = cost::of_composite(&outline, first.layouts, &sizes, rows, first.at.is("Gemm"));
        let split =
            LayerCost { nodes: 1, moves: cost::elements(&outline, &sizes, rows), ..LayerCost::default() };
        Some((before, stacked + split))
    }

    /// The patch that replaces them by one layer and a split.
    pub fn patch(&self) -> Result<Patch, Decline> {
        let kernels = self.branches.iter().map(|b| composite_kernel(b)).collect::<Result<Vec<_>, _>>()?;
        let (first, sizes) = (&self.branches[0][0], self.branches[0][0].sizes());
        let all: Vec<_> = self.branches.iter().flatten().cloned().collect();
        let stacked = Kernel::stack(&kernels).ok_or(Decline::Mismatch)?;
        let mut writer = Writer::at(first.at, &all)?;
        let y = writer.layer(first.input.into(), &stacked, first.layouts, &sizes, first.at.is("Gemm"))?;
        let axis = match first.layouts.output {
            Layout::Spatial(_) => 1,
            Layout::Rows => -1,
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
        let parts = writer.patch.node_with(node, &inputs, &names);
        for (output, part) in outputs.into_iter().zip(parts) {
            writer.patch.replace(output, part.ok_or(Decline::Mismatch)?);
        }
        Ok(writer.patch)
    }

    /// The names of the layers.
    pub fn describe(&self) -> String {
        self.branches.iter().map(|b| display_name(b[0].at)).collect::<Vec<_>>().join(" and ")
    }

    /// A key under which layers of the same shapes share their timing.
    pub fn key(&self) -> String {
        let layers = self.branches.iter().flatten().map(|l| (l.at.op(), &l.outline, l.layouts));
        format!("siblings {:?} {:?}", layers.collect::<Vec<_>>(), self.input().shape())
    }
}

fn product(at: NodeRef<'_>) -> Result<LinearLayer<'_>, Decline> {
    let layer = LinearLayer::of(at, 0)?;
    let is_product = matches!(layer.weights, LayerWeights::Conv { .. } | LayerWeights::Matrix { .. });
    expect(is_product && layer.outline.group == 1 && layer.layouts.input == layer.layouts.output)?;
    Ok(layer)
}

fn with_bias(layer: LinearLayer<'_>) -> Vec<LinearLayer<'_>> {
    let output = layer.output();
    let sum = output.sole_user().ok().filter(|user| layer.at.is("MatMul") && user.is("Add"));
    let sum = sum.and_then(|user| LinearLayer::of(user, MAX_DEPTH).ok());
    let sum = sum.filter(|sum| sum.input.id == output.id && sum.layouts == layer.layouts);
    [Some(layer), sum].into_iter().flatten().collect()
}
