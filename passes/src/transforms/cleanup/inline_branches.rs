use crate::framework::matching::is_plain;
use crate::{
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{
    Attribute, Decline, Dim, Graph, Model, Node, NodeId, NodeRef, Patch, Ref, ValueRef, expect,
};

pass! {
    /// Replace an `If` with a constant condition by its branch, and remove a `Loop` that never runs.
    ///
    /// The nodes and initializers of the branch move into the outer graph. A loop with a trip count of 0, or
    /// with a condition that is false from the start, returns its initial values.
    ///
    /// An `If` is also resolved when only one branch is consistent with its users: if inference finds a
    /// contradiction after one branch, such as a recurrent layer with an input of rank 4, the other branch is
    /// taken.
    ///
    /// Declines where the condition or trip count may be overridden, and for a loop whose scan outputs are
    /// used.
    #[pass("inline-branches", Exact, "branch inlined", "branches inlined")]
    pub struct InlineBranches {}
}

impl Pass for InlineBranches {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["If", "Loop"], |at| {
            is_plain(at)?;
            match at.op() {
                "If" => branch(at),
                _ => without_iterations(at),
            }
        })?;
        cx.each_graph(model, |graph, cx| {
            for id in undecided(graph) {
                if let Some(patch) = only_choice(graph, id)
                    && cx.apply(graph, patch).is_some()
                {
                    cx.count(
                        Counter::new("contradictory branch removed", "contradictory branches removed"),
                        1,
                    );
                }
            }
            Ok(())
        })
    }
}

/// `If` nodes examined per graph: each takes two inferences of the entire graph.
const MAX_EXAMINED: usize = 32;

/// The `If` nodes whose branches return values of different ranks.
fn undecided(graph: &Graph) -> Vec<NodeId> {
    let differs = |id: &&NodeId| {
        let at = graph.at(**id);
        if !at.is("If") || at.has_references() {
            return false;
        }
        let bodies: Vec<_> = at.node().subgraphs().collect();
        let [a, b] = bodies.as_slice() else { return false };
        let rank = |g: &Graph, i: usize| g.value(g.outputs()[i]).fact.shape().map(<[Dim]>::len);
        let count = a.outputs().len().min(b.outputs().len());
        (0..count).any(|i| rank(a, i).zip(rank(b, i)).is_some_and(|(x, y)| x != y))
    };
    graph.nodes().iter().filter(differs).take(MAX_EXAMINED).copied().collect()
}

/// Returns the patch that takes one branch if the graph is contradictory with the other. Nodes in other
/// subgraphs, which may not run, and declared output types do not count as contradictions.
fn only_choice(graph: &Graph, id: NodeId) -> Option<Patch> {
    if !graph.has_node(id) {
        return None;
    }
    let [with_then, with_else] = ["then_branch", "else_branch"].map(|name| taken(graph.at(id), name).ok());
    let (with_then, with_else) = (with_then?, with_else?);
    match (is_possible(graph, &with_then), is_possible(graph, &with_else)) {
        (true, false) => Some(with_then),
        (false, true) => Some(with_else),
        _ => None,
    }
}

fn is_possible(graph: &Graph, patch: &Patch) -> bool {
    let mut candidate = graph.clone();
    for value in candidate.values().collect::<Vec<_>>() {
        if !candidate.value(value).is_input() {
            candidate.set_declared(value, None);
        }
    }
    // A patch that does not apply proves nothing.
    candidate.apply(patch.clone()).is_err() || candidate.reinfer().is_ok()
}

/// The single element of a constant condition or trip count.
fn element(input: ValueRef<'_>) -> Result<i64, Decline> {
    input.constant()?.single_i64().ok_or(Decline::Mismatch)
}

fn branch(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let name = if element(at.input(0)?)? == 0 { "else_branch" } else { "then_branch" };
    taken(at, name)
}

/// The patch that replaces the `If` by a branch.
fn taken(at: NodeRef<'_>, name: &str) -> Result<Patch, Decline> {
    let Some(Attribute::Graph(body)) = at.attr(name) else { return Err(Decline::Mismatch) };
    let mut patch = Patch::at(at);
    let results = inlined(&mut patch, at.graph, body)?;
    replace_outputs(at, patch, results.into_iter().map(Some).collect())
}

fn inlined(patch: &mut Patch, around: &Graph, body: &Graph) -> Result<Vec<Ref>, Decline> {
    patch.inline(body, |name| around.find(name).map(Ref::Old))
}

fn without_iterations(at: NodeRef<'_>) -> Result<Patch, Decline> {
    let zero = |slot| at.optional(slot).is_some_and(|v| element(v).is_ok_and(|n| n <= 0));
    expect(zero(0) || zero(1))?;
    let carried = at.inputs().into_iter().skip(2).map(|v| v.map(Ref::from));
    let results = carried.chain(std::iter::repeat(None)).take(at.outputs().len());
    replace_outputs(at, Patch::at(at), results.collect())
}

