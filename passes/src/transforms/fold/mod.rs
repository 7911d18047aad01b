//! Exact algebra: constants, batch norm, linear into linear.

mod fold_bn;
mod fold_constants;
mod fold_linear;
mod fold_scale;
mod preceding;

pub use fold_bn::FoldBn;
pub use fold_constants::FoldConstants;
pub use fold_linear::FoldLinear;
pub(crate) use fold_linear::cropped;
pub use fold_scale::FoldScale;
