//! Masks of zero weights and their files. A lottery ticket (Frankle and Carbin 2019) transfers the mask of a
//! trained model to the model at initialization.

use crate::analysis::weighted_layers::zeroed;
use pare_graph::{Model, Patch};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::BTreeMap, fmt::Write as _};

/// The mask of a model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// The masks of initializers, by name.
    pub tensors: BTreeMap<String, TensorMask>,
}

/// The mask of an initializer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMask {
    /// The shape of the initializer.
    pub shape: Vec<usize>,
    /// For each element, row-major: false if it is zero.
    pub keep: Vec<bool>,
}

/// An error in reading, computing or applying a mask.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MaskError {
    /// The file is not a mask.
    #[error("it is not a mask: {0}")]
    Format(String),
    /// Initializers are missing or have other shapes, one per line.
    #[error("it does not fit the model{0}")]
    Mismatch(String),
    /// No weight became zero.
    #[error("no weight became zero, so there is no mask")]
    Empty,
}

impl Mask {
    /// Computes the mask of the weights of `before` that are zero in `after`.
    ///
    /// # Errors
    ///
    /// [`MaskError::Mismatch`] if an initializer changed its shape, [`MaskError::Empty`] if no weight became
    /// zero.
    pub fn between(before: &Model, after: &Model) -> Result<Self, MaskError> {
        let (mut mask, mut wrong) = (Self::default(), String::new());
        for id in before.graph.initializers() {
            let value = before.graph.value(id);
            let Some(old) = value.tensor().filter(|t| t.dtype().is_float()) else { continue };
            let new = after.graph.find(&value.name).and_then(|v| after.graph.value(v).tensor());
            // Removed initializers, such as those of a folded batch norm, have no mask.
            let Some(new) = new else { continue };
            if new.shape() != old.shape() {
                let _ = write!(wrong, "\n  `{}`: {:?} became {:?}", value.name, old.shape(), new.shape());
                continue;
            }
            let (Some(old), Some(values)) = (old.to_f64(), new.to_f64()) else { continue };
            if old.iter().zip(&values).any(|(old, new)| *new == 0.0 && *old != 0.0) {
                let keep = values.iter().map(|v| *v != 0.0).collect();
                mask.tensors.insert(value.name.clone(), TensorMask { shape: new.shape().to_vec(), keep });
            }
        }
        match (wrong.is_empty(), mask.tensors.is_empty()) {
            (false, _) => Err(MaskError::Mismatch(wrong)),
            (_, true) => Err(MaskError::Empty),
            _ => Ok(mask),
        }
    }

    /// The numbers of all and of kept elements.
    pub fn counts(&self) -> (usize, usize) {
        let all = || self.tensors.values().flat_map(|t| &t.keep);
        (all().count(), all().filter(|keep| **keep).count())
    }

    /// Writes a safetensors file of boolean tensors.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MaskError> {
        let bytes: Vec<Vec<u8>> =
            self.tensors.values().map(|t| t.keep.iter().map(|&b| u8::from(b)).collect()).collect();
        let wrong = |e: safetensors::SafeTensorError| MaskError::Format(e.to_string());
        let mut views = vec![];
        for ((name, tensor), bytes) in self.tensors.iter().zip(&bytes) {
            views.push((name, TensorView::new(Dtype::BOOL, tensor.shape.clone(), bytes).map_err(wrong)?));
        }
        safetensors::serialize(views, None).map_err(wrong)
    }

    /// Reads a safetensors file of tensors of booleans or bytes.
    ///
    /// # Errors
    ///
    /// [`MaskError::Format`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MaskError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| MaskError::Format(e.to_string()))?;
        let mut mask = Self::default();
        for (name, tensor) in file.tensors() {
            if !matches!(tensor.dtype(), Dtype::BOOL | Dtype::U8 | Dtype::I8) {
                return Err(MaskError::Format(format!("`{name}` is {:?}, not BOOL or U8", tensor.dtype())));
            }
            let keep = tensor.data().iter().map(|&b| b != 0).collect();
            mask.tensors.insert(name, TensorMask { shape: tensor.shape().to_vec(), keep });
        }
        Ok(mask)
    }

    /// Returns a patch that sets excluded elements to zero without changing any other bit, and the number of
    /// elements that become zero. `None` if nothing changes.
    ///
    /// # Errors
    ///
    /// [`MaskError::Mismatch`] with all mismatches.
    pub fn patch(&self, model: &Model) -> Result<Option<(Patch, u64)>, MaskError> {
        let graph = &model.graph;
        let (mut patch, mut count, mut wrong) = (None, 0, String::new());
        for (name, TensorMask { shape, keep }) in &self.tensors {
            let found = graph.find(name).filter(|&v| graph.value(v).tensor().is_some());
            let Some((id, tensor)) = found.and_then(|v| Some((v, graph.value(v).tensor()?))) else {
                let _ = write!(wrong, "\n  `{name}`: no initializer of this name");
                continue;
            };
            if !tensor.dtype().is_float() || tensor.shape() != shape {
                let _ = write!(
                    wrong,
                    "\n  `{name}`: the mask is {shape:?}, the initializer {tensor_type}{tensor_shape:?}",
                    tensor_type = tensor.dtype(),
                    tensor_shape = tensor.shape()
                );
                continue;
            }
            let excluded = keep.iter().enumerate().filter(|(_, keep)| !**keep).map(|(k, _)| k);
            let Some((zeroed, zeros)) = zeroed(tensor, excluded) else { continue };
            let Some(&(user, _)) = graph.users(id).first() else { continue };
            if zeros > 0 {
                patch.get_or_insert_with(|| Patch::anchored(user)).set_data(id, zeroed);
                count += zeros;
            }
        }
        if wrong.is_empty() { Ok(patch.map(|p| (p, count))) } else { Err(MaskError::Mismatch(wrong)) }
    }
}
