use super::{
    calls::{Key, drop_uncalled, key},
    inline_branches::replace_outputs,
};
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Function, Graph, Model, NodeRef, Patch, Ref, ops::is_engine_domain};
use std::collections::{HashMap, VecDeque};

pass! {
    /// Replace calls of model-local functions by their bodies, and remove the functions.
    ///
    /// Attribute references take the value given in the call or the default. Functions called by functions
    /// are inlined as well.
    ///
    /// Declines where a function imports an operator set in another version than the model, or one that the
    /// model does not import: its nodes would change their meaning. Also for functions that are named like an
    /// operator of the standard or of ONNX Runtime, which the engine computes at once.
    #[pass("inline-functions", Exact)]
    pub struct InlineFunctions {}
}

/// Nodes that inlining adds at most. Functions that call each other twice grow with the power of their depth.
const MAX_ADDED: usize = 1_000_000;

impl Pass for InlineFunctions {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if model.functions.is_empty() {
            return Ok(());
        }
        let functions = Functions::of(&model.functions);
        let before = cx.report.patches;
        let mut added = 0;
        // The main graph only: function bodies are copied from it and removed once nothing calls them.
        inline_calls(&mut model.graph, cx, &functions, &mut added);
        cx.count(Counter::new("call inlined", "calls inlined"), cx.report.patches - before);
        drop_uncalled(model, cx);
        Ok(())
    }
}

/// The functions of a model by domain, name and overload.
struct Functions<'m>(HashMap<Key, &'m Function>);

impl<'m> Functions<'m> {
    fn of(functions: &'m [Function]) -> Self {
        Self(functions.iter().map(|f| (key(&f.domain, &f.name, f.overload.as_deref()), f)).collect())
    }

