//! What holds of every pass, of every file, and of broken ones.

mod conformance;
mod hostile;
mod laws;
mod models;
mod sizes;
mod support;
