//! Exact algebra: constants, batch norm, linear into linear.

mod fold_bn;
mod fold_constants;

pub use fold_bn::FoldBn;
pub use fold_constants::FoldConstants;
pub(crate) use fold_constants::Growth;
