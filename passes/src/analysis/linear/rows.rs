//! The rows that a linear operator reads and writes, gathered from activations.

use super::{Linear, Operator};
use crate::statistics::Rows;
use pare_graph::ValueId;

/// The input of a linear operator and the window that is moved over it. Operators with equal windows read the
/// same rows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    input: ValueId,
    /// Kernel, strides, dilations, pads and groups of a convolution.
    geometry: Vec<i64>,
}

/// Chosen positions of one sample of a batch, as row-major indices over the positions of the output.
#[derive(Clone, Copy, Debug)]
pub struct Positions<'a> {
    /// The index of the sample in the batch.
    pub sample: usize,
    /// The positions.
    pub chosen: &'a [usize],
}

impl Linear {
    /// The window that is moved over the input.
    pub fn window(&self) -> Window {
        let Operator::Conv(view) = &self.operator else {
            return Window { input: self.input, geometry: vec![] };
        };
        let sizes = [&view.kernel, &view.strides, &view.dilations].into_iter().flatten().map(|&n| n as i64);
        let pads = view.pads.iter().flat_map(|p| [p.0, p.1]);
        Window { input: self.input, geometry: sizes.chain(pads).chain([view.group as i64]).collect() }
    }

    /// The shape of the output for an input of this shape; `None` if the operator does not accept it.
    pub fn output_shape(&self, input: &[usize]) -> Option<Vec<usize>> {
        let outputs = self.groups * self.outputs;
        let Operator::Conv(view) = &self.operator else {
            let (&last, rest) = input.split_last()?;
            return (last == self.channels).then(|| [rest, &[outputs]].concat());
        };
        if input.len() != view.kernel.len() + 2 || input[1] != self.channels * self.groups {
            return None;
        }
        let mut shape = vec![input[0], outputs];
        for (a, &size) in input[2..].iter().enumerate() {
            let reach = view.dilations[a].checked_mul(view.kernel[a].checked_sub(1)?)?.checked_add(1)?;
            let padded = usize::try_from(size as i64 + view.pads[a].0 + view.pads[a].1).ok()?;
            shape.push(padded.checked_sub(reach)? / view.strides[a] + 1);
        }
        Some(shape)
    }

    /// The number of rows of each sample of an output of this shape.
    pub fn positions(&self, output: &[usize]) -> usize {
        match self.operator {
            Operator::Conv(_) => output[2..].iter().product(),
            Operator::Matrix { .. } => output[1..output.len() - 1].iter().product(),
        }
    }

    /// Appends to `rows` the inputs `[groups·D]` that the output is computed from at the given positions. `x`
    /// are the elements of an input of shape `shape`, `output` is the shape of the output.
    pub fn gather_inputs(
        &self,
        x: &[f32],
        shape: &[usize],
        output: &[usize],
        at: Positions<'_>,
        rows: &mut Rows,
    ) {
        let Operator::Conv(view) = &self.operator else {
            return gather_last(x, shape, at, rows);
        };
        let (channels, spatial) = (shape[1], &shape[2..]);
        let plane: usize = spatial.iter().product();
        let x = &x[at.sample * channels * plane..][..channels * plane];
        let taps: Vec<Vec<usize>> = indices(&view.kernel).collect();
        for &position in at.chosen {
            // The offset in a plane for each tap; `None` is padding.
            let centre = unravel(position, &output[2..]);
            let offset = |tap: &Vec<usize>| {
                let mut offset = 0;
                for a in 0..spatial.len() {
                    let i =
                        (centre[a] * view.strides[a] + tap[a] * view.dilations[a]) as i64 - view.pads[a].0;
                    let i = usize::try_from(i).ok().filter(|&i| i < spatial[a])?;
                    offset = offset * spatial[a] + i;
                }
                Some(offset)
            };
            let offsets: Vec<_> = taps.iter().map(offset).collect();
            for plane in x.chunks_exact(plane.max(1)) {
                rows.data.extend(offsets.iter().map(|o| o.map_or(0.0, |o| plane[o])));
            }
        }
    }

    /// Appends to `rows` the channels at the given positions of a value of shape `shape`, laid out like the
    /// output.
    pub fn gather_outputs(&self, y: &[f32], shape: &[usize], at: Positions<'_>, rows: &mut Rows) {
        if !self.is_conv() {
            return gather_last(y, shape, at, rows);
        }
        let (channels, plane) = (shape[1], shape[2..].iter().product::<usize>());
        let y = &y[at.sample * channels * plane..][..channels * plane];
        for &position in at.chosen {
            rows.data.extend((0..channels).map(|c| y[c * plane + position]));
        }
    }
}

fn gather_last(x: &[f32], shape: &[usize], at: Positions<'_>, rows: &mut Rows) {
    let width = shape[shape.len() - 1];
    let positions: usize = shape[1..shape.len() - 1].iter().product();
    for &position in at.chosen {
        rows.data.extend_from_slice(&x[(at.sample * positions + position) * width..][..width]);
    }
}

/// The coordinates of a row-major index.
fn unravel(mut index: usize, shape: &[usize]) -> Vec<usize> {
    let mut coordinates = vec![0; shape.len()];
    for axis in (0..shape.len()).rev() {
        coordinates[axis] = index % shape[axis].max(1);
        index /= shape[axis].max(1);
    }
    coordinates
}

/// All coordinates of a shape in row-major order.
fn indices(shape: &[usize]) -> impl Iterator<Item = Vec<usize>> + '_ {
    (0..shape.iter().product()).map(|i| unravel(i, shape))
}
