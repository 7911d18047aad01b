//! The pass for attention.

use super::{
    order::Criterion,
    prune::{Repair, Scope, prune_pass, prune_pass_with, with_options},
};
use crate::analysis::groups::GroupKind;

prune_pass! {
    /// Remove heads of attention, and let the others make up for them.
    ///
    /// A head is its rows of the query, key and value projections and its columns of the output projection; of grouped
    /// queries, a head of keys and values with all heads that query it. Sizes that count heads are rewritten. Which heads go,
    /// how many in each layer, and the repair are those of `prune-channels`, on unlabelled samples.
    ///
    /// Declines where heads are part of the interface, as in a cache of keys and values.
    #[pass("prune-heads", Lossy)]
    pub struct PruneHeads {}
    kinds: |_pass| &[GroupKind::Heads],
    such_as: "ratio=0.25",
}
