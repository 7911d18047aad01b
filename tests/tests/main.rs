//! Integration tests: properties of passes, files and operators.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod conformance;
mod exports;
mod fusions;
mod fuzz;
mod hostile;
mod language;
mod layers;
mod models;
mod mutations;
mod peers;
mod proof;
mod properties;
mod sizes;
mod support;
mod traits;
mod weights;
