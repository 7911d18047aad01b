use crate::{Context, Pass, PassError, pass};
use pare_graph::Model;

pass! {
    /// Merge nodes that compute the same, and initializers that hold the same.
    #[pass("merge-twins", Exact)]
    pub struct MergeTwins {}
}

impl Pass for MergeTwins {
    fn run(&self, _model: &mut Model, _cx: &mut Context<'_>) -> Result<(), PassError> {
        Ok(())
    }
}
