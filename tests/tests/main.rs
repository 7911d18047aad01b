//! What holds of every pass, of every file, and of broken ones.

// Helpers of tests are tests.
#![allow(clippy::unwrap_used)]

mod conformance;
mod fuzz;
mod hostile;
mod laws;
mod layers;
mod models;
mod mutations;
mod peers;
mod sizes;
mod support;
mod traits;
mod weights;
