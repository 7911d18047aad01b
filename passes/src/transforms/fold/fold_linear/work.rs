//! What a layer costs, as far as its outline tells.

use super::{
    axis::{Axis, Run},
    layer::{Form, Layer, Part, composite},
    outline::{Outline, Sizes},
};

/// Sizes that are not fixed count as this many places: all layers of a chain grow with them alike.
pub const NOMINAL: usize = 224;

/// An element that is read, changed and written costs as much as so many multiply-accumulates: cores do some 20 of
/// them a nanosecond and move one element.
const MOVE: u64 = 16;

/// Calling a node costs as much as so many multiply-accumulates: 1 to 2 µs.
const CALL: u64 = 1 << 15;

/// Runs along one axis that a layer with seams may be computed in.
pub const MOST_RUNS: usize = 9;

/// The work of some nodes on one sample.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Convolutions and matrices.
    pub layers: u64,
    /// Their multiply-accumulates.
    pub macs: u64,
    /// Elements moved or changed one by one.
    pub moves: u64,
    /// Nodes.
    pub nodes: u64,
}

impl Work {
    /// In multiply-accumulates.
    pub fn total(self) -> u64 {
        let moves = self.moves.saturating_mul(MOVE);
        self.macs.saturating_add(moves).saturating_add(self.nodes.saturating_mul(CALL))
    }

    fn nodes(nodes: u64, moves: u64) -> Self {
        Self { layers: 0, macs: 0, moves, nodes }
    }

    fn product(macs: u64) -> Self {
        Self { layers: 1, macs, moves: 0, nodes: 1 }
    }
}

impl std::ops::Add for Work {
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

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Self>>(items: I) -> Self {
        items.fold(Self::default(), |a, b| a + b)
    }
}

fn product(factors: impl IntoIterator<Item = usize>) -> u64 {
    factors.into_iter().fold(1, |n, f| n.saturating_mul(f as u64))
}

/// Sizes with a stand-in for unknown ones.
fn nominal(sizes: &Sizes) -> Vec<usize> {
    sizes.iter().map(|s| s.unwrap_or(NOMINAL)).collect()
}

fn places(outline: &Outline, sizes: &[usize]) -> u64 {
    product(outline.axes.iter().zip(sizes).map(|(a, &n)| a.outputs(n).unwrap_or(1)))
}

/// How many rows a layer works on in a sample, if its channels are on the last axis.
pub fn rows(layer: &Layer<'_>) -> u64 {
    let Some(shape) = layer.input.shape().filter(|s| layer.forms.0 == Form::Rows && s.len() > 2) else {
        return 1;
    };
    product(shape[1..shape.len() - 1].iter().map(|d| d.size().unwrap_or(NOMINAL)))
}

/// The work of the nodes that a layer is read from, over inputs of these sizes.
pub fn of_nodes(layer: &Layer<'_>, sizes: &Sizes) -> Work {
    let (o, rows) = (&layer.outline, rows(layer));
    let places = places(o, &nominal(sizes)).saturating_mul(rows);
    let elements = places.saturating_mul(o.outputs as u64);
    let taps = product(o.axes.iter().map(|a| a.taps));
    let per_output = taps.saturating_mul((o.inputs / o.group) as u64);
    match &layer.part {
        Part::Conv { .. } => Work::product(elements.saturating_mul(per_output)),
        Part::Matrix { .. } => {
            let flatten = u64::from(layer.forms.0 != layer.forms.1);
            Work::product(elements.saturating_mul(per_output)) + Work::nodes(flatten, 0)
        }
        Part::Average => Work::nodes(1, elements.saturating_mul(taps)),
        Part::Diagonal { .. } => {
            // A batch norm multiplies and adds.
            let steps = if layer.at.is("BatchNormalization") { 2 } else { 1 };
            Work::nodes(1, elements.saturating_mul(steps))
        }
        Part::Join(join) => {
            let branches: Work = join.branches.iter().map(|b| of_chain(b, sizes)).sum();
            let operands = if join.side_by_side { 1 } else { join.branches.len() as u64 - 1 };
            branches + Work::nodes(1, elements.saturating_mul(operands))
        }
    }
}

