//! Rows of two tensors.

use crate::Tensor;

/// The rows of an original and a changed tensor of the same shape.
pub(super) struct Rows {
    /// Elements of a row.
    pub width: usize,
    original: Vec<f64>,
    changed: Vec<f64>,
}

impl Rows {
    /// The rows along the last axis. `None` for scalars, other elements than numbers, and different shapes.
    pub fn of_last_axis(original: &Tensor, changed: &Tensor) -> Option<Self> {
        Self::along(original, changed, -1)
    }

    /// The rows of class scores along an axis; `None` also for fewer than two classes.
    pub fn of_classes(original: &Tensor, changed: &Tensor, axis: i64) -> Option<Self> {
        Self::along(original, changed, axis).filter(|rows| rows.width > 1)
    }

    fn along(original: &Tensor, changed: &Tensor, axis: i64) -> Option<Self> {
        if original.shape() != changed.shape() {
            return None;
        }
        let (width, original) = rows(original, axis)?;
        Some(Self { width, original, changed: rows(changed, axis)?.1 })
    }

    /// The rows of both.
    pub fn pairs(&self) -> impl Iterator<Item = (&[f64], &[f64])> {
        self.original.chunks_exact(self.width).zip(self.changed.chunks_exact(self.width))
    }
}

/// The number of classes along an axis, and the rows of scores one after another. `None` if there are fewer than
/// two classes.
pub fn class_rows(tensor: &Tensor, axis: i64) -> Option<(usize, Vec<f64>)> {
    rows(tensor, axis).filter(|(classes, _)| *classes > 1)
}

/// The size of an axis, and the rows along it.
fn rows(tensor: &Tensor, axis: i64) -> Option<(usize, Vec<f64>)> {
    let shape = tensor.shape();
    let axis = usize::try_from(if axis < 0 { axis + shape.len() as i64 } else { axis }).ok()?;
    let (&width, inner) = (shape.get(axis)?, shape[axis + 1..].iter().product::<usize>());
    let values = tensor.to_f64().filter(|_| width > 0)?;
    if inner == 1 {
        return Some((width, values));
    }
    // [outer, width, inner] → [outer, inner, width].
    let turned = |block: &[f64]| (0..inner * width).map(|k| block[k % width * inner + k / width]).collect();
    let blocks = values.chunks_exact((width * inner).max(1));
    Some((width, blocks.flat_map::<Vec<f64>, _>(turned).collect()))
}
