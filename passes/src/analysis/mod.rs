//! Analyses of a model: structure, activation statistics, held-out quality. No pass is defined here.

pub mod activation;
pub mod attention;
pub mod blocks;
pub mod calibration;
pub mod composition;
pub mod evaluation;
pub mod flow;
pub mod groups;
pub(crate) mod interval;
pub mod linear;
pub(crate) mod patterns;
pub mod prepare;
pub mod repair;
pub(crate) mod samples;
pub(crate) mod weighted_layers;
