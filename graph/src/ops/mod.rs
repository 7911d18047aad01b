//! What is known about operators: schemas, shape rules, cost.

mod infer;
mod schema;
mod view;

pub use infer::InferError;
pub use schema::{
    Arity, AttributeKind, AttributeSchema, Formal, Schema, TypeSet, is_known_domain, newest_opset, operators,
    schema,
};
pub use view::*;
