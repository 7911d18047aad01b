//! What holds of every pass, of every file, and of broken ones.

mod laws;
mod support;
