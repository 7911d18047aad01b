//! The pass for feed-forward networks.

use super::{
    order::Criterion,
    prune::{Repair, Scope, prune_pass, prune_pass_with, with_options},
};
use crate::analysis::groups::GroupKind;

prune_pass! {
    /// Remove hidden units of feed-forward networks, and let the others make up for them.
    ///
    /// `y = W₂·f(W₁·x + b₁) + b₂` loses rows of `W₁` and columns of `W₂`; of a gated network, both products that meet in a
    /// unit. Which units go, how many in each layer, and the repair are those of `prune-channels`: block-OBS, the
    /// drift of the outputs, and sequential least squares, on unlabelled samples.
    ///
    /// Declines where a unit is read by what has no constant weights, and where no matrix makes and reads them.
    #[pass("prune-hidden", Lossy)]
    pub struct PruneHidden {}
    kinds: |_pass| &[GroupKind::Hidden],
    such_as: "ratio=0.5",
}
