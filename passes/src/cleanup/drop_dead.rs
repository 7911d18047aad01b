use crate::{Context, Pass, PassError, pass};
use pare_graph::Model;

pass! {
    /// Remove what no output needs: nodes, initializers, and values captured for nothing.
    ///
    /// Inputs of the graph stay even if nothing reads them: they are part of the interface.
    #[pass("drop-dead", Exact)]
    pub struct DropDead {}
}

impl Pass for DropDead {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.each_graph(model, |graph, cx| {
            let mut swept = graph.clone();
            let (nodes, constants) = swept.sweep();
            if nodes + constants > 0 && cx.permit() {
                *graph = swept;
                cx.count("nodes", nodes as u64);
                cx.count("initializers", constants as u64);
            }
            Ok(())
        })
    }
}
