//! What larger pieces of a graph are: the one place that knows what a residual block or an attention block looks like.
//! Nothing here changes a graph; passes over channels, layers and tokens ask.

pub mod activation;
mod attention;
mod flow;
pub mod residual;

pub use attention::{
    Attention, Form, Mask, MaskKind, NoAttention, NoResidual, Operand, Residual, Statics, attentions,
};
pub use flow::Flow;
