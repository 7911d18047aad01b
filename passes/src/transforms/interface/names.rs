//! Options that are names of values.

use crate::framework::{PassError, glob};
use pare_graph::{Graph, ValueId, nearest};
use serde::{Deserialize, Deserializer, Serialize};

/// Names or patterns (`*` matches any text), written as a list or as a single word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Names(Vec<String>);

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "expected a name or a list of names")]
        enum Written {
            One(String),
            Many(Vec<String>),
        }
        Ok(match Written::deserialize(deserializer)? {
            Written::One(name) => Self(vec![name]),
            Written::Many(names) => Self(names),
        })
    }
}

impl<const N: usize> From<[&str; N]> for Names {
    fn from(names: [&str; N]) -> Self {
        Self(names.map(str::to_owned).to_vec())
    }
}

impl Names {
    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The values among `candidates` that each name matches, in the order of the names; `role` is what they
    /// are called in errors.
    pub(super) fn find(
        &self,
        graph: &Graph,
        candidates: &[ValueId],
        role: &str,
    ) -> Result<Vec<ValueId>, PassError> {
        let mut found = vec![];
        for pattern in &self.0 {
            let named = |&&v: &&ValueId| glob::matches(pattern, &graph.value(v).name);
            let before = found.len();
            found.extend(
                candidates.iter().filter(named).filter(|v| !found.contains(*v)).copied().collect::<Vec<_>>(),
            );
            if found.len() == before && !candidates.iter().any(|v| named(&v)) {
                let names = candidates.iter().map(|&v| graph.value(v).name.as_str());
                return Err(unknown(role, pattern, names));
            }
        }
        Ok(found)
    }
}

/// The error for a name that does not exist, with a similar one.
pub(super) fn unknown<'n>(role: &str, name: &str, known: impl Iterator<Item = &'n str>) -> PassError {
    let why = format!("there is no {role} `{name}`");
    match nearest(name, known) {
        Some(near) => PassError::refused_with(why, crate::framework::Hint::DidYouMean(near.into())),
        None => PassError::refused(why),
    }
}
