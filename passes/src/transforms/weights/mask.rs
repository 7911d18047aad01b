//! Which weights are zero, as a file: what a lottery ticket (Frankle and Carbin 2019) carries from the trained model to
//! the one at initialization.

use crate::analysis::weighted_layers::zeroed;
use pare_graph::{Model, Patch};
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{collections::BTreeMap, fmt::Write as _};

/// For each initializer by name: its shape, and which of its elements stay.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask {
    /// By name.
    pub tensors: BTreeMap<String, (Vec<usize>, Vec<bool>)>,
}

/// A mask that cannot be read, made or applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MaskError {
    /// The file is no mask.
    #[error("it is no mask: {0}")]
    Format(String),
    /// Initializers that the model does not have like this.
    #[error("it does not fit the model{0}")]
    Mismatch(String),
    /// The pipeline left no zeros.
    #[error("no weight became zero, so there is no mask")]
    Empty,
}

impl Mask {
    /// What became zero in `after` of the initializers of `before`.
    pub fn between(before: &Model, after: &Model) -> Result<Self, MaskError> {
        let (mut mask, mut wrong) = (Self::default(), String::new());
        for id in before.graph.initializers() {
            let value = before.graph.value(id);
            let Some(old) = value.tensor().filter(|t| t.dtype().is_float()) else { continue };
            let new = after.graph.find(&value.name).and_then(|v| after.graph.value(v).tensor());
            // What is gone altogether, such as a batch norm that was folded, has no zeros.
            let Some(new) = new else { continue };
            if new.shape() != old.shape() {
                let _ = write!(wrong, "\n  `{}`: {:?} became {:?}", value.name, old.shape(), new.shape());
                continue;
            }
            let (Some(old), Some(values)) = (old.to_f64(), new.to_f64()) else { continue };
            if old.iter().zip(&values).any(|(old, new)| *new == 0.0 && *old != 0.0) {
                let stays = values.iter().map(|v| *v != 0.0).collect();
                mask.tensors.insert(value.name.clone(), (new.shape().to_vec(), stays));
            }
        }
        match (wrong.is_empty(), mask.tensors.is_empty()) {
            (false, _) => Err(MaskError::Mismatch(wrong)),
            (_, true) => Err(MaskError::Empty),
            _ => Ok(mask),
        }
    }

    /// Elements, and how many of them stay.
    pub fn counts(&self) -> (usize, usize) {
        let all = || self.tensors.values().flat_map(|t| &t.1);
        (all().count(), all().filter(|stays| **stays).count())
    }

    /// As a safetensors file of boolean tensors.
    pub fn to_bytes(&self) -> Result<Vec<u8>, MaskError> {
        let bytes: Vec<Vec<u8>> =
            self.tensors.values().map(|(_, stays)| stays.iter().map(|&b| u8::from(b)).collect()).collect();
        let wrong = |e: safetensors::SafeTensorError| MaskError::Format(e.to_string());
        let mut views = vec![];
        for ((name, (shape, _)), bytes) in self.tensors.iter().zip(&bytes) {
            views.push((name, TensorView::new(Dtype::BOOL, shape.clone(), bytes).map_err(wrong)?));
        }
        safetensors::serialize(views, None).map_err(wrong)
    }

    /// From a safetensors file of tensors of booleans or bytes.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, MaskError> {
        let file = SafeTensors::deserialize(bytes).map_err(|e| MaskError::Format(e.to_string()))?;
        let mut mask = Self::default();
        for (name, tensor) in file.tensors() {
            if !matches!(tensor.dtype(), Dtype::BOOL | Dtype::U8 | Dtype::I8) {
                return Err(MaskError::Format(format!("`{name}` is {:?}, not BOOL or U8", tensor.dtype())));
            }
            let stays = tensor.data().iter().map(|&b| b != 0).collect();
            mask.tensors.insert(name, (tensor.shape().to_vec(), stays));
        }
        Ok(mask)
    }

    /// A patch that sets to zero what does not stay, everything else left to the bit, and how many elements that turns to
    /// zero. All mismatches at once are the error.
    pub fn patch(&self, model: &Model) -> Result<Option<(Patch, u64)>, MaskError> {
        let graph = &model.graph;
        let (mut patch, mut count, mut wrong) = (None, 0, String::new());
        for (name, (shape, stays)) in &self.tensors {
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
            let gone = stays.iter().enumerate().filter(|(_, stays)| !**stays).map(|(k, _)| k);
            let Some((zeroed, zeros)) = zeroed(tensor, gone) else { continue };
            let Some(&(user, _)) = graph.users(id).first() else { continue };
            if zeros > 0 {
                patch.get_or_insert_with(|| Patch::anchored(user)).set_data(id, zeroed);
                count += zeros;
            }
        }
        if wrong.is_empty() { Ok(patch.map(|p| (p, count))) } else { Err(MaskError::Mismatch(wrong)) }
    }
}
