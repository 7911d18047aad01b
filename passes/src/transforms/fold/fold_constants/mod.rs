mod plan;
mod region;

use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Graph, Model, NodeId, Patch, ValueId};
use plan::FoldPlan;
use region::{Budget, Region, unshared_captures};
use std::collections::HashSet;

pass! {
    /// Replace nodes whose inputs are constants by their results.
    ///
    /// Also nodes whose results follow from known shapes alone. Regions of constant nodes are evaluated at
    /// once, and only values used outside of them are stored. Data movement, integers and single float
    /// operations are evaluated here, the rest by the engine with its optimizations off, so each operator
    /// yields its result in the model.
    ///
    /// Declines if the file would grow by more than `max_growth` (`Expand`, `Range`, … stay operators), if an
    /// engine is needed and missing, and for non-deterministic operators. Constants of up to 256 bytes are
    /// always folded. `QuantizeLinear` and `DequantizeLinear` are kept, since they define a quantized model.
    /// Branches with a known condition are inlined by `inline-branches`.
    #[pass("fold-constants", Exact)]
    pub struct FoldConstants {
        /// The largest growth of the file over all rounds, as a share of its size.
        pub max_growth: f64 = 0.05,
    }
}

/// Constants of up to this many bytes are always folded.
const SMALL: u64 = 256;

/// The approximate size of a node in the file, without constants.
const NODE: u64 = 64;

/// The growth of the file over the rounds of a pipeline, in bytes.
#[derive(Clone, Copy, Debug, Default)]
struct Growth {
    /// Size of the model before the first round.
    start: Option<u64>,
    /// Bytes added since; negative if the model shrank.
    added: i64,
}

impl Pass for FoldConstants {
    fn validate(&self) -> Result<(), String> {
        if self.max_growth.is_finite() && self.max_growth >= 0.0 {
            return Ok(());
        }
        Err(format!("`max_growth` is a share of the file size, not {}", self.max_growth))
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let functions = model.functions.iter().map(|f| &f.body);
        let size = std::iter::once(&model.graph).chain(functions).map(size_of).sum();
        let start = *cx.state::<Growth>().start.get_or_insert(size);
        let (ir_version, before) = (model.ir_version, cx.report.patches);
        let mut unshared = HashSet::new();
        unshared_captures(&model.graph, &mut unshared);
        cx.each_graph(model, |graph, cx| {
            if !cx.stopped() {
                self.fold(graph, &unshared, ir_version, start, cx);
            }
            // Folding in bodies can leave captured values of the enclosing graphs unused.
            if cx.report.patches > before {
                graph.sweep();
            }
            Ok(())
        })
    }
}

impl FoldConstants {
    fn fold(
        &self,
        graph: &mut Graph,
        unshared: &HashSet<String>,
        ir_version: Option<i64>,
        start: u64,
        cx: &mut Context<'_>,
    ) {
        let room = (start as f64 * self.max_growth) as i64 - cx.state::<Growth>().added;
        // Intermediate results stay in memory until the plan selects those that are stored.
        let memory = cx.tools.memory.saturating_add(start.saturating_mul(2));
        let mut region = Region::of(graph, unshared, cx, Budget { room, memory });
        let mut plan = FoldPlan::new(graph, &region, room);
        while !region.compute_large(graph, &plan, cx) {
            plan = FoldPlan::new(graph, &region, room);
        }
        for &(value, bytes) in &plan.too_large {
            cx.decline(would_add(graph, value, bytes));
        }
        let unmeasured = region.unmeasured(graph, &plan);
        region.run_engine(graph, ir_version, &mut plan, cx);

        let mut remaining = room - plan.growth;
        cx.state::<Growth>().added += plan.growth;
        for (node, values) in plan.folds {
            // An earlier fold may have removed its last user.
            if !graph.has_node(node) {
                continue;
            }
            let sizes =
                values.iter().filter(|v| unmeasured.contains(v)).filter_map(|&v| region.size(graph, v));
            let more: u64 = sizes.sum();
            if more > SMALL && more as i64 > remaining {
                cx.decline(would_add(graph, values[0], more));
                continue;
            }
            let mut patch = Patch::anchored(node);
            for value in values {
                let Some(tensor) = region.tensors.get(&value) else { continue };
                let constant = patch.constant(&graph.value(value).name, tensor.clone());
                patch.replace(graph.value_ref(value), constant);
            }
            if cx.apply(graph, patch).is_some() {
                remaining -= more as i64;
                cx.state::<Growth>().added += more as i64;
                cx.count(Counter::new("node computed", "nodes computed"), 1);
            }
        }
    }
}

