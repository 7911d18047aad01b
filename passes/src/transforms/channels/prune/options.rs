//! What can be asked for: the options that all passes have which remove units of groups, declared once.

use super::{Repair, Scope};
use crate::{
    analysis::{evaluation::QualityLimits, groups::GroupKind},
    transforms::channels::order::Criterion,
};

/// Gives the list of options to another macro, behind what that one is told.
macro_rules! with_options {
    ($declare:ident! { $($told:tt)* }) => {
        $declare! { { $($told)* }
            /// Share of the multiply-accumulates of the model to keep.
            pub macs: Option<f64> = None,
            /// Share of the parameters of the model to keep.
            pub params: Option<f64> = None,
            /// Share of the units of each group to remove; with `scope=global` what the same multiply-accumulates buy.
            pub ratio: Option<f64> = None,
            /// Share of the time to keep that a run of one sample takes: measured in the engine, on this machine.
            pub latency: Option<f64> = None,
            /// The greatest drift: mean KL divergence of class scores, error over variance of other outputs.
            pub max_drift: Option<f64> = None,
            /// The least share of samples that keep their class.
            pub min_agreement: Option<f64> = None,
            /// The greatest loss of accuracy; needs labels.
            pub max_accuracy_drop: Option<f64> = None,
            /// What makes a unit matter. Of weights alone: `l1`, `l2`, `bn-scale`, `fpgm`, `random`. Of activations: `apoz`,
            /// `variance`, `entropy`, `wanda`, `obd`, `energy`, `obs`. Of what happens without it: `skeleton`, `sensitivity`.
            /// By default `obs` with samples, else `l2`.
            pub criterion: Option<Criterion> = None,
            /// How units are shared out over groups: `global` or `uniform`. By default `global` with samples.
            pub scope: Option<Scope> = None,
            /// `none`, `mean`, `moments`, `merge`, `patch` or `sequential`. By default `sequential` with samples.
            pub repair: Option<Repair> = None,
            /// Counts that are kept are multiples of this. With `latency` the step of the machine, if it is larger.
            pub multiple: usize = 1,
            /// Units that every group keeps.
            pub min_kept: usize = 1,
            /// Only groups whose names match one of these patterns, `*` for anything.
            pub only: Vec<String> = vec![],
            /// No group whose name matches one of these patterns.
            pub except: Vec<String> = vec![],
        }
    };
}

/// Declare a pass that removes units: its documentation, options of its own behind those of all, the kinds of groups that
/// it prunes, and what to ask of it.
macro_rules! prune_pass {
    ($($told:tt)*) => { with_options! { prune_pass_with! { $($told)* } } };
}

macro_rules! prune_pass_with {
    ({
        $(#[doc = $doc:literal])+ #[pass($name:literal, $effect:ident)] pub struct $Pass:ident { $($own:tt)* }
        kinds: |$pass:ident| $kinds:expr,
        such_as: $example:literal,
    } $($(#[doc = $fdoc:literal])+ pub $field:ident: $ty:ty = $default:expr,)*) => {
        crate::pass! {
            $(#[doc = $doc])+
            #[pass($name, $effect)]
            pub struct $Pass { $($(#[doc = $fdoc])+ pub $field: $ty = $default,)* $($own)* }
        }

        impl $Pass {
            fn ask(&self) -> $crate::transforms::channels::prune::Ask {
                let $pass = self;
                $crate::transforms::channels::prune::Ask { kinds: $kinds, $($field: self.$field.clone(),)* }
            }
        }

        impl crate::framework::Pass for $Pass {
            fn validate(&self) -> Result<(), String> {
                self.ask().validate()
            }

            fn run(
                &self,
                model: &mut pare_graph::Model,
                cx: &mut crate::framework::Context<'_>,
            ) -> Result<(), crate::framework::PassError> {
                self.ask().prune(model, cx, concat!("such as `", $name, "{", $example, "}`"))
            }
        }
    };
}

pub(in crate::transforms::channels) use {prune_pass, prune_pass_with, with_options};

macro_rules! declare_ask {
    ({} $($(#[doc = $fdoc:literal])+ pub $field:ident: $ty:ty = $default:expr,)*) => {
        /// What is asked of a pass that removes units.
        #[derive(Clone, Debug)]
        pub struct Ask {
            /// Kinds of groups to prune.
            pub kinds: &'static [GroupKind],
            $($(#[doc = $fdoc])+ pub $field: $ty,)*
        }
    };
}

with_options! { declare_ask! {} }

impl Ask {
    /// Whether the options make sense together.
    pub fn validate(&self) -> Result<(), String> {
        let targets = self.targets();
        for (name, value) in &targets {
            if !(*value > 0.0 && *value < 1.0) {
                return Err(format!("`{name}` is a share between 0 and 1, not {value}"));
            }
        }
        self.limits().validate()?;
        if targets.len() > 1 {
            return Err("only one of `macs`, `params`, `ratio`, `latency` can be asked for".into());
        }
        if self.multiple == 0 {
            return Err("`multiple` is at least 1".into());
        }
        Ok(())
    }

    /// The targets that are given, by name.
    fn targets(&self) -> Vec<(&'static str, f64)> {
        let all =
            [("macs", self.macs), ("params", self.params), ("ratio", self.ratio), ("latency", self.latency)];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// What the outputs may differ by.
    pub fn limits(&self) -> QualityLimits {
        QualityLimits {
            max_drift: self.max_drift,
            min_agreement: self.min_agreement,
            max_accuracy_drop: self.max_accuracy_drop,
        }
    }

    /// What to do where groups that are left whole stand in the way.
    pub fn hint(&self) -> &'static str {
        let streams = self.kinds.contains(&GroupKind::Channels) && !self.kinds.contains(&GroupKind::Stream);
        if streams { "ask for less, or allow `streams=true`" } else { "ask for less" }
    }
}
