//! The option `multiple`.

use serde::{Deserialize, Serialize};

/// The step of the numbers of kept units.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "toml::Value", try_from = "toml::Value")]
pub enum Multiple {
    /// The step of the engine's kernels on this machine.
    Auto,
    /// This number of units.
    Of(usize),
}

impl From<Multiple> for toml::Value {
    fn from(multiple: Multiple) -> Self {
        match multiple {
            Multiple::Auto => "auto".into(),
            Multiple::Of(units) => Self::Integer(i64::try_from(units).unwrap_or(i64::MAX)),
        }
    }
}

impl TryFrom<toml::Value> for Multiple {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        let number = value.as_integer().and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
        match number {
            Some(units) => Ok(Self::Of(units)),
            None if value.as_str() == Some("auto") => Ok(Self::Auto),
            None => Err(format!("`multiple` is `auto` or a number of at least 1, not {value}")),
        }
    }
}
