//! Laws over every pass, conformance and sizes: what the tests of this crate share.

pub mod random;
