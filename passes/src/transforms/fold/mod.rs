//! Algebraic folding: constants, batch norms, scales, and compositions of linear layers.

mod fold_bn;
mod fold_constants;
mod fold_linear;
mod fold_scale;
mod preceding;

pub use fold_bn::FoldBn;
pub use fold_constants::FoldConstants;
pub use fold_linear::{CropKernels, FoldLinear};
pub use fold_scale::FoldScale;
