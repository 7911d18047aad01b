use crate::{
    analysis::subnormals::{flush_subnormals, has_subnormals},
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Graph, Model, NodeId, Patch, Tensor, ValueId};

pass! {
    /// Set subnormal weights of linear operators to zero.
    ///
    /// `|w| < 2⁻¹²⁶` in single precision (`2⁻¹⁰²²` in double) changes a sum `Σ w·x` by less than its rounding, yet
    /// processors take up to a hundred times as long to multiply it. Weight decay and training with few examples
    /// leave such weights in dead channels.
    ///
    /// Declines for weights that other operators read, and where the largest weight is tiny as well, since a later
    /// scale may undo it.
    #[pass("flush-subnormals", Rounding)]
    pub struct FlushSubnormals {}
}

/// The operators whose constants only take part in sums of products.
const LINEAR: [&str; 7] = ["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"];

impl Pass for FlushSubnormals {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.each_graph(model, |graph, cx| {
            for id in graph.initializers() {
                let Some((flushed, count)) = flushed(graph, id) else { continue };
                let Some(&(user, _)) = graph.users(id).first() else { continue };
                let mut patch = Patch::anchored(user);
                patch.set_data(id, flushed);
                if cx.apply(graph, patch).is_some() {
                    cx.count(Counter::new("subnormal weight flushed", "subnormal weights flushed"), count);
                }
            }
            Ok(())
        })
    }
}

/// Returns the tensor of an initializer with zeros for subnormal numbers, and their number.
fn flushed(graph: &Graph, id: ValueId) -> Option<(Tensor, u64)> {
    let value = graph.value(id);
    let tensor = value.tensor().filter(|_| !value.is_input() && !value.is_output())?;
    let is_linear = |user: NodeId| {
        let node = graph.node(user);
        node.domain().is_empty() && LINEAR.contains(&&*node.op)
    };
    let users = graph.users(id);
    // Bodies may read it as well.
    if users.len() != graph.use_count(id)
        || !users.iter().all(|&(user, _)| is_linear(user))
        || !has_subnormals(tensor)
    {
        return None;
    }
    let mut values = tensor.to_f64()?;
    let count = flush_subnormals(&mut values, tensor.dtype());
    let flushed = Tensor::from_f64(tensor.dtype(), tensor.shape(), &values).ok()?;
    (count > 0).then_some((flushed, count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn flushes_weights_and_biases() {
        check(
            FlushSubnormals::default(),
            "g (float[N,2,3,3] x) => (float[N,2,3,3] y)
             <float[2,2,1,1] w = {1, 1e-40, -2e-45, 1.2e-38}, float[2] b = {-3e-39, 1}> { y = Conv(x, w, b) }",
            "g (float[N,2,3,3] x) => (float[N,2,3,3] y)
             <float[2,2,1,1] w = {1, 0, 0, 1.2e-38}, float[2] b = {0, 1}> { y = Conv(x, w, b) }",
        );
    }

    #[test]
    fn keeps_what_a_later_scale_may_undo() {
        no_match(
            FlushSubnormals::default(),
            "g (float[N,1] x) => (float[N,2] y) <float[1,2] w = {1e-39, 3e-39}, float s = {1e38}> {
                h = MatMul(x, w) y = Mul(h, s) }",
        );
    }

    #[test]
    fn keeps_what_others_read() {
        no_match(
            FlushSubnormals::default(),
            "g (float[N,1] x) => (float[N,2] y, float[1,2] z) <float[1,2] w = {1, 3e-39}> {
                y = MatMul(x, w) z = Reciprocal(w) }",
        );
        no_match(
            FlushSubnormals::default(),
            "g (float[N,2] x) => (float[N,2] y) <float[2] e = {1, 3e-39}> { y = Add(x, e) }",
        );
    }
}
