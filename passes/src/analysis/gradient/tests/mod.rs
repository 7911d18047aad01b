//! Gradients against central differences.

mod models;
