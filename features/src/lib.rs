//! Nothing. Every member has this crate among its dev-dependencies, and with them what `Cargo.toml` turns on: so
//! `cargo test -p X` and `cargo test --workspace` ask for the same features, and neither rebuilds what the other built.