/// The approximate size of a graph in the file.
fn size_of(graph: &Graph) -> u64 {
    let stored = |&v: &ValueId| graph.value(v).tensor().map_or(0, |t| t.size_in_bytes() as u64);
    let node = |&id: &NodeId| {
        NODE + plan::attribute_bytes(graph, id) + graph.node(id).subgraphs().map(size_of).sum::<u64>()
    };
    graph.initializers().iter().map(stored).sum::<u64>() + graph.nodes().iter().map(node).sum::<u64>()
}

fn would_add(graph: &Graph, value: ValueId, bytes: u64) -> String {
    format!("`{}` would add {}", graph.value(value).name, format_bytes(bytes))
}

/// Formats a number of bytes with a unit.
fn format_bytes(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    let fitting = units.into_iter().find(|&(unit, _)| bytes as f64 >= unit);
    fitting.map_or_else(|| format!("{bytes} B"), |(unit, name)| format!("{:.1} {name}", bytes as f64 / unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{
        Tools,
        testing::{check, declines, model, run_pass, run_pass_with, same, tools},
    };
    use pare_graph::text;

    #[test]
    fn folds_constant_arithmetic() {
        check(
            FoldConstants::default(),
            "main (float[2] x) => (float[2] y) <float[2] a = {1, 2}, float[1] b = {0.5}> {
                c = Mul(a, b) d = Add(c, b) y = Add(x, d) }",
            "main (float[2] x) => (float[2] y) <float[2] d = {1, 1.5}> { y = Add(x, d) }",
        );
    }

    #[test]
    fn evaluates_compound_operators_in_the_engine() {
        let before = "main (float[2] x) => (float[2] y) <float[2] a = {1, 2}> {
            b = Exp(a) c = Softmax(b) d = Add(c, c) y = Add(x, d) }";
        let mut changed = model(before);
        run_pass_with(FoldConstants::default(), &mut changed, tools());
        assert_eq!(changed.graph.node_count(), 1);
        same(&model(before), &changed, crate::framework::Effect::Exact);
        let why = declines(FoldConstants::default(), before);
        assert_eq!(why, ["Exp producing `b` needs an engine"]);
    }

    #[test]
    fn folds_known_shapes() {
        check(
            FoldConstants::default(),
            "main (float[N,3,4] x) => (float[M,12] y) <int64[1] one = {1}, int64[1] two = {2}, int64[1] rest = {-1}> {
                s = Shape(x) a = Gather(s, one) b = Gather(s, two) n = Mul(a, b) t = Concat<axis = 0>(rest, n)
                y = Reshape(x, t) }",
            "main (float[N,3,4] x) => (float[M,12] y) <int64[2] t = {-1, 12}> { y = Reshape(x, t) }",
        );
    }

    #[test]
    fn keeps_operators_that_would_grow_the_file() {
        let expand = "main (float[100] x) => (float[100] y) <float c = {1}, int64[1] n = {100}> {
            e = Expand(c, n) y = Add(x, e) }";
        assert_eq!(declines(FoldConstants::default(), expand), ["`e` would add 324 B"]);
        let mut grown = model(expand);
        run_pass(FoldConstants { max_growth: 4.0 }, &mut grown);
        assert_eq!(grown.graph.node_count(), 1);
        // Folded if the end of the chain is smaller: one element of many.
        check(
            FoldConstants::default(),
            "main (float[1] x) => (float[1] y) <float c = {1}, int64[1] n = {100}, int64[1] i = {7}> {
                e = Expand(c, n) p = Gather(e, i) y = Add(x, p) }",
            "main (float[1] x) => (float[1] y) <float[1] p = {1}> { y = Add(x, p) }",
        );
    }

    #[test]
    fn computes_large_results_only_if_needed() {
        // 4 MB that would not be stored are not computed.
        let long = "int64[1] n = {1000000}, float c = {1}";
        let unfolded = format!(
            "main (float[1000000] x) => (float[1000000] y) <{long}> {{
            e = Expand(c, n) f = Neg(e) y = Add(x, f) }}"
        );
        let (mut changed, mut cx) = (model(&unfolded), crate::framework::testing::context(Tools::default()));
        changed.infer().unwrap();
        FoldConstants::default().run(&mut changed, &mut cx).unwrap();
        assert_eq!(changed.graph.node_count(), 3);
        let (unshared, graph) = (HashSet::new(), &changed.graph);
        let region = Region::of(graph, &unshared, &mut cx, Budget { room: 0, memory: 1 << 30 });
        assert_eq!((region.nodes.len(), region.pending.len(), region.tensors.len()), (2, 2, 0));
        // They are computed if the end of the chain is small.
        check(
            FoldConstants::default(),
            &format!(
                "main (float[1] x) => (float[1] y) <{long}, int64[1] i = {{7}}> {{
                e = Expand(c, n) f = Neg(e) p = Gather(f, i) y = Add(x, p) }}"
            ),
            "main (float[1] x) => (float[1] y) <float[1] p = {-1}> { y = Add(x, p) }",
        );
        // Without an engine `Exp` is not folded, however many bytes that would save.
        let weights = vec!["1"; 1 << 18].join(",");
        let engine = format!(
            "main (float[262144] x) => (float[262144] y) <float[262144] w = {{{weights}}}> {{
            e = Exp(w) f = Neg(e) y = Add(x, f) }}"
        );
        assert_eq!(declines(FoldConstants::default(), &engine), ["Exp producing `e` needs an engine"]);
    }

    #[test]
    fn counts_growth_over_rounds() {
        let mut pipeline = crate::framework::Pipeline::default();
        (0..3).for_each(|_| pipeline.push(FoldConstants { max_growth: 0.2 }));
        // 3,000 bytes and 8 nodes may grow by 702. Each of three constants adds 400 and saves a node of 64
        // and a scalar of 4.
        let weight = vec!["1"; 750].join(",");
        let mut changed = model(&format!(
            "main (float[100] x, float[750] v) => (float[100] y, float[750] z)
             <float[750] w = {{{weight}}}, float a = {{1}}, float b = {{2}}, float c = {{3}}, int64[1] n = {{100}}> {{
                z = Add(v, w) d = Expand(a, n) e = Expand(b, n) f = Expand(c, n)
                g = Add(x, d) h = Add(g, e) i = Add(h, f) y = Relu(i) }}"
        ));
        let before = size_of(&changed.graph);
        assert_eq!(before, 3000 + 12 + 8 + 8 * NODE);
        let report =
            crate::framework::run(&pipeline, &mut changed, crate::framework::RunOptions::default(), &mut ())
                .unwrap();
        assert_eq!(report.steps[0].count("nodes computed"), 2);
        assert_eq!(size_of(&changed.graph), before + 2 * (400 - NODE - 4));
        assert_eq!(report.steps[0].declined.keys().collect::<Vec<_>>(), ["`f` would add 324 B"]);
    }

    #[test]
    fn folds_slices_that_replace_their_weight() {
        let weights = (0..256).map(|i| i.to_string()).collect::<Vec<_>>().join(", ");
        let halves = |shared: &str| {
            format!(
                "main (float[128] x) => (float[128] y{shared}) <float[256] w = {{{weights}}}, int64[1] o = {{0}},
                    int64[1] h = {{128}}, int64[1] e = {{256}}> {{
                    a = Slice(w, o, h) b = Slice(w, h, e) s = Add(x, a) y = Mul(s, b) {} }}",
                if shared.is_empty() { "" } else { "z = Neg(x) v = Concat<axis = 0>(w, x)" }
            )
        };
        let mut changed = model(&halves(""));
        run_pass(FoldConstants::default(), &mut changed);
        assert_eq!(changed.graph.node_count(), 2);
        // If the weight has another use, both halves are additional.
        let why = declines(FoldConstants::default(), &halves(", float[384] v"));
        assert_eq!(why, ["`a` would add 440 B", "`b` would add 440 B"]);
    }

    /// With `t` folded nothing reads `n`, which is folded too.
    #[test]
    fn folds_values_that_lose_their_users() {
        check(
            FoldConstants::default(),
            "main (float[2,3] x) => (float[2,3] y) <int64 zero = {0}, int64[1] front = {0}> {
                s = Shape(x) n = Gather(s, zero) u = Unsqueeze(n, front) d = Identity(u)
                t = Concat<axis = 0>(u, u) e = Expand(x, s) y = Relu(x) }",
            "main (float[2,3] x) => (float[2,3] y) { y = Relu(x) }",
        );
    }

    #[test]
    fn keeps_quantized_random_and_overridable_values() {
        let none: [&str; 0] = [];
        let quantized =
            "main (float[2] x) => (float[2] y) <int8[2] q = {1, 2}, float s = {0.5}, int8 z = {0}> {
            w = DequantizeLinear(q, s, z) y = Add(x, w) }";
        assert_eq!(declines(FoldConstants::default(), quantized), none);
        let random = "main (float[2] x) => (float[2] y) { r = RandomNormal<shape = [2]>() y = Add(x, r) }";
        assert_eq!(declines(FoldConstants::default(), random), none);
        let overridable =
            "main (float[2] x, float[2] w = {1, 2}) => (float[2] y) { v = Neg(w) y = Add(x, v) }";
        assert_eq!(declines(FoldConstants::default(), overridable), none);
    }

    #[test]
    fn folds_captured_constants_and_graph_outputs() {
        let before = "main (bool k, float[2] x) => (float[2] y, float[2] z) <float[2] c = {1, 2}> {
            y = If(k) <then_branch = a () => (float[2] u) { u = Neg(c) },
                       else_branch = b () => (float[2] v) { v = Add(x, c) }>
            z = Add(c, c) }";
        let mut changed = model(before);
        run_pass_with(FoldConstants::default(), &mut changed, tools());
        let printed = text::print_graph(&changed.graph);
        assert!(
            printed.contains("float[2] u = {-1,-2}") && printed.contains("float[2] z = {2,4}"),
            "{printed}"
        );
        same(&model(before), &changed, crate::framework::Effect::Exact);
    }

    #[test]
    fn counts_bytes_of_unshared_captures_as_released() {
        let weight = (0..256).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
        let bodies = |used: &str| {
            format!(
                "main (bool k, float[128] x) => (float[128] y) <float[256] w = {{{weight}}}, int64[1] o = {{0}},
                    int64[1] h = {{128}}, int64[1] e = {{256}}> {{
                    y = If(k) <then_branch = p () => (float[128] u) {{
                            a = Slice(w, o, h) b = Slice(w, h, e) s = Add(x, a) u = Mul(s, b) }},
                        else_branch = q () => (float[128] v) {{ v = {used} }}> }}"
            )
        };
        let before = bodies("Neg(x)");
        let mut changed = model(&before);
        run_pass(FoldConstants::default(), &mut changed);
        assert_eq!(changed.graph.initializers().len(), 0, "{}", text::print_graph(&changed.graph));
        same(&model(&before), &changed, crate::framework::Effect::Exact);
        let why = declines(FoldConstants::default(), &bodies("Slice(w, o, h)"));
        assert!(why.contains(&"`a` would add 448 B".to_owned()), "{why:?}");
    }

    #[test]
    fn folds_into_constant_nodes_in_functions_and_keeps_attribute_references() {
        let mut changed = model(
            "<ir_version: 9, opset_import: [\"\": 18, \"f\": 1]>
            main (float[2] x) => (float[2] y) { y = f.g<k = 2>(x) }
            <domain: \"f\", opset_import: [\"\": 18]>
            g <k> (a) => (b) { c = Constant<value = float[1] {1}>() d = Neg(c) e = Constant<value_int: int = @k>()
                h = Cast<to = 1>(e) i = Mul(d, h) b = Add(a, i) }",
        );
        run_pass(FoldConstants::default(), &mut changed);
        let ops: Vec<_> = {
            let body = &changed.functions[0].body;
            body.nodes().iter().map(|&n| body.node(n).op.clone()).collect()
        };
        assert_eq!(ops, ["Constant", "Cast", "Mul", "Add"]);
    }

    #[test]
    fn folds_other_nodes_after_an_engine_failure() {
        let mut changed = model(
            "main (float[2] x) => (float[2] y, float[A] z) <float[2] a = {1, 2}, float[2] b = {3, 4}> {
                c = Exp(a) y = Add(x, c) d = Log(b) z = Identity(d) }",
        );
        let report = run_pass_with(
            FoldConstants::default(),
            &mut changed,
            Tools { engine: Some(&FailingEngine("Log")), ..tools() },
        );
        let why: Vec<_> = report.steps[0].declined.keys().cloned().collect();
        assert_eq!(why, ["`z` was not computed: no Log here"]);
        assert_eq!(changed.graph.node_count(), 3);
    }

    /// An engine that fails on one operator.
    struct FailingEngine(&'static str);

    impl pare_graph::Evaluate for FailingEngine {
        fn name(&self) -> String {
            "fails".into()
        }

        fn load(
            &self,
            model: &Model,
            setting: pare_graph::Setting,
        ) -> Result<Box<dyn pare_graph::Run>, pare_graph::EvaluateError> {
            if model.graph.nodes().iter().any(|&n| model.graph.node(n).is(self.0)) {
                return Err(pare_graph::EvaluateError::new(format!("no {} here", self.0)));
            }
            tools().engine.unwrap().load(model, setting)
        }
    }
}
