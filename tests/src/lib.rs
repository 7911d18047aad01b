//! Code that tests share: fixtures, and generators of models and of malformed files. Independent of
//! `pare-passes`, whose tests use it too.

pub mod fixtures;
pub mod fuzz;
pub mod random;
