//! The layers whose weights may change: linear operators whose weights have no other user.

use crate::{
    analysis::linear::Linear,
    framework::{Context, PassError, glob::matches},
};
use faer::Mat;
use pare_graph::{DataType, Graph, Model, NodeId, Patch, Tensor};

/// A linear operator whose weights have no other user.
pub struct WeightedLayer {
    /// The node; of a `MatMul` with a bias added after it, the `MatMul`.
    pub node: NodeId,
    /// The operator.
    pub linear: Linear,
    /// The name of the weights.
    pub name: String,
    /// The weights `[O, D]` of each group.
    pub weights: Vec<Mat<f64>>,
    /// The bias of all groups.
    pub bias: Vec<f64>,
}

/// The weights of a layer that are kept: `[groups, O, D]` row-major.
pub type Kept = Vec<bool>;

/// Patterns for the names of weights.
#[derive(Clone, Copy, Debug, Default)]
pub struct NameFilter<'a> {
    /// Patterns of which one must match; if empty, all names match.
    pub only: &'a [String],
    /// Patterns of which none may match.
    pub except: &'a [String],
}

impl NameFilter<'_> {
    fn is_open(&self) -> bool {
        self.only.is_empty() && self.except.is_empty()
    }

    pub fn accepts(&self, name: &str) -> bool {
        (self.only.is_empty() || self.only.iter().any(|p| matches(p, name)))
            && !self.except.iter().any(|p| matches(p, name))
    }
}

impl WeightedLayer {
    /// The number of rows of the weights in all groups.
    pub fn rows(&self) -> usize {
        self.linear.groups * self.linear.outputs
    }

    /// The number of weights in all groups.
    pub fn count(&self) -> usize {
        self.rows() * self.linear.width()
    }

    /// The weights of a row, counted over all groups.
    pub fn row(&self, row: usize) -> Vec<f64> {
        let o = self.linear.outputs;
        let weight = &self.weights[row / o];
        (0..weight.ncols()).map(|j| weight[(row % o, j)]).collect()
    }

    /// The part of `kept` that belongs to group `q`.
    pub fn of_group<'k>(&self, kept: &'k [bool], q: usize) -> &'k [bool] {
        let size = self.linear.outputs * self.linear.width();
        &kept[q * size..(q + 1) * size]
    }

    /// Sets the weights that are not kept to zero; all others keep their bits. Returns the number of weights
    /// that were not zero before.
    pub fn zero(&self, graph: &Graph, kept: &[bool], patch: &mut Patch) -> Option<u64> {
        let tensor = graph.value(self.linear.weight).tensor()?;
        let (o, d) = (self.linear.outputs, self.linear.width());
        let removed = kept.iter().enumerate().filter(|(_, kept)| !**kept);
        let offsets = removed.map(|(k, _)| self.linear.offset(k / (o * d), k / d % o, k % d));
        let (zeroed, count) = zeroed(tensor, offsets)?;
        patch.set_data(self.linear.weight, zeroed);
        Some(count)
    }
}

/// Returns the tensor with the elements at these offsets set to zero, and the number of those that were not
/// zero.
pub fn zeroed(tensor: &Tensor, offsets: impl Iterator<Item = usize>) -> Option<(Tensor, u64)> {
    let size = tensor.dtype().bits() as usize / 8;
    let mut bytes = tensor.bytes().to_vec();
    let mut count = 0;
    for offset in offsets {
        let element = bytes.get_mut(offset * size..(offset + 1) * size)?;
        // 0.0 and -0.0 have no bit set but the sign.
        count += u64::from(element.iter().rev().skip(1).any(|&b| b != 0) || element.last()? & 0x7f != 0);
        element.fill(0);
    }
    Some((Tensor::new(tensor.dtype(), tensor.shape(), bytes).ok()?, count))
}

/// The share of the weights of these layers that are not zero.
pub fn density(graph: &Graph, layers: &[WeightedLayer]) -> f64 {
    let tensors = layers.iter().filter_map(|l| graph.value(l.linear.weight).tensor());
    let (mut nonzero, mut all) = (0, 0);
    for values in tensors.filter_map(Tensor::to_f64) {
        nonzero += values.iter().filter(|v| **v != 0.0).count();
        all += values.len();
    }
    nonzero as f64 / all.max(1) as f64
}

/// Returns the layers of the main graph whose weights have accepted names, in topological order. Layers with
/// shared weights, or weights that are not finite, are declined.
pub fn layers(
    model: &Model,
    names: NameFilter<'_>,
    cx: &mut Context<'_>,
) -> Result<Vec<WeightedLayer>, PassError> {
    let found = find(model, names, cx);
    if !found.layers.is_empty() {
        return Ok(found.layers);
    }
    let is_open = names.is_open();
    Err(match (found.example, found.shared) {
        (Some(name), _) if !is_open => PassError::refused_with(
            "no layer has weights of its own with such a name",
            format!("layers have the names of their weights, such as `{name}`"),
        ),
        (_, Some(why)) => PassError::refused_with(
            format!("no layer has weights of its own: {why}"),
            "`safe` makes constants initializers",
        ),
        _ => {
            let why = "the graph has no linear layer with constant weights";
            let hint = (!model.functions.is_empty()).then(|| IN_FUNCTIONS.into());
            PassError::Refused { why: why.into(), hint }
        }
    })
}

/// Like [`layers`], but there may be none.
pub fn matching_layers(model: &Model, names: NameFilter<'_>, cx: &mut Context<'_>) -> Vec<WeightedLayer> {
    find(model, names, cx).layers
}

/// The layers of a model, and what else has been seen.
struct Found {
    layers: Vec<WeightedLayer>,
    /// The weights of some layer.
    example: Option<String>,
    /// A sentence about weights that are not those of one layer.
    shared: Option<String>,
}

fn find(model: &Model, names: NameFilter<'_>, cx: &mut Context<'_>) -> Found {
    let graph = &model.graph;
    let (mut layers, mut example, mut shared) = (vec![], None, None);
    for &node in graph.nodes().iter() {
        let Ok(linear) = Linear::of(graph.at(node)) else { continue };
        let value = graph.value(linear.weight);
        example.get_or_insert_with(|| value.name.clone());
        if !names.accepts(&value.name) {
            continue;
        }
        if !linear.owns_weight(graph) {
            let why = format!("`{}` has other users, or is not an initializer", value.name);
            cx.decline(&why);
            shared.get_or_insert(why);
            continue;
        }
        let dtype = value.fact.dtype();
        if !matches!(dtype, Some(DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16))
        {
            continue;
        }
        let weights = (0..linear.groups).map(|q| linear.weight(graph, q)).collect::<Option<Vec<_>>>();
        let (Some(weights), Some(bias)) = (weights, linear.bias(graph)) else { continue };
        if !weights.iter().all(|w| w.is_all_finite()) {
            cx.decline(format!("`{}` is not finite", value.name));
            continue;
        }
        layers.push(WeightedLayer { node, name: value.name.clone(), linear, weights, bias });
    }
    Found { layers, example, shared }
}

/// The remedy where layers inside of functions are not found.
pub const IN_FUNCTIONS: &str = "layers inside of functions are found after `inline-functions`";
