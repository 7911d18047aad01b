//! The criterion for replacing two linear layers by their composite.

use serde::{Deserialize, Serialize};
use std::fmt;

/// The criterion for composing two linear layers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum By {
    /// The multiply-accumulates do not increase, and the total work decreases.
    #[default]
    Macs,
    /// The composite is faster on this machine.
    Latency,
    /// Always compose: the fewest layers.
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
