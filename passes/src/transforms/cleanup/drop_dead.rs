use super::calls::drop_uncalled;
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Graph, Model, ValueId};

pass! {
    /// Remove nodes, initializers, captured values and functions that no output depends on.
    ///
    /// Unused graph inputs are kept: they are part of the interface.
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

/// Returns true if the graph has a dead node or value.
fn has_dead(graph: &Graph) -> bool {
    let unused = |id: ValueId| {
        let value = graph.value(id);
        !value.is_input() && !value.is_output() && graph.use_count(id) == 0
    };
    let producer_is_dead = |id: ValueId| match graph.producer(id) {
        // A node is dead if all its outputs are unused.
        Some((node, _)) => graph.outputs_of(node).into_iter().flatten().all(unused),
        None => true,
    };
    graph.values().any(|id| unused(id) && producer_is_dead(id))
        || graph.nodes().iter().any(|&id| graph.outputs_of(id).iter().flatten().next().is_none())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, model, no_match, run_pass};

    #[test]
    fn removes_dead_nodes_and_initializers() {
        check(
            DropDead::default(),
            "g (float[2] x, float[2] unused) => (float[2] y) <float[2] c = {1,2}, float[2] d = {3,4}> {
                a = Neg(x) b = Add(a, c) y = Exp(a) }",
            "g (float[2] x, float[2] unused) => (float[2] y) { a = Neg(x) y = Exp(a) }",
        );
    }

    #[test]
    fn keeps_node_with_one_used_output() {
        no_match(DropDead::default(), "g (float[4] x) => (float[2] y) { y, z = Split<num_outputs = 2>(x) }");
    }

    #[test]
    fn removes_uncalled_functions() {
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
