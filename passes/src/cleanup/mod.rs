//! What computes nothing, or computes twice.

mod calls;
mod drop_dead;
mod drop_neutral;
mod drop_noops;
mod drop_repeats;
mod fold_absorbing;
mod fuse_sizes;
mod inline_branches;
mod inline_functions;
mod layout;
mod lift_constants;
mod lower_einsum;
mod merge_casts;
mod merge_clips;
mod merge_concats;
mod merge_pads;
mod merge_reductions;
mod merge_reshapes;
mod merge_slices;
mod merge_transposes;
mod merge_twins;
mod merge_views;
mod resolve_shapes;
mod slice_views;

pub use drop_dead::DropDead;
pub use drop_neutral::DropNeutral;
pub use drop_noops::DropNoops;
pub use drop_repeats::DropRepeats;
pub use fold_absorbing::FoldAbsorbing;
pub use fuse_sizes::FuseSizes;
pub use inline_branches::InlineBranches;
pub use inline_functions::InlineFunctions;
pub use lift_constants::LiftConstants;
pub use lower_einsum::LowerEinsum;
pub use merge_casts::MergeCasts;
pub use merge_clips::MergeClips;
pub use merge_concats::MergeConcats;
pub use merge_pads::MergePads;
pub use merge_reductions::MergeReductions;
pub use merge_reshapes::MergeReshapes;
pub use merge_slices::MergeSlices;
pub use merge_transposes::MergeTransposes;
pub use merge_twins::MergeTwins;
pub use merge_views::MergeViews;
pub use resolve_shapes::ResolveShapes;
pub use slice_views::SliceViews;

use pare_graph::{At, Decline, Patch, Tensor, Wired, expect};

/// Whether both shapes are known and equal for all values of the symbols.
pub(crate) fn same_shape(a: Wired<'_>, b: Wired<'_>) -> bool {
    a.shape().is_some() && a.shape() == b.shape()
}

/// The value that every element of a constant has; `None` if they differ, if there are none, or for strings.
pub(crate) fn uniform(tensor: &Tensor) -> Option<f64> {
    let width = tensor.dtype().bits() as usize / 8;
    let first = tensor.bytes().get(..width).filter(|_| width > 0)?;
    if !tensor.bytes().chunks(width).all(|c| c == first) {
        return None;
    }
    Tensor::new(tensor.dtype(), &[], first.to_vec()).ok()?.single()
}

/// Whether broadcasting `x` with the constant `c` leaves the shape of `x`, given the shape of the result.
pub(crate) fn spans(x: Wired<'_>, c: &Tensor, result: Wired<'_>) -> bool {
    let ones = c.shape().iter().all(|&d| d == 1);
    let short = c.rank() == 0 || x.shape().is_some_and(|s| s.len() >= c.rank());
    ones && short || same_shape(x, result)
}

/// The patch that lets `by` take the place of the node's only used output.
pub(crate) fn bypass(at: At<'_>, by: Wired<'_>) -> Result<Patch, Decline> {
    let mut patch = Patch::at(at);
    patch.replace(at.output()?, by);
    Ok(patch)
}

/// A standard operator whose attributes are all known.
pub(crate) fn is_plain(at: At<'_>) -> Result<(), Decline> {
    expect(at.node().domain().is_empty() && !at.has_references())
}
