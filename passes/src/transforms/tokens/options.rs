//! The values of the options of `merge-tokens`.

use serde::{Deserialize, Serialize};

/// The method that selects the tokens to remove.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeMethod {
    /// Similar tokens are merged, some in every block (Token Merging, Bolya et al. 2023).
    Tome,
    /// Most tokens are merged in the last blocks, by repeated halving (FOLDER, Wang et al. 2025).
    Folder,
    /// Tokens are merged in three blocks, and pruned in samples whose significance scores vary (PPT, Wu et
    /// al. 2023).
    Ppt,
}

/// The features that tokens are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenMetric {
    /// The mean of the keys over the heads.
    Key,
    /// The residual stream.
    Feature,
}

/// One number for all blocks, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum TokenCounts {
    /// For all blocks.
    One(usize),
    /// For each block.
    Each(Vec<usize>),
}

/// The source of the number of tokens to merge in each block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MergeSchedule {
    /// The option `r`.
    Fixed,
    /// A search for the largest speedup on this machine within the limits.
    Auto,
}
