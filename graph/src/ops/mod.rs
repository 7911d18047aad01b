//! Operators: schemas and traits, typed views, shape inference, evaluation and cost.

mod cost;
pub mod eval;
mod infer;
mod schema;
mod view;

pub use cost::{Bindings, Cost, NodeCost, is_parameter};
pub use infer::InferError;
pub use schema::{
    Arity, AttributeKind, AttributeSchema, Formal, Schema, Trait, TypeSet, is_engine_domain, is_known_domain,
    newest_opset, operators, operators_with, schema, traits,
};
pub use view::*;
