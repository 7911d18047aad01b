//! Sums over activations, which merge across batches and machines and are stored in files.
//!
//! [`Statistics`] holds the sums over the inputs of every linear operator of a model: [`Sums`], the count,
//! the means and the scatter matrices in f64 of activations as [`Rows`].

mod file;
mod sums;

pub(crate) use file::write_tensors;
pub use file::{Statistics, StatisticsError};
pub use sums::{Lines, Rows, Sums};
pub(crate) use sums::{column_means, covariance_with, map_rows, par};
