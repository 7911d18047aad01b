//! Laws over every pass, conformance and sizes: what the tests of this crate share.

pub mod fuzz;
pub mod random;
