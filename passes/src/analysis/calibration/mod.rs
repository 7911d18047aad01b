//! What a pass may ask about activations: sums over samples that merge, and what follows from them in closed form.
//!
//! * [`observe`] runs samples through a model and shows values inside, batch by batch.
//! * [`Linear`] sees every linear operator with constant weights as `y = W·x + b`, and cuts activations into its
//!   rows `x`; [`input_sums`] adds them up to [`Sums`]: means, covariances and cross-covariances in f64.
//! * [`Sums::ridge`] fits a map to them, [`block_obs`] tells which inputs it can do without.
//! * [`Statistics`] are sums in files, which add up.
//! * [`entropy`] says how undecided activations are, [`max_sliced`] how far two clouds of rows lie apart.
//! * [`segment`] takes a piece out of a model, to run it on its own.

mod collect;
pub mod entropy;
mod linear;
mod obs;
mod observe;
mod pairs;
mod quantized;
mod segment;
mod solve;
mod wasserstein;

pub use collect::{Sampling, collect_statistics, input_sums, misfit, size_of};
pub use linear::Linear;
pub use obs::{Order, Reader, block_obs};
pub use observe::{Probe, batches, bytes_per_sample, choose, floats, no_samples, observe, open_inputs};
pub use pairs::{Pair, Pairs};
pub use quantized::dequantized;
pub use segment::segment;
pub use solve::{Affine, NotFinite, Ridge};
pub use wasserstein::{max_sliced, max_sliced_relative};
