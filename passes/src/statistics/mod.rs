//! Sums over activations as data: they merge across batches and machines, and are stored in files.
//!
//! [`Rows`] holds activations as rows, [`Sums`] their count, means and (cross-)scatter matrices in f64, and
//! [`Statistics`] the sums of every linear operator of a model.

mod file;
mod sums;

pub use file::{Statistics, StatisticsError};
pub(crate) use sums::par;
pub use sums::{Lines, Rows, Sums, covariance_with, map_rows};
