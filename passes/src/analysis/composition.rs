//! The decision whether two linear layers are replaced by their composite.

use serde::{Deserialize, Serialize};
use std::fmt;

/// What decides whether composing pays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// Multiply-accumulates never rise, and all work together falls.
    #[default]
    Macs,
    /// Both forms are run on this machine.
    Latency,
    /// As few layers as possible.
    Always,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Macs => "macs",
            Self::Latency => "latency",
            Self::Always => "always",
        })
    }
}
