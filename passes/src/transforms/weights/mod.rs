//! Sparse and quantized weights, and masks of zero weights.

mod apply_mask;
mod mask;
mod quantize;
mod quantize_weights;
mod smooth_activations;
mod sparsify;

pub use apply_mask::ApplyMask;
pub use mask::{Mask, MaskError, TensorMask};
pub use quantize::{Attention, Method, Purpose, Quantize, Ranges, RoundingCost, rounding_costs};
pub use quantize_weights::{BlockMethod, QuantizeWeights, WeightForm};
pub use smooth_activations::SmoothActivations;
pub use sparsify::{ComparisonScope, Pattern, Refitting, Sparsify, WeightCriterion};
