//! The quantized forms of a model: any choice of its layers in integers, the others in float.

use super::{
    Method, dynamic, emit,
    plan::QuantizationPlan,
    ranges::{Grid, InputGrids},
    weights::IntegerWeights,
};
use crate::{
    analysis::{
        linear::Linear,
        repair::{Refit, Repair, RepairOptions, RidgeChoice},
        weighted_layers::WeightedLayer,
    },
    framework::{PassError, Tools},
};
use pare_graph::{Model, NodeId, Patch, ValueId};
use std::{
    collections::{BTreeMap, HashSet},
    ops::Range,
};

/// For each unit of the candidates, true if it computes in integers.
pub type Choice = Vec<bool>;

/// A model, and the units of which each may compute in integers: the layers, then the products of two activations.
pub struct Candidates<'m> {
    /// The model in float.
    pub plain: &'m Model,
    pub layers: Vec<WeightedLayer>,
    pub products: Vec<NodeId>,
    pub method: Method,
    /// The grids of activations; none without `Method::Static`.
    pub grids: BTreeMap<ValueId, Grid>,
    /// The weights of each layer.
    pub weights: Vec<IntegerWeights>,
}

impl Candidates<'_> {
    /// The number of units.
    pub fn count(&self) -> usize {
        self.layers.len() + self.products.len()
    }

    /// The node of a unit.
    pub fn node(&self, unit: usize) -> NodeId {
        self.layers.get(unit).map_or_else(|| self.products[unit - self.layers.len()], |layer| layer.node)
    }

    /// The name of a unit: that of the weights of a layer, or of the output of a product.
    pub fn name(&self, unit: usize) -> &str {
        let output = |node| self.plain.graph.output(node, 0);
        match self.layers.get(unit) {
            Some(layer) => &layer.name,
            None => output(self.node(unit)).map_or("", |v| &self.plain.graph.value(v).name),
        }
    }

    /// Returns true if a unit is a product of two activations.
    pub fn is_product(&self, unit: usize) -> bool {
        unit >= self.layers.len()
    }

    /// The chosen layers with their weights.
    pub fn chosen<'s>(
        &'s self,
        choice: &'s Choice,
    ) -> impl Iterator<Item = (&'s WeightedLayer, &'s IntegerWeights)> {
        self.layers.iter().zip(&self.weights).zip(choice).filter(|(_, chosen)| **chosen).map(|(pair, _)| pair)
    }

    /// The values that a choice quantizes.
    pub fn plan(&self, choice: &Choice) -> QuantizationPlan {
        if self.method != Method::Static {
            return QuantizationPlan::default();
        }
        let layers: Vec<_> = self.chosen(choice).map(|(layer, _)| layer).collect();
        let products = (self.layers.len()..self.count()).filter(|&unit| choice[unit]);
        let products: HashSet<_> = products.map(|unit| self.node(unit)).collect();
        QuantizationPlan::new(&self.plain.graph, &layers, &products)
    }

    /// The model with a choice of units in integers.
    pub fn build(&self, choice: &Choice) -> Result<Model, PassError> {
        let (model, grids) = self.with_activations(choice)?;
        self.with_weights(model, choice, &grids)
    }

    /// [`Self::build`] with biases refitted to the activations of the original, which corrects the mean error of
    /// rounding.
    pub fn build_corrected(
        &self,
        choice: &Choice,
        tools: Tools<'_>,
        samples: Range<usize>,
    ) -> Result<Model, PassError> {
        let (mut model, grids) = self.with_activations(choice)?;
        // Weights are rounded but stay in float until the biases are corrected.
        for (layer, weights) in self.chosen(choice) {
            let weights = self.beside(layer, weights, &grids)?;
            let mut patch = Patch::anchored(layer.node);
            let stored = layer.linear.store(&model.graph, &mut patch, &weights.values(layer), &layer.bias);
            stored.ok_or_else(|| PassError::refused(format!("`{}` cannot be changed", layer.name)))?;
            model.graph.apply(patch).map_err(PassError::from_error)?;
        }
        model.infer()?;
        let refit = |layer: &WeightedLayer| {
            layer.linear.takes_bias().then(|| Refit {
                node: layer.node,
                target: layer.linear.output,
                sum: None,
                output_transform: false,
                kept: None,
                free: Some(vec![false; layer.count()]),
            })
        };
        let refits: Vec<_> = self.chosen(choice).filter_map(|(layer, _)| refit(layer)).collect();
        // All weights are fixed, so λ has no effect.
        let options = RepairOptions { ridge: RidgeChoice::Fixed(1.0), rounds: 0 };
        Repair { tools, original: self.plain, refits: &refits, samples }.refit(&mut model, options)?;
        self.with_weights(model, choice, &grids)
    }

    /// The model with quantized activations, and the grids of the inputs of layers.
    fn with_activations(&self, choice: &Choice) -> Result<(Model, InputGrids), PassError> {
        let mut model = self.plain.clone();
        let grids = emit::activations(&mut model.graph, &self.plan(choice), &self.grids)?;
        Ok((model, grids))
    }

    /// The model with the weights of the chosen layers in integers.
    fn with_weights(
        &self,
        mut model: Model,
        choice: &Choice,
        grids: &InputGrids,
    ) -> Result<Model, PassError> {
        if self.method == Method::Dynamic {
            dynamic::replace(&mut model.graph, self.chosen(choice))?;
        } else {
            for (layer, weights) in self.chosen(choice) {
                let weights = self.beside(layer, weights, grids)?;
                emit::weights(&mut model.graph, layer, &weights, grids.get(&layer.node))?;
            }
        }
        model.graph.sweep();
        Ok(model)
    }

    /// The weights of a layer beside the grid of its input.
    fn beside<'w>(
        &self,
        layer: &WeightedLayer,
        weights: &'w IntegerWeights,
        grids: &InputGrids,
    ) -> Result<std::borrow::Cow<'w, IntegerWeights>, PassError> {
        // The bias of a `MatMul` is an `Add` after it, which stays in float.
        let has_bias = self.plain.graph.at(layer.node).optional(2).is_some();
        match grids.get(&layer.node).filter(|_| has_bias) {
            Some(grid) => weights.beside(&self.plain.graph, layer, grid),
            None => Ok(std::borrow::Cow::Borrowed(weights)),
        }
    }
}

/// Returns the model with weights for which there are integer kernels: matrices of products, and the factors of
/// `Gemm` in its weights and biases.
pub fn normalized(model: &Model) -> Result<Model, PassError> {
    let mut plain = model.clone();
    for &node in model.graph.nodes().iter() {
        let mut patch = Patch::anchored(node);
        let changed = Linear::owned(&model.graph, node)
            .and_then(|linear| linear.normalize(model.graph.at(node), &mut patch));
        if changed.is_some() {
            plain.graph.apply(patch).map_err(PassError::from_error)?;
        }
    }
    Ok(plain)
}
