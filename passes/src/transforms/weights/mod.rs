//! Fewer bits of weights: zeros among them, masks that say where, and fewer bits for each.

mod apply_mask;
mod mask;
mod quantize;
mod sparsify;

pub use apply_mask::ApplyMask;
pub use mask::{Mask, MaskError};
pub use quantize::{Quantize, Ranges};
pub use sparsify::{Criterion, Pattern, Refitting, Scope, Sparsify};
