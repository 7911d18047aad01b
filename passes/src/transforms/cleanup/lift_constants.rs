use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Model, Patch};

pass! {
    /// Turn `Constant` nodes into initializers.
    ///
    /// Declines in functions, which have no initializers, and for sparse constants.
    #[pass("lift-constants", Exact, "constant lifted", "constants lifted")]
    pub struct LiftConstants {}
}

impl Pass for LiftConstants {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["Constant"], |at| {
            pare_graph::expect(at.is("Constant") && !at.graph.is_function)?;
            let output = at.output()?;
            let mut patch = Patch::at(at);
            let constant = patch.constant(output.name(), output.constant()?.clone());
            patch.replace(output, constant);
            Ok(patch)
        })
    }
}
