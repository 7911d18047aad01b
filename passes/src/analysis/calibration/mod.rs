//! Calibration: runs samples through a model, keeps sums over activations, and solves for weights in closed
//! form.
//!
//! * `observe` runs samples through a model and passes inner values to a closure, batch by batch.
//! * `input_sums` adds up the input rows of linear operators to [`Sums`](crate::statistics::Sums): means,
//!   covariances and cross-covariances in f64. [`collect_statistics`] does so for all linear operators.
//! * `Sums::ridge` fits a map to sums; `block_obs` ranks inputs by the error of removing them.
//! * `entropy` measures how often the signs of activations vary, `max_sliced` the distance between two sets
//!   of rows.
//! * `segment` extracts a part of a model, to run it on its own.

mod collect;
pub(crate) mod entropy;
mod joint_moments;
mod obs;
mod observe;
mod segment;
mod solve;
mod wasserstein;

pub use collect::{Sampling, collect_statistics};
pub(crate) use collect::{input_sums, misfit, size_of};
pub(crate) use joint_moments::{ChannelMoments, JointMoments};
pub(crate) use obs::{RemovalOrder, UnitReader, block_obs};
pub(crate) use observe::{
    Probe, activation_bytes, batches, batches_of, bytes_per_sample, choose, fixed_batch, floats, no_samples,
    observe, open_inputs, run_batches,
};
pub(crate) use segment::segment;
pub(crate) use solve::{NotFinite, Ridge, damped_inverse};
pub(crate) use wasserstein::max_sliced_relative;
