//! The `prune-hidden` pass.

use super::{
    importance::Importance,
    prune::{Multiple, PruneRepair, PruneScope, prune_pass, with_prune_options},
};
use crate::analysis::groups::GroupKind;

prune_pass! {
    /// Remove hidden units of feed-forward networks, and refit the remaining weights.
    ///
    /// `y = W₂·f(W₁·x + b₁) + b₂` loses rows of `W₁` and columns of `W₂`; a gated network loses the rows of
    /// both matrices whose products are multiplied. Selection, allocation over layers and repair are those of
    /// `prune-channels`: block-OBS, the drift of the outputs, and sequential least squares, on unlabelled
    /// samples.
    ///
    /// Declines where a unit is read by an operator without constant weights, or is not both produced and
    /// read by matrix products.
    #[pass("prune-hidden", Lossy)]
    pub struct PruneHidden {}
    kinds: |_pass| &[GroupKind::Hidden],
    example: "ratio=0.5",
}
