//! The passes, in folders named after what they remove.

pub mod channels;
pub mod cleanup;
pub mod fold;
pub mod fuse;
pub mod interface;
pub mod layers;
pub mod opset;
pub mod precision;
pub mod tokens;
pub mod training;
pub mod weights;
