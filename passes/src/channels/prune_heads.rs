//! The pass for attention.

use super::{PruneChannels, Repair, Scope, groups::Kind, order::Criterion};
use crate::{Context, Pass, PassError, pass};
use pare_graph::Model;

pass! {
    /// Remove heads of attention, and let the others make up for them.
    ///
    /// A head is its rows of the query, key and value projections and its columns of the output projection; of grouped
    /// queries, a head of keys and values with all heads that query it. Sizes that count heads are rewritten. Which heads go,
    /// how many in each layer, and the repair are those of `prune-channels`, on unlabelled samples.
    ///
    /// Declines where heads are part of the interface, as in a cache of keys and values.
    #[pass("prune-heads", Lossy)]
    pub struct PruneHeads {
        /// Share of the heads to remove; with `scope=global` what the same multiply-accumulates buy.
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

impl PruneHeads {
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

impl Pass for PruneHeads {
    fn validate(&self) -> Result<(), String> {
        self.inner().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if self.ratio.is_none() && self.macs.is_none() && self.params.is_none() {
            return Err(PassError::refused_with("it needs a target", "such as `prune-heads{ratio=0.25}`"));
        }
        self.inner().prune(model, cx, &[Kind::Heads])
    }
}
