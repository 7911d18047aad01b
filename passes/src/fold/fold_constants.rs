use crate::{Context, Pass, PassError, pass};
use pare_graph::Model;

pass! {
    /// Compute what depends on constants only.
    #[pass("fold-constants", Exact)]
    pub struct FoldConstants {
        /// Let the file grow by no more than this share of its size.
        pub max_growth: f64 = 0.05,
    }
}

impl Pass for FoldConstants {
    fn run(&self, _model: &mut Model, _cx: &mut Context<'_>) -> Result<(), PassError> {
        Ok(())
    }
}