/// Replaces each output by its result, through an `Identity` where the result is not a new value of its own.
/// Declines where an output is used that has no result.
pub(super) fn replace_outputs(
    at: NodeRef<'_>,
    mut patch: Patch,
    results: Vec<Option<Ref>>,
) -> Result<Patch, Decline> {
    let mut taken = vec![];
    for (output, result) in at.outputs().into_iter().zip(results) {
        let Some(output) = output else { continue };
        let Some(result) = result else {
            let unused = output.graph.use_count(output.id) == 0;
            let why = || Decline::because(format!("`{}` is collected by {}", output.name(), at.describe()));
            unused.then_some(()).ok_or_else(why)?;
            continue;
        };
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
    use crate::framework::testing::{check, declines, no_match};

    #[test]
    fn inlines_taken_branch() {
        check(
            InlineBranches::default(),
            "g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> {
                y, z = If(c) <
                    then_branch = t () => (float[2] a, float[2] h) <float[2] w = {1,2}> {
                        h = Add(x, w) a = Mul(h, x) },
                    else_branch = e () => (float[2] b, float[2] d) { b = Abs(x) d = Exp(x) }> }",
            "g (float[2] x) => (float[2] y, float[2] z) <float[2] w_1 = {1,2}> {
                z = Add(x, w_1) y = Mul(z, x) }",
        );
    }

    #[test]
    fn nested_subgraph_keeps_its_captures() {
        check(
            InlineBranches::default(),
            "g (float[2] x, bool q) => (float[2] y) <bool c = {0}> {
                h = Neg(x)
                y = If(c) <
                    then_branch = t () => (float[2] a) { a = Abs(x) },
                    else_branch = e () => (float[2] b) {
                        k = Exp(h)
                        b = If(q) <then_branch = i () => (float[2] u) { u = Add(k, h) },
                                   else_branch = j () => (float[2] v) { v = Sub(k, x) }> }> }",
            "g (float[2] x, bool q) => (float[2] y) {
                h = Neg(x) k_1 = Exp(h)
                y = If(q) <then_branch = i () => (float[2] u) { u = Add(k_1, h) },
                           else_branch = j () => (float[2] v) { v = Sub(k_1, x) }> }",
        );
    }

    #[test]
    fn loop_that_never_runs_returns_initial_values() {
        let graph = |out: &str, rest: &str| {
            format!("g (float[2] x, bool c) => ({out}) <int64 m = {{0}}> {{
                y, s = Loop(m, c, x) <body = b (int64 i, bool d, float[2] v) => (bool d, float[2] w, float[2] w) {{
                    w = Neg(v) }}> {rest} }}")
        };
        check(
            InlineBranches::default(),
            &graph("float[2] y", ""),
            "g (float[2] x, bool c) => (float[2] y) { y = Identity(x) }",
        );
        let why = declines(InlineBranches::default(), &graph("float[2] y, float[0,2] s", ""));
        assert_eq!(why, ["`s` is collected by Loop producing `y`"]);
    }

    #[test]
    fn resolves_if_with_one_consistent_branch() {
        // Exporters test the rank before a recurrent layer, which accepts rank 3 only.
        let graph = |cell: &str| {
            format!(
                "g (float[T,N,2] x) => (float[1,N,1] y) <
                    float[1,3,2] w = {{1,2,3,4,5,6}}, float[1,3,1] r = {{1,2,3}}, int64[1] o = {{0}}, int64 one = {{1}}> {{
                    s = Shape(x) l = Gather(s, one) c = Equal(l, one)
                    h = If(c) <then_branch = t () => (float[1,T,N,2] a) {{ a = Unsqueeze(x, o) }},
                               else_branch = e () => (float[T,N,2] b) {{ b = Identity(x) }}>
                    {cell} }}"
            )
        };
        check(
            InlineBranches::default(),
            &graph("p, y = GRU<hidden_size = 1>(h, w, r)"),
            "g (float[T,N,2] x) => (float[1,N,1] y) <float[1,3,2] w = {1,2,3,4,5,6}, float[1,3,1] r = {1,2,3}> {
                h = Identity(x) p, y = GRU<hidden_size = 1>(h, w, r) }",
        );
        no_match(InlineBranches::default(), &graph("y = Relu(h)").replace("(float[1,N,1] y)", "(float[] y)"));
    }

    #[test]
    fn keeps_if_with_overridable_condition() {
        let why = declines(
            InlineBranches::default(),
            "g (float[2] x, bool c = {1}) => (float[2] y) {
                y = If(c) <then_branch = t () => (float[2] a) { a = Neg(x) },
                           else_branch = e () => (float[2] b) { b = Abs(x) }> }",
        );
        assert_eq!(why, ["`c` can be overridden by the caller"]);
    }
}
