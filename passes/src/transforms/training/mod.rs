//! Training of weights by gradient steps.

mod distill;
mod learn_slopes;

pub use distill::{Augmentation, Distill, DistillLoss, Optimizer, TrainedWeights};
pub use learn_slopes::LearnSlopes;
