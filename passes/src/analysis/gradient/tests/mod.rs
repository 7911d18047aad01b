//! Gradients against central differences.

mod cases;
mod lowered;
mod models;
mod rules;
mod structure;
