use super::calls::drop_uncalled;
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Graph, Model, ValueId};

pass! {
    /// Remove what no output needs: nodes, initializers, values captured for nothing, functions nobody calls.
    ///
    /// Inputs of the graph stay even if nothing reads them: they are part of the interface.
    #[pass("drop-dead", Exact)]
    pub struct DropDead {}
}

impl Pass for DropDead {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.each_graph(model, |graph, cx| {
            if has_dead(graph) && cx.permit() {
                let (nodes, constants) = graph.sweep();
                cx.count(Counter::new("dead node dropped", "dead nodes dropped"), nodes as u64);
                cx.count(
                    Counter::new("unused initializer dropped", "unused initializers dropped"),
                    constants as u64,
                );
            }
            Ok(())
        })?;
        drop_uncalled(model, cx);
        Ok(())
    }
}

/// Whether anything would be swept away.
fn has_dead(graph: &Graph) -> bool {
    let unused = |id: ValueId| {
        let value = graph.value(id);
        !value.is_input() && !value.is_output() && graph.use_count(id) == 0
    };
    let idle = |id: ValueId| match graph.producer(id) {
        // A node goes when all that it makes is unused.
        Some((node, _)) => graph.outputs_of(node).into_iter().flatten().all(unused),
        None => true,
    };
    graph.values().any(|id| unused(id) && idle(id))
        || graph.nodes().iter().any(|&id| graph.outputs_of(id).iter().flatten().next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, declines, model, run_pass};

    #[test]
    fn what_no_output_needs_goes() {
        check(
            DropDead::default(),
            "g (float[2] x, float[2] unused) => (float[2] y) <float[2] c = {1,2}, float[2] d = {3,4}> {
                a = Neg(x) b = Add(a, c) y = Exp(a) }",
            "g (float[2] x, float[2] unused) => (float[2] y) { a = Neg(x) y = Exp(a) }",
        );
    }

    #[test]
    fn a_node_that_makes_something_needed_stays() {
        declines(DropDead::default(), "g (float[4] x) => (float[2] y) { y, z = Split<num_outputs = 2>(x) }");
    }

    #[test]
    fn functions_nobody_calls_go() {
        let mut model = model(
            "<ir_version: 8, opset_import: [\"\" : 18, \"local\" : 1]>
             g (float[2] x) => (float[2] y) { y = local.f(x) }
             <domain: \"local\", opset_import: [\"\" : 18, \"local\" : 1]> f (u) => (w) { w = local.h(u) }
             <domain: \"local\", opset_import: [\"\" : 18]> h (u) => (w) { w = Neg(u) }
             <domain: \"local\", opset_import: [\"\" : 18]> k (u) => (w) { w = Exp(u) }",
        );
        run_pass(DropDead::default(), &mut model);
        assert_eq!(model.functions.iter().map(|f| f.name.as_str()).collect::<Vec<_>>(), ["f", "h"]);
    }
}
