use super::convert::{change_opset, validate};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::Model;

pass! {
    /// Lower the standard operator set to an older version, for engines that know no newer one.
    ///
    /// The inverse of `upgrade-opset`, where it is exact: constant inputs that were attributes become
    /// attributes again, attributes that did not exist are removed if they have their default. A model with
    /// this version or an older one is skipped.
    ///
    /// Declines, and changes nothing, if a node has no equivalent in the old version.
    #[pass("downgrade-opset", Rounding)]
    pub struct DowngradeOpset {
        /// The version, from 7 on.
        pub to: i64 = 17,
    }
}

impl Pass for DowngradeOpset {
    fn validate(&self) -> Result<(), String> {
        validate(self.to)
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        change_opset(model, cx, self.to, |version| version > self.to);
        Ok(())
    }
}
