use super::convert::{change_opset, validate};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::Model;

pass! {
    /// Raise the standard operator set to a newer version.
    ///
    /// Nodes whose operator changed since are rewritten: attributes that became inputs, defaults that became
    /// others, operators that were replaced, for example `Clip<min, max>(x) = Clip(x, min, max)` and
    /// `Upsample(x, s) = Resize<asymmetric, floor>(x, s)`. Bodies of `If`, `Loop` and `Scan` and functions
    /// are included. Other domains keep their versions. A model with this version or a newer one is skipped.
    ///
    /// Declines, and changes nothing, if a node has no equivalent in the new version.
    #[pass("upgrade-opset", Rounding)]
    pub struct UpgradeOpset {
        /// The version, from 7 to the newest that is known.
        pub to: i64 = 21,
    }
}

impl Pass for UpgradeOpset {
    fn validate(&self) -> Result<(), String> {
        validate(self.to)
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        change_opset(model, cx, self.to, |version| version < self.to);
        Ok(())
    }
}
