//! Laws over every pass, command sessions, conformance and sizes.
