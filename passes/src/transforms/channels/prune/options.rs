//! The options of the pruning passes, declared once for all of them.

use super::{Multiple, PruneRepair, PruneScope};
use crate::{
    analysis::{evaluation::QualityLimits, groups::GroupKind},
    transforms::channels::importance::Importance,
};

/// Invokes a macro with its arguments, followed by the list of options that all pruning passes share.
macro_rules! with_prune_options {
    ($macro:ident! { $($args:tt)* }) => {
        $macro! { { $($args)* }
            /// Share of the model's multiply-accumulates to keep.
            pub macs: Option<f64> = None,
            /// Share of the model's parameters to keep.
            pub params: Option<f64> = None,
            /// Share of the units of each group to remove; with `scope=global`, units that save as many
            /// multiply-accumulates as that.
            pub ratio: Option<f64> = None,
            /// Share of the latency of one sample to keep, measured in the engine on this machine.
            pub latency: Option<f64> = None,
            /// Largest drift: mean KL divergence of class scores, squared error over variance of other
            /// outputs.
            pub max_drift: Option<f64> = None,
            /// Smallest share of samples whose predicted class is unchanged.
            pub min_agreement: Option<f64> = None,
            /// Largest loss of accuracy; needs labels.
            pub max_accuracy_drop: Option<f64> = None,
            /// Importance criterion. From weights: `l1`, `l2`, `bn-scale`, `fpgm`, `random`. From
            /// activations: `apoz`, `variance`, `entropy`, `wanda`, `obd`, `energy`, `obs`. From ablation:
            /// `skeleton`, `sensitivity`. Default: `obs` with samples, otherwise `l2`.
            pub criterion: Option<Importance> = None,
            /// Allocation over groups: `global` or `uniform`. Default: `global` with samples.
            pub scope: Option<PruneScope> = None,
            /// `none`, `mean`, `moments`, `merge`, `patch`, `readers` or `sequential`. Default: `sequential`
            /// with samples.
            pub repair: Option<PruneRepair> = None,
            /// Numbers of kept units are multiples of this. `auto`: of the block size of the engine's kernels,
            /// measured on this machine for each kind of operator (without an engine 16 channels of dense
            /// convolutions, 8 of others); smaller steps only where the target needs them, and no result that
            /// is slower than the original. 1 permits every number.
            pub multiple: Multiple = Multiple::Auto,
            /// Smallest number of units that a group keeps.
            pub min_kept: usize = 1,
            /// Only groups whose names match one of these patterns; `*` matches anything.
            pub only: Vec<String> = vec![],
            /// No group whose name matches one of these patterns.
            pub except: Vec<String> = vec![],
        }
    };
}

/// Declares a pruning pass: its documentation, its own options after the shared ones, the kinds of groups
/// that it prunes, and an example of a target. `with_prune_options` must be in scope.
macro_rules! prune_pass {
    ({ options } $($(#[doc = $fdoc:literal])+ pub $field:ident: $ty:ty = $default:expr,)*) => {
        /// The options of a pruning pass.
        #[derive(Clone, Debug)]
        pub struct PruneOptions {
            /// Kinds of groups to prune.
            pub kinds: &'static [GroupKind],
            $($(#[doc = $fdoc])+ pub $field: $ty,)*
        }
    };
    ({
        $(#[doc = $doc:literal])+ #[pass($name:literal, $effect:ident)] pub struct $Pass:ident { $($own:tt)* }
        kinds: |$pass:ident| $kinds:expr,
        example: $example:literal,
    } $($(#[doc = $fdoc:literal])+ pub $field:ident: $ty:ty = $default:expr,)*) => {
        crate::pass! {
            $(#[doc = $doc])+
            #[pass($name, $effect)]
            pub struct $Pass { $($(#[doc = $fdoc])+ pub $field: $ty = $default,)* $($own)* }
        }

        impl $Pass {
            fn options(&self) -> crate::transforms::channels::prune::PruneOptions {
                let $pass = self;
                crate::transforms::channels::prune::PruneOptions { kinds: $kinds, $($field: self.$field.clone(),)* }
            }
        }

        impl crate::framework::Pass for $Pass {
            fn validate(&self) -> Result<(), String> {
                self.options().validate()
            }

            fn run(
                &self,
                model: &mut pare_graph::Model,
                cx: &mut crate::framework::Context<'_>,
            ) -> Result<(), crate::framework::PassError> {
                self.options().prune(model, cx, concat!("such as `", $name, "{", $example, "}`"))
            }
        }
    };
    ($($declaration:tt)*) => { with_prune_options! { prune_pass! { $($declaration)* } } };
}

pub(in crate::transforms::channels) use {prune_pass, with_prune_options};

with_prune_options! { prune_pass! { options } }

impl PruneOptions {
    /// Checks that the options are consistent; the error is a sentence.
    pub fn validate(&self) -> Result<(), String> {
        let targets: Vec<_> =
            [("macs", self.macs), ("params", self.params), ("ratio", self.ratio), ("latency", self.latency)]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
        for (name, value) in &targets {
            if !(*value > 0.0 && *value < 1.0) {
                return Err(format!("`{name}` is a share between 0 and 1, not {value}"));
            }
        }
        self.limits().validate()?;
        if targets.len() > 1 {
            return Err("only one of `macs`, `params`, `ratio`, `latency` can be given".into());
        }
        Ok(())
    }

    /// Returns the limits on the change of the outputs.
    pub fn limits(&self) -> QualityLimits {
        QualityLimits {
            max_drift: self.max_drift,
            min_agreement: self.min_agreement,
            max_accuracy_drop: self.max_accuracy_drop,
        }
    }

    /// Returns the hint for a target that groups which are not pruned make unreachable.
    pub fn hint(&self) -> &'static str {
        let streams = self.kinds.contains(&GroupKind::Channels) && !self.kinds.contains(&GroupKind::Stream);
        if streams { "use a larger share, or `streams=true`" } else { "use a larger share" }
    }
}
