//! The pass for feed-forward networks.

use super::{PruneChannels, Repair, Scope, groups::Kind, order::Criterion};
use crate::{Context, Pass, PassError, pass};
use pare_graph::Model;

pass! {
    /// Remove hidden units of feed-forward networks, and let the others make up for them.
    ///
    /// `y = W₂·f(W₁·x + b₁) + b₂` loses rows of `W₁` and columns of `W₂`; of a gated network, both products that meet in a
    /// unit. Which units go, how many in each layer, and the repair are those of `prune-channels`: block-OBS, the
    /// drift of the outputs, and sequential least squares, on unlabelled samples.
    ///
    /// Declines where a unit is read by what has no constant weights, and where no matrix makes and reads them.
    #[pass("prune-hidden", Lossy)]
    pub struct PruneHidden {
        /// Share of the hidden units to remove; with `scope=global` what the same multiply-accumulates buy.
        pub ratio: Option<f64> = None,
        /// Share of the multiply-accumulates of the model to keep.
        pub macs: Option<f64> = None,
        /// Share of the parameters of the model to keep.
        pub params: Option<f64> = None,
        /// What makes one matter, as for `prune-channels`.
        pub criterion: Option<Criterion> = None,
        /// How they are shared out over layers: `global` or `uniform`. By default `global` with samples.
        pub scope: Option<Scope> = None,
        /// `none`, `mean`, `merge`, `patch` or `sequential`. By default `sequential` with samples.
        pub repair: Option<Repair> = None,
        /// Counts that are kept are multiples of this.
        pub multiple: usize = 1,
        /// How many every layer keeps.
        pub min_kept: usize = 1,
        /// Only groups whose names match one of these patterns, `*` for anything.
        pub only: Vec<String> = vec![],
        /// No group whose name matches one of these patterns.
        pub except: Vec<String> = vec![],
    }
}

impl PruneHidden {
    /// The pass that does the work.
    fn inner(&self) -> PruneChannels {
        PruneChannels {
            ratio: self.ratio,
            macs: self.macs,
            params: self.params,
            criterion: self.criterion,
            scope: self.scope,
            repair: self.repair,
            multiple: self.multiple,
            min_kept: self.min_kept,
            only: self.only.clone(),
            except: self.except.clone(),
            ..PruneChannels::default()
        }
    }
}

impl Pass for PruneHidden {
    fn validate(&self) -> Result<(), String> {
        self.inner().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if self.ratio.is_none() && self.macs.is_none() && self.params.is_none() {
            return Err(PassError::refused_with("it needs a target", "such as `prune-hidden{ratio=0.25}`"));
        }
        self.inner().prune(model, cx, &[Kind::Hidden])
    }
}
