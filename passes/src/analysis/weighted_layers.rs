//! The layers whose weights may change: linear operators that alone read theirs.

use crate::{
    analysis::calibration::Linear,
    framework::{Context, PassError, glob::matches},
};
use faer::Mat;
use pare_graph::{DataType, Graph, NodeId, Patch, Tensor};

/// A linear operator that alone reads its weights.
pub struct Layer {
    /// Its node (of a `MatMul` with a bias behind it, the `MatMul`).
    pub node: NodeId,
    /// What it computes.
    pub linear: Linear,
    /// The name of its weights.
    pub name: String,
    /// Its weights, `[O, D]` of each group.
    pub weights: Vec<Mat<f64>>,
    /// Its bias, of all groups.
    pub bias: Vec<f64>,
}

/// What stays of a layer's weights: `[groups, O, D]` row-major.
pub type Kept = Vec<bool>;

impl Layer {
    /// Rows in all groups.
    pub fn rows(&self) -> usize {
        self.linear.groups * self.linear.outputs
    }

    /// Its weights in all groups.
    pub fn count(&self) -> usize {
        self.rows() * self.linear.width()
    }

    /// A row of numbers by its index in all groups.
    pub fn row(&self, row: usize) -> Vec<f64> {
        let o = self.linear.outputs;
        let weight = &self.weights[row / o];
        (0..weight.ncols()).map(|j| weight[(row % o, j)]).collect()
    }

    /// The elements that `kept` covers of group `q`.
    pub fn of_group<'k>(&self, kept: &'k [bool], q: usize) -> &'k [bool] {
        let size = self.linear.outputs * self.linear.width();
        &kept[q * size..(q + 1) * size]
    }

    /// Set what does not stay to zero; everything else is left to the bit. How many turned from something to zero.
    pub fn zero(&self, graph: &Graph, kept: &[bool], patch: &mut Patch) -> Option<u64> {
        let tensor = graph.value(self.linear.weight).tensor()?;
        let (o, d) = (self.linear.outputs, self.linear.width());
        let gone = kept.iter().enumerate().filter(|(_, stays)| !**stays);
        let places = gone.map(|(k, _)| self.linear.place(k / (o * d), k / d % o, k % d));
        let (zeroed, count) = zeroed(tensor, places)?;
        patch.set_data(self.linear.weight, zeroed);
        Some(count)
    }
}

/// The tensor with these elements set to zero, and how many of them were not.
pub fn zeroed(tensor: &Tensor, places: impl Iterator<Item = usize>) -> Option<(Tensor, u64)> {
    let size = tensor.dtype().bits() as usize / 8;
    let mut bytes = tensor.bytes().to_vec();
    let mut count = 0;
    for place in places {
        let element = bytes.get_mut(place * size..(place + 1) * size)?;
        // Both zeros have no bit set but the sign.
        count += u64::from(element.iter().rev().skip(1).any(|&b| b != 0) || element.last()? & 0x7f != 0);
        element.fill(0);
    }
    Some((Tensor::new(tensor.dtype(), tensor.shape(), bytes).ok()?, count))
}

/// Share of the float elements that are not zero, over these layers.
pub fn density(graph: &Graph, layers: &[Layer]) -> f64 {
    let tensors = layers.iter().filter_map(|l| graph.value(l.linear.weight).tensor());
    let (mut some, mut all) = (0, 0);
    for values in tensors.filter_map(Tensor::to_f64) {
        some += values.iter().filter(|v| **v != 0.0).count();
        all += values.len();
    }
    some as f64 / all.max(1) as f64
}

/// The layers of a graph, in the order in which they compute, whose weights have names that match.
pub fn layers(
    graph: &Graph,
    (only, except): (&[String], &[String]),
    cx: &mut Context<'_>,
) -> Result<Vec<Layer>, PassError> {
    let (mut layers, mut any) = (vec![], None);
    for &node in graph.nodes().iter() {
        let Ok(linear) = Linear::of(graph.at(node)) else { continue };
        let value = graph.value(linear.weight);
        any.get_or_insert_with(|| value.name.clone());
        let named = only.is_empty() || only.iter().any(|p| matches(p, &value.name));
        if !named || except.iter().any(|p| matches(p, &value.name)) {
            continue;
        }
        if !linear.owns_weight(graph) {
            cx.decline(format!("`{}` is read elsewhere too, or no initializer", value.name));
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
        layers.push(Layer { node, name: value.name.clone(), linear, weights, bias });
    }
    match (layers.is_empty(), any) {
        (false, _) => Ok(layers),
        (true, Some(name)) => Err(PassError::refused_with(
            "no layer has weights of its own with such a name",
            format!(
                "layers are named by their weights, such as `{name}`; `safe` makes constants initializers"
            ),
        )),
        (true, None) => Err(PassError::refused("the graph has no linear layer with constant weights")),
    }
}
