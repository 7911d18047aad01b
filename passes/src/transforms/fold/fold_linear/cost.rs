//! The cost of layers, computed from their outlines.

use super::{
    axis::{Axis, TapRun},
    layer::{LayerWeights, Layout, Layouts, LinearLayer, composite},
    outline::{Ones, Outline, Sizes},
};

/// The size assumed for axes that are not fixed. All layers of a chain scale with it alike.
pub const NOMINAL: usize = 224;

/// Multiply-accumulates that cost as much as reading, changing and writing one element: a core does about 20
/// of them per nanosecond and moves one element.
const MACS_PER_MOVE: u64 = 16;

/// Multiply-accumulates that cost as much as calling a node: 1 to 2 µs.
const MACS_PER_NODE: u64 = 1 << 15;

/// The largest number of output ranges along one axis that a layer with seams is split into.
pub const MAX_RUNS: usize = 9;

/// The cost of some nodes for one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LayerCost {
    /// Convolutions and matrix products.
    pub layers: u64,
    /// Their multiply-accumulates.
    pub macs: u64,
    /// Elements that are moved or changed one by one.
    pub moves: u64,
    /// Nodes.
    pub nodes: u64,
}

impl LayerCost {
    /// The total in multiply-accumulates.
    pub fn total(self) -> u64 {
        let moves = self.moves.saturating_mul(MACS_PER_MOVE);
        self.macs.saturating_add(moves).saturating_add(self.nodes.saturating_mul(MACS_PER_NODE))
    }

    fn nodes(nodes: u64, moves: u64) -> Self {
        Self { layers: 0, macs: 0, moves, nodes }
    }

    fn product(macs: u64) -> Self {
        Self { layers: 1, macs, moves: 0, nodes: 1 }
    }
}

impl std::ops::Add for LayerCost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            layers: self.layers + other.layers,
            macs: self.macs.saturating_add(other.macs),
            moves: self.moves.saturating_add(other.moves),
            nodes: self.nodes + other.nodes,
        }
    }
}

impl std::iter::Sum for LayerCost {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), |a, b| a + b)
    }
}

fn product(factors: impl IntoIterator<Item = usize>) -> u64 {
    factors.into_iter().fold(1, |n, f| n.saturating_mul(f as u64))
}

/// Sizes, with [`NOMINAL`] for unknown ones.
fn nominal(sizes: &Sizes) -> Vec<usize> {
    sizes.iter().map(|s| s.unwrap_or(NOMINAL)).collect()
}

fn output_positions(outline: &Outline, sizes: &[usize]) -> u64 {
    product(outline.axes.iter().zip(sizes).map(|(a, &n)| a.outputs(n).unwrap_or(1)))
}

/// The number of rows per sample that a layer with channels on the last axis is applied to.
pub fn rows(layer: &LinearLayer<'_>) -> u64 {
    let is_rows = layer.layouts.input == Layout::Rows;
    let Some(shape) = layer.input.shape().filter(|s| is_rows && s.len() > 2) else { return 1 };
    product(shape[1..shape.len() - 1].iter().map(|d| d.size().unwrap_or(NOMINAL)))
}

/// The cost of the nodes that a layer was read from, for an input of these sizes.
pub fn of_layer(layer: &LinearLayer<'_>, sizes: &Sizes) -> LayerCost {
    let (o, rows) = (&layer.outline, rows(layer));
    let positions = output_positions(o, &nominal(sizes)).saturating_mul(rows);
    let elements = positions.saturating_mul(o.outputs as u64);
    let taps = product(o.axes.iter().map(|a| a.taps));
    let per_output = taps.saturating_mul((o.inputs / o.group) as u64);
    match &layer.weights {
        LayerWeights::Conv { .. } => LayerCost::product(elements.saturating_mul(per_output)),
        LayerWeights::Matrix { .. } => {
            let flatten = u64::from(layer.layouts.input != layer.layouts.output);
            LayerCost::product(elements.saturating_mul(per_output)) + LayerCost::nodes(flatten, 0)
        }
        LayerWeights::Average => LayerCost::nodes(1, elements.saturating_mul(taps)),
        LayerWeights::Diagonal { .. } => {
            // A batch norm multiplies and adds.
            let operations = if layer.at.is("BatchNormalization") { 2 } else { 1 };
            LayerCost::nodes(1, elements.saturating_mul(operations))
        }
        LayerWeights::Join(join) => {
            let branches: LayerCost = join.branches.iter().map(|b| of_chain(b, sizes)).sum();
            let operands = if join.side_by_side { 1 } else { join.branches.len() as u64 - 1 };
            branches + LayerCost::nodes(1, elements.saturating_mul(operands))
        }
    }
}