    fn called_by(&self, at: NodeRef<'_>) -> Option<&'m Function> {
        let node = at.node();
        self.0.get(&key(node.domain(), &node.op, node.overload.as_deref())).copied()
    }
}

/// Inlines the calls in a graph and its subgraphs, then those in the bodies that were inlined. This ends, as
/// functions do not call themselves.
fn inline_calls(graph: &mut Graph, cx: &mut Context<'_>, functions: &Functions<'_>, added: &mut usize) {
    let mut queue: VecDeque<_> = graph.nodes().iter().copied().collect();
    while let Some(id) = queue.pop_front() {
        if !graph.has_node(id) {
            continue;
        }
        if graph.node(id).subgraphs().next().is_some() {
            graph.with_subgraphs(id, |bodies, _| {
                bodies.iter_mut().for_each(|body| inline_calls(body, cx, functions, added));
            });
        }
        let Some(function) = functions.called_by(graph.at(id)) else { continue };
        if *added > MAX_ADDED {
            cx.decline(format!("`{}` is called after inlining has added {MAX_ADDED} nodes", function.name));
            continue;
        }
        match inlined(graph.at(id), function) {
            Ok(patch) => {
                let applied = cx.apply(graph, patch).map(|applied| applied.added).unwrap_or_default();
                *added += applied.len();
                queue.extend(applied);
            }
            Err(Decline::Because(why)) => cx.decline(why),
            Err(Decline::Mismatch) => {}
        }
    }
}

fn inlined(at: NodeRef<'_>, function: &Function) -> Result<Patch, Decline> {
    let node = at.node();
    if at.schema().is_some() || is_engine_domain(node.domain()) {
        return Err(Decline::because(format!("`{}` may be an operator of the engine", function.name)));
    }
    for (domain, version) in function.body.opsets.iter() {
        if at.graph.opset(domain) != Some(*version) {
            let domain = if domain.is_empty() { "ai.onnx" } else { domain };
            let why = format!("`{}` imports another version of `{domain}` than the model", function.name);
            return Err(Decline::because(why));
        }
    }
    let body = function.instance(node, at.graph);
    let inputs = at.graph.inputs_of(at.id);
    let given = |name: &str| {
        let place = function.body.inputs().iter().position(|&v| function.body.value(v).name == name)?;
        inputs.get(place).copied().flatten().map(Ref::Old)
    };
    let mut patch = Patch::at(at);
    let results = patch.inline(&body, given)?;
    replace_outputs(at, patch, results.into_iter().map(Some).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{model, run_pass, same};
    use pare_graph::text::print_model;

    const HEAD: &str = "<ir_version: 8, opset_import: [\"\" : 18, \"local\" : 1]>\n";

    fn inline(main: &str, functions: &str) -> String {
        let (original, text) = inline_alone(main, functions);
        same(&original.0, &original.1, crate::framework::Effect::Exact);
        text
    }

    /// Inlines without running the models; returns both of them and the text.
    fn inline_alone(main: &str, functions: &str) -> ((Model, Model), String) {
        let original = model(&format!("{HEAD}{main}{functions}"));
        let mut model = original.clone();
        run_pass(InlineFunctions::default(), &mut model);
        let text = print_model(&model);
        ((original, model), text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn substitutes_attributes_of_the_call() {
        let text = inline(
            "g (float[2] x, float v) => (float[2] y) { a = local.f <alpha = 0.5>(x, v) y = local.f(a, \"\") }",
            "<domain: \"local\", opset_import: [\"\" : 18]>
             f <alpha: float = 0.25> (u, v) => (w) { h = LeakyRelu<alpha: float = @alpha>(u) w = Clip(h, v) }"
                .replace("w = local2(h)", "w = Clip(h, v)")
                .as_str(),
        );
        assert!(
            text.ends_with(
                "{ h = LeakyRelu<alpha = 0.5>(x) a = Clip(h, v) h_1 = LeakyRelu<alpha = 0.25>(a) \
                 y = Clip(h_1, \"\") }"
            ),
            "{text}"
        );
    }

    #[test]
    fn keeps_identity_for_output_that_is_an_input() {
        // The engine rejects a function without nodes.
        let (_, text) = inline_alone(
            "g (float[2] x) => (float[2] y) { y = local.f(x) }",
            "<domain: \"local\", opset_import: [\"\" : 18]> f (u) => (u) {}",
        );
        assert!(text.ends_with("{ y = Identity(x) }"), "{text}");
    }

    #[test]
    fn inlines_a_long_chain_of_functions() {
        // Each function calls the next one; the last node of the chain is the only one.
        let f = |i: usize| {
            let body = if i == 184 { "Neg(u)".to_owned() } else { format!("local.f{}(u)", i + 1) };
            format!(
                "<domain: \"local\", opset_import: [\"\" : 18, \"local\" : 1]> f{i} (u) => (w) {{ w = {body} }}\n"
            )
        };
        let call = |first: usize| format!("g (float[2] x) => (float[2] y) {{ y = local.f{first}(x) }}");
        let functions: String = (0..185).map(f).collect();
        // The engine inlines 100 nested functions.
        let text = inline(&call(90), &functions);
        assert!(text.contains("{ y = Neg(x) }") && !text.contains("local.f"), "{text}");
        let ((_, changed), text) = inline_alone(&call(0), &functions);
        assert!(text.ends_with("{ y = Neg(x) }"), "{text}");
        changed.check().unwrap();
    }

    #[test]
    fn binds_attributes_through_nested_calls_and_branches() {
        let text = inline(
            "g (float[2] x, bool c) => (float[2] y) { y = local.outer <slope = 0.5>(x, c) }",
            "<domain: \"local\", opset_import: [\"\" : 18, \"local\" : 1]>
             outer <slope> (u, c) => (w) {
                h = Abs(u)
                w = If(c) <
                    then_branch = t () => (float[2] a) { a = local.inner <alpha: float = @slope>(h) },
                    else_branch = e () => (float[2] b) { b = Sub(h, u) }> }
             <domain: \"local\", opset_import: [\"\" : 18]>
             inner <alpha: float = 0.25> (v) => (z) { h = Neg(v) z = LeakyRelu<alpha: float = @alpha>(h) }",
        );
        assert!(text.contains("LeakyRelu<alpha = 0.5>") && !text.contains("local.inner"), "{text}");
        assert!(text.contains("h = Abs(x)"), "{text}");
    }

    #[test]
    fn keeps_metadata_of_nodes() {
        let ((_, changed), _) = inline_alone(
            "g (float[2] x) => (float[2] y) { a = local.f(x) y = local.f(a) }",
            "<domain: \"local\", opset_import: [\"\" : 18]> f (u) => (w) { [first] h = Neg(u) w = Abs(h) }",
        );
        let graph = &changed.graph;
        let names: Vec<_> = graph.nodes().iter().map(|&n| graph.node(n).name.clone()).collect();
        assert_eq!(names.iter().flatten().collect::<Vec<_>>(), ["first", "first"]);
        changed.check().unwrap();
    }

    #[test]
    fn limits_growth() {
        // Twice as many nodes with each function: 2^40 in all.
        let f = |i: usize| {
            let call = if i == 39 { "Neg".to_owned() } else { format!("local.f{}", i + 1) };
            format!(
                "<domain: \"local\", opset_import: [\"\" : 18, \"local\" : 1]> f{i} (u) => (w) {{
                    h = {call}(u) w = {call}(h) }}\n"
            )
        };
        let functions: String = (0..40).map(f).collect();
        let source = format!("{HEAD}g (float[2] x) => (float[2] y) {{ y = local.f0(x) }}{functions}");
        let mut model = model(&source);
        let mut cx = crate::framework::testing::context(crate::framework::Tools::default());
        let functions = Functions::of(&model.functions);
        let mut added = MAX_ADDED - 100;
        inline_calls(&mut model.graph, &mut cx, &functions, &mut added);
        assert!(added < MAX_ADDED + 10 && model.graph.node_count() < 200);
    }

    #[test]
    fn keeps_functions_named_like_operators() {
        let mut model = model(
            "<ir_version: 8, opset_import: [\"\" : 18, \"com.microsoft\" : 1]>
             g (float[2] x) => (float[2] y) { y = com.microsoft.QuickGelu(x) }
             <domain: \"com.microsoft\", opset_import: [\"\" : 18]> QuickGelu (u) => (w) { w = Neg(u) }",
        );
        let report = run_pass(InlineFunctions::default(), &mut model);
        let declined: Vec<_> = report.steps[0].declined().collect();
        assert_eq!(declined, [("`QuickGelu` may be an operator of the engine", 1)]);
        assert_eq!(model.functions.len(), 1);
    }

    #[test]
    fn keeps_call_of_function_with_another_opset() {
        let text = inline(
            "g (float[2] x) => (float[2] y) { y = local.f(x) }",
            "<domain: \"local\", opset_import: [\"\" : 17]> f (u) => (w) { w = Neg(u) }",
        );
        assert!(text.contains("y = local.f(x)"), "{text}");
    }
}