/// The work of the nodes of a chain.
pub fn of_chain(layers: &[Layer<'_>], sizes: &Sizes) -> Work {
    let mut sizes = sizes.to_vec();
    let mut sum = Work::default();
    for layer in layers {
        let here = if layer.forms.0 == Form::Rows { vec![] } else { sizes.clone() };
        sum = sum + of_nodes(layer, &here);
        sizes = layer.outline.output_sizes(&here);
    }
    sum
}

/// The work of the composite without seams, from input to output form.
pub fn of_composite(outline: &Outline, forms: (Form, Form), sizes: &Sizes, rows: u64, gemm: bool) -> Work {
    let per_output = (outline.inputs / outline.group) as u64;
    let known = nominal(sizes);
    match forms {
        (Form::Rows, _) => {
            let macs = rows.saturating_mul(outline.outputs as u64).saturating_mul(per_output);
            let add = !gemm && outline.offset.bias;
            let moves = if add { rows.saturating_mul(outline.outputs as u64) } else { 0 };
            Work::product(macs) + Work::nodes(u64::from(add), moves)
        }
        (Form::Window(_), Form::Rows) => {
            // A matrix over the flattened input, of which no padding is left.
            let macs = product(known).saturating_mul(outline.outputs as u64).saturating_mul(per_output);
            Work::product(macs) + Work::nodes(1, 0)
        }
        (Form::Window(_), Form::Window(_)) => {
            let places = places(outline, &known);
            let elements = places.saturating_mul(outline.outputs as u64);
            let taps = product(outline.axes.iter().map(|a| a.taps));
            let conv = Work::product(elements.saturating_mul(taps).saturating_mul(per_output));
            let fixed = sizes.iter().all(Option::is_some);
            let read = (outline.inputs as u64).saturating_mul(product(known));
            let map = Work::nodes(1, elements);
            let shift = Work::nodes(1, read);
            let channel =
                Work::nodes(1, read) + Work { macs: elements.saturating_mul(taps), ..Work::default() };
            let offset = outline.offset;
            conv + match (offset.ones, offset.map, offset.shift, fixed) {
                (false, false, ..) => Work::default(),
                (true, false, true, true) if read <= elements => shift,
                (true, false, true, false) => shift,
                (_, _, _, true) => map,
                _ => channel,
            }
        }
    }
}

/// Elements of the output for one sample.
pub fn elements(outline: &Outline, sizes: &Sizes, rows: u64) -> u64 {
    places(outline, &nominal(sizes)).saturating_mul(rows).saturating_mul(outline.outputs as u64)
}

/// The work of a composite with seams: a convolution for each tile, the parts cut out of the input and put together.
pub fn of_tiles(outline: &Outline, runs: &[Vec<Run>]) -> Work {
    let per_output = product([outline.outputs, outline.inputs / outline.group]);
    // Work on all tiles is the product over the axes of the sums over their runs.
    let weighed = runs.iter().map(|runs| runs.iter().map(|r| r.outputs.len() * r.taps.len()).sum());
    let macs = product(weighed).saturating_mul(per_output);
    let outputs = product(runs.iter().map(|runs| runs.last().map_or(0, |r| r.outputs.end)));
    let elements = outputs.saturating_mul(outline.outputs as u64);
    let (mut tiles, mut nodes, mut moves) = (1_u64, 0, 0_u64);
    for runs in runs.iter().filter(|runs| runs.len() > 1) {
        // One `Concat` for each tile so far, one `Slice` for each part of it.
        nodes += tiles * (runs.len() as u64 + 1);
        tiles *= runs.len() as u64;
        moves = moves.saturating_add(elements);
    }
    Work { layers: 1, ..Work::product(macs) + Work::nodes(nodes + tiles - 1, moves) }
}

/// The runs along each axis that the composite of a chain with seams falls into.
pub fn runs(layers: &[Layer<'_>]) -> Option<Vec<Vec<Run>>> {
    let (last, before) = layers.split_last()?;
    let (before, _) = composite(before)?;
    let sizes: Option<Vec<_>> = layers[0].sizes().into_iter().collect();
    let pairs = before.axes.iter().zip(&last.outline.axes).zip(sizes?);
    pairs.map(|((a, b), size): ((&Axis, &Axis), usize)| a.runs(*b, size, MOST_RUNS)).collect()
}

/// A size as a number, for messages.
pub fn ratio(after: u64, before: u64) -> String {
    format!("{:.2}", after as f64 / before.max(1) as f64)
}