/// The cost of the nodes of a chain.
pub fn of_chain(layers: &[LinearLayer<'_>], sizes: &Sizes) -> LayerCost {
    let mut sizes = sizes.to_vec();
    let mut sum = LayerCost::default();
    for layer in layers {
        let input_sizes = if layer.layouts.input == Layout::Rows { vec![] } else { sizes.clone() };
        sum = sum + of_layer(layer, &input_sizes);
        sizes = layer.outline.output_sizes(&input_sizes);
    }
    sum
}

/// The cost of a composite without seams.
pub fn of_composite(outline: &Outline, layouts: Layouts, sizes: &Sizes, rows: u64, gemm: bool) -> LayerCost {
    let per_output = (outline.inputs / outline.group) as u64;
    let known = nominal(sizes);
    match (layouts.input, layouts.output) {
        (Layout::Rows, _) => {
            let macs = rows.saturating_mul(outline.outputs as u64).saturating_mul(per_output);
            let add = !gemm && outline.offset.bias;
            let moves = if add { rows.saturating_mul(outline.outputs as u64) } else { 0 };
            LayerCost::product(macs) + LayerCost::nodes(u64::from(add), moves)
        }
        (Layout::Spatial(_), Layout::Rows) => {
            // A matrix over the flattened input, without padding.
            let macs = product(known).saturating_mul(outline.outputs as u64).saturating_mul(per_output);
            LayerCost::product(macs) + LayerCost::nodes(1, 0)
        }
        (Layout::Spatial(_), Layout::Spatial(_)) => {
            let elements = output_positions(outline, &known).saturating_mul(outline.outputs as u64);
            let taps = product(outline.axes.iter().map(|a| a.taps));
            let conv = LayerCost::product(elements.saturating_mul(taps).saturating_mul(per_output));
            let fixed = sizes.iter().all(Option::is_some);
            let read = (outline.inputs as u64).saturating_mul(product(known));
            conv + match (outline.offset.ones, outline.offset.map) {
                (None, false) => LayerCost::default(),
                (Some(Ones::Shift), false) if !fixed || read <= elements => LayerCost::nodes(1, read),
                _ if fixed => LayerCost::nodes(1, elements),
                _ => {
                    let macs = elements.saturating_mul(taps);
                    LayerCost::nodes(1, read) + LayerCost { macs, ..LayerCost::default() }
                }
            }
        }
    }
}

/// The number of output elements per sample.
pub fn elements(outline: &Outline, sizes: &Sizes, rows: u64) -> u64 {
    output_positions(outline, &nominal(sizes)).saturating_mul(rows).saturating_mul(outline.outputs as u64)
}

/// The cost of a composite with seams: a `Slice` and a `Conv` per tile, and the `Concat`s that join the
/// tiles.
pub fn of_tiles(outline: &Outline, runs: &[Vec<TapRun>]) -> LayerCost {
    let per_output = product([outline.outputs, outline.inputs / outline.group]);
    // The work on all tiles is the product over the axes of the sums over their runs.
    let weighted = runs.iter().map(|runs| runs.iter().map(|r| r.outputs.len() * r.taps.len()).sum());
    let macs = product(weighted).saturating_mul(per_output);
    let outputs = product(runs.iter().map(|runs| runs.last().map_or(0, |r| r.outputs.end)));
    let elements = outputs.saturating_mul(outline.outputs as u64);
    let (mut tiles, mut nodes, mut moves) = (1_u64, 0, 0_u64);
    for runs in runs.iter().filter(|runs| runs.len() > 1) {
        // One `Concat` per tile so far, and one `Slice` per part of it.
        nodes += tiles * (runs.len() as u64 + 1);
        tiles *= runs.len() as u64;
        moves = moves.saturating_add(elements);
    }
    LayerCost { layers: 1, ..LayerCost::product(macs) + LayerCost::nodes(nodes + tiles - 1, moves) }
}

/// The output ranges along each axis that the composite of a chain with seams is split into.
pub fn runs(layers: &[LinearLayer<'_>]) -> Option<Vec<Vec<TapRun>>> {
    let (last, before) = layers.split_last()?;
    let (before, _) = composite(before)?;
    let sizes: Option<Vec<_>> = layers[0].sizes().into_iter().collect();
    let pairs = before.axes.iter().zip(&last.outline.axes).zip(sizes?);
    pairs.map(|((a, b), size): ((&Axis, &Axis), usize)| a.runs(*b, size, MAX_RUNS)).collect()
}

/// A ratio of costs for messages.
pub fn ratio(after: u64, before: u64) -> String {
    format!("{:.2}", after as f64 / before.max(1) as f64)
}
