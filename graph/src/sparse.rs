//! Sparse tensors.

use crate::{Fact, Tensor, element_count};
use std::sync::OnceLock;

/// A sparse tensor (ONNX `SparseTensorProto`).
#[derive(Clone, Debug)]
pub struct SparseTensor {
    /// The nonzero elements, `[NNZ]`.
    pub values: Tensor,
    /// Their positions, `[NNZ]` row-major or `[NNZ, rank]`.
    pub indices: Tensor,
    /// Shape of the dense tensor.
    pub dims: Vec<i64>,
    dense: OnceLock<Option<Box<Tensor>>>,
}

/// Most bytes of a dense tensor. A few bytes of a file can declare a tensor that no memory holds.
const MAX_DENSE: usize = 1 << 28;

impl SparseTensor {
    /// A sparse tensor; its parts are checked when they are used.
    pub fn new(values: Tensor, indices: Tensor, dims: Vec<i64>) -> Self {
        Self { values, indices, dims, dense: OnceLock::new() }
    }

    /// The dense tensor, computed once. `None` if a position is out of range, for strings and elements of less
    /// than a byte, and for tensors that are too large.
    pub fn dense(&self) -> Option<&Tensor> {
        self.dense.get_or_init(|| self.to_dense().map(Box::new)).as_deref()
    }

    fn to_dense(&self) -> Option<Tensor> {
        let dtype = self.values.dtype();
        let width = usize::try_from(dtype.bits()).ok()?.checked_div(8)?;
        let shape: Vec<_> = self.dims.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<_>>()?;
        let count = element_count(&shape)?;
        let length = count
            .checked_mul(width)
            .filter(|&n| n <= MAX_DENSE && dtype.bits().is_multiple_of(8) && width > 0)?;
        let mut bytes = vec![0; length];
        for (value, place) in self.values.bytes().chunks_exact(width).zip(self.places(&shape)?) {
            let start = place.filter(|&place| place < count)? * width;
            bytes[start..start + width].copy_from_slice(value);
        }
        Tensor::new(dtype, &shape, bytes).ok()
    }

    /// The row-major position of each value; `None` for one that is out of range.
    fn places(&self, shape: &[usize]) -> Option<Vec<Option<usize>>> {
        let indices = self.indices.to_i64()?;
        let index = |&i: &i64| usize::try_from(i).ok();
        let nonzeros = self.values.len();
        match *self.indices.shape() {
            [n] if n == nonzeros => Some(indices.iter().map(index).collect()),
            [n, rank] if n == nonzeros && rank == shape.len() && rank > 0 => {
                let row_major = |position: &[i64]| {
                    position.iter().zip(shape).try_fold(0_usize, |place, (i, &size)| {
                        let i = index(i).filter(|&i| i < size)?;
                        place.checked_mul(size)?.checked_add(i)
                    })
                };
                Some(indices.chunks_exact(rank).map(row_major).collect())
            }
            _ => None,
        }
    }

    /// Element type and shape of the dense tensor.
    pub fn fact(&self) -> Fact {
        Fact::tensor(self.values.dtype(), self.dims.iter().map(|&n| n.into()).collect())
    }
}

impl PartialEq for SparseTensor {
    fn eq(&self, other: &Self) -> bool {
        (&self.values, &self.indices, &self.dims) == (&other.values, &other.indices, &other.dims)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dense(indices: Tensor, dims: &[i64]) -> Option<Vec<f64>> {
        let sparse = SparseTensor::new(Tensor::vector(&[1_f32, 2.0]), indices, dims.to_vec());
        sparse.dense().and_then(Tensor::to_f64)
    }

    #[test]
    fn places_elements_by_both_kinds_of_indices() {
        let positions = Tensor::from_slice(&[2, 2], &[0_i64, 2, 1, 0]).unwrap();
        assert_eq!(dense(positions, &[2, 3]).unwrap(), [0.0, 0.0, 1.0, 2.0, 0.0, 0.0]);
        assert_eq!(dense(Tensor::vector(&[1_i64, 3]), &[4]).unwrap(), [0.0, 1.0, 0.0, 2.0]);
    }

    #[test]
    fn has_no_elements_for_wrong_indices_and_sizes() {
        assert_eq!(dense(Tensor::vector(&[1_i64, 4]), &[4]), None);
        assert_eq!(dense(Tensor::vector(&[-1_i64, 0]), &[4]), None);
        assert_eq!(dense(Tensor::vector(&[0_i64]), &[4]), None);
        assert_eq!(dense(Tensor::from_slice(&[2, 2], &[0_i64, 3, 1, 0]).unwrap(), &[2, 3]), None);
        assert_eq!(dense(Tensor::vector(&[0_i64, 1]), &[1 << 40]), None);
        assert_eq!(dense(Tensor::vector(&[0_i64, 1]), &[-4]), None);
        assert_eq!(dense(Tensor::vector(&[0_i64, 1]), &[i64::MAX, i64::MAX]), None);
    }
}
