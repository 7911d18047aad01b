//! Analyses of a model: structure, activation statistics, held-out quality. No pass is defined here.

pub(crate) mod activation;
pub(crate) mod attention;
pub mod blocks;
pub mod calibration;
pub mod composition;
pub mod evaluation;
pub mod flow;
pub(crate) mod fusions;
pub mod gradient;
pub mod groups;
pub(crate) mod interval;
pub(crate) mod linear;
pub mod opset;
pub(crate) mod patterns;
pub mod prepare;
pub mod quality;
pub(crate) mod random;
pub(crate) mod repair;
pub(crate) mod samples;
pub(crate) mod subnormals;
pub(crate) mod timing;
pub(crate) mod timing_inputs;
pub(crate) mod weighted_layers;
