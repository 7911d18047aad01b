//! What is known about operators: schemas, shape rules, cost.

mod infer;

pub use infer::InferError;
