//! Passes that change the version of the standard operator set.
//!
//! `table` lists the operators whose versions differ in more than types, with their adapters; `convert`
//! applies them version by version.

// All adapters have the same signature, including those that cannot fail.
#![allow(clippy::unnecessary_wraps)]

mod adapters;
mod convert;
mod downgrade_opset;
mod form;
mod moves;
mod normalization;
mod resize;
mod scan;
mod softmax;
mod table;
#[cfg(test)]
mod tests;
mod upgrade_opset;

pub use downgrade_opset::DowngradeOpset;
pub use upgrade_opset::UpgradeOpset;
