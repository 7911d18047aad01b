//! Training of weights by gradient steps.

mod distill;

pub use distill::{Augmentation, Distill, DistillLoss, Optimizer};
