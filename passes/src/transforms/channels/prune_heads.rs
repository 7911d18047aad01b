//! The `prune-heads` pass.

use super::{
    importance::Importance,
    prune::{Multiple, PruneRepair, PruneScope, prune_pass, with_prune_options},
};
use crate::analysis::groups::GroupKind;

prune_pass! {
    /// Remove attention heads, and refit the remaining weights.
    ///
    /// A head consists of its rows of the query, key and value projections and its columns of the output
    /// projection; in grouped-query attention, of a key/value head and all heads that query it. Constants
    /// that hold the number of heads are rewritten. Selection, allocation over layers and repair are those of
    /// `prune-channels`, on unlabelled samples.
    ///
    /// Declines where the heads are part of the interface, as in a key/value cache.
    #[pass("prune-heads", Lossy)]
    pub struct PruneHeads {}
    kinds: |_pass| &[GroupKind::Heads],
    example: "ratio=0.25",
}
