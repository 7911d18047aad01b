use super::calls::{drop_uncalled, key};
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Decline, Function, Graph, Model, Node, NodeRef, Patch, Ref};

pass! {
    /// Replace calls of model-local functions by their bodies, and remove the functions.
    ///
    /// Attribute references take the value given in the call or the default. Functions called by functions
    /// are inlined as well.
    ///
    /// Declines where a function imports an operator set in another version than the model, or one that the
    /// model does not import: its nodes would change their meaning.
    #[pass("inline-functions", Exact)]
    pub struct InlineFunctions {}
}

/// Nesting depth of calls up to which functions are inlined.
const MAX_DEPTH: usize = 64;

impl Pass for InlineFunctions {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let functions = model.functions.clone();
        let ops: Vec<_> = functions.iter().map(|f| f.name.as_str()).collect();
        if ops.is_empty() {
            return Ok(());
        }
        // The main graph only: function bodies are copied from and removed once uncalled. An inlined body may
        // contain subgraphs with further calls, hence the rounds.
        let start = cx.report.patches;
        for _ in 0..MAX_DEPTH {
            let before = cx.report.patches;
            each_main_graph(&mut model.graph, cx, &ops, &functions)?;
            if cx.report.patches == before {
                break;
            }
        }
        cx.count(Counter::new("call inlined", "calls inlined"), cx.report.patches - start);
        drop_uncalled(model, cx);
        Ok(())
    }
}

fn each_main_graph(
    graph: &mut Graph,
    cx: &mut Context<'_>,
    ops: &[&str],
    functions: &[Function],
) -> Result<(), PassError> {
    for &id in graph.nodes().iter() {
        if graph.node(id).subgraphs().next().is_some() {
            graph.with_subgraphs(id, |bodies, _| {
                bodies.iter_mut().try_for_each(|body| each_main_graph(body, cx, ops, functions))
            })?;
        }
    }
    cx.rewrite_graph(graph, ops, |at| inlined(at, functions))
}

fn inlined(at: NodeRef<'_>, functions: &[Function]) -> Result<Patch, Decline> {
    let node = at.node();
    let wanted = key(node.domain(), &node.op, node.overload.as_deref());
    let is = |f: &&Function| key(&f.domain, &f.name, f.overload.as_deref()) == wanted;
    let function = functions.iter().find(is).ok_or(Decline::Mismatch)?;
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
    let mut taken = vec![];
    for (output, result) in at.outputs().into_iter().zip(results) {
        let Some(output) = output else { continue };
        // An output that equals an input or another output needs a node of its own.
        let own = matches!(result, Ref::New(_)) && !taken.contains(&result);
        taken.push(result);
        let result = if own { result } else { patch.node(output.name(), Node::new("Identity"), &[result]) };
        patch.replace(output, result);
    }
    Ok(patch)
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
    fn keeps_call_of_function_with_another_opset() {
        let text = inline(
            "g (float[2] x) => (float[2] y) { y = local.f(x) }",
            "<domain: \"local\", opset_import: [\"\" : 17]> f (u) => (w) { w = Neg(u) }",
        );
        assert!(text.contains("y = local.f(x)"), "{text}");
    }
}
