use crate::{Context, Pass, PassError, pass};
use pare_graph::{At, Decline, Model, Patch, Wired};

pass! {
    /// Remove nodes that give back what they get, such as `Identity`.
    #[pass("drop-noops", Exact)]
    pub struct DropNoops {}
}

impl Pass for DropNoops {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Identity"], |at| {
            let mut patch = Patch::at(at);
            patch.replace(at.output()?, passed_through(at)?);
            Ok(patch)
        })
    }
}

/// The input that the node gives back unchanged; declines if it changes it.
fn passed_through(at: At<'_>) -> Result<Wired<'_>, Decline> {
    match at.op() {
        "Identity" if at.is("Identity") => at.input(0),
        _ => Err(Decline::Mismatch),
    }
}
