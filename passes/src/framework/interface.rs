//! Requested changes of a model's inputs and outputs, from which a proof derives how to compare both models.

use serde::{Serialize, Serializer};
use std::fmt;

/// A requested change of the model's inputs and outputs.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum InterfaceChange {
    /// Values have new names: the old and the new name of each, changed at once.
    Renamed(Vec<(String, String)>),
    /// An axis of a fixed size may have any size now.
    Freed(FreedAxis),
    /// Any other: sizes were fixed, or inputs or outputs were added or removed, under the names that the
    /// values had before. One sentence.
    Other(String),
}

/// An axis of inputs and outputs that may have any size now.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FreedAxis {
    /// The symbol that the inputs declare.
    pub symbol: String,
    /// The size before.
    pub size: usize,
    /// The inputs, each with the axis.
    pub inputs: Vec<(String, usize)>,
    /// The outputs, each with the axis.
    pub outputs: Vec<(String, usize)>,
    /// The first node whose outputs depend on several positions of the axis. `None` if every position is
    /// computed by itself, as the samples of a batch are.
    pub related_by: Option<String>,
}

impl fmt::Display for InterfaceChange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Renamed(names) => {
                let names: Vec<_> = names.iter().map(|(old, new)| format!("`{old}` to `{new}`")).collect();
                write!(f, "renamed {}", names.join(", "))
            }
            Self::Freed(FreedAxis { symbol, size, inputs, .. }) => {
                let axes: Vec<_> =
                    inputs.iter().map(|(name, axis)| format!("axis {axis} of `{name}`")).collect();
                write!(f, "{} of size {size} may have any size `{symbol}`", axes.join(", "))
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl Serialize for InterfaceChange {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
