//! Dropping blocks of small graphs and fixtures.
