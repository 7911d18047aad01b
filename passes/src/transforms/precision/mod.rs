//! Other number formats.

mod convert_precision;

pub use convert_precision::{ConvertPrecision, Precision};
