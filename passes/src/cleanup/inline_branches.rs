use super::is_plain;
use crate::{Context, Pass, PassError, pass};
use pare_graph::{At, Attribute, Decline, Graph, Model, Node, Patch, Ref, Wired, expect};

pass! {
    /// Put the branch of an `If` whose condition is constant in its place, and drop a `Loop` that never runs.
    ///
    /// Nodes and initializers of the branch move into the graph around it; what it captures it finds there. A loop
    /// with a trip count of 0, or whose condition is false from the start, gives back the values it carries.
    ///
    /// Declines where a condition or count may be overridden, and for a loop that collects outputs that are used.
    #[pass("inline-branches", Exact)]
    pub struct InlineBranches {}
}

impl Pass for InlineBranches {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["If", "Loop"], |at| {
            is_plain(at)?;
            match at.op() {
                "If" => branch(at),
                _ => idle(at),
            }
        })
    }
}

/// The only element of a constant condition or count.
fn element(input: Wired<'_>) -> Result<i64, Decline> {
    input.constant()?.single_i64().ok_or(Decline::Mismatch)
}

fn branch(at: At<'_>) -> Result<Patch, Decline> {
    let name = if element(at.input(0)?)? == 0 { "else_branch" } else { "then_branch" };
    let Some(Attribute::Graph(body)) = at.attr(name) else { return Err(Decline::Mismatch) };
    let mut patch = Patch::at(at);
    let results = inlined(&mut patch, at.graph, body)?;
    replace(at, patch, results.into_iter().map(Some).collect())
}

fn inlined(patch: &mut Patch, around: &Graph, body: &Graph) -> Result<Vec<Ref>, Decline> {
    patch.inline(body, |name| around.find(name).map(Ref::Old))
}

fn idle(at: At<'_>) -> Result<Patch, Decline> {
    let zero = |slot| at.optional(slot).is_some_and(|v| element(v).is_ok_and(|n| n <= 0));
    expect(zero(0) || zero(1))?;
    let carried = at.inputs().into_iter().skip(2).map(|v| v.map(Ref::from));
    let results = carried.chain(std::iter::repeat(None)).take(at.outputs().len());
    replace(at, Patch::at(at), results.collect())
}

/// Each output becomes its result, by way of an `Identity` where that is no new value of its own.
fn replace(at: At<'_>, mut patch: Patch, results: Vec<Option<Ref>>) -> Result<Patch, Decline> {
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
    use crate::testing::{check, declines};

    #[test]
    fn the_branch_taken_stands_in_the_place_of_the_if() {
        check(
            InlineBranches::default(),
            "g (float[2] x) => (float[2] y, float[2] z) <bool c = {1}> {
                y, z = If(c) <
                    then_branch = t () => (float[2] a, float[2] a) <float[2] w = {1,2}> {
                        h = Add(x, w) a = Mul(h, x) },
                    else_branch = e () => (float[2] b, float[2] d) { b = Abs(x) d = Exp(x) }> }",
            "g (float[2] x) => (float[2] y, float[2] z) <float[2] w_1 = {1,2}> {
                h_1 = Add(x, w_1) y = Mul(h_1, x) z = Identity(y) }",
        );
    }

    #[test]
    fn a_nested_subgraph_finds_what_it_captures() {
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
    fn a_loop_that_never_runs_gives_back_what_it_carries() {
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
        assert_eq!(why, ["`s` is collected by Loop making `y`"]);
    }

    #[test]
    fn a_condition_that_is_not_constant_stays() {
        declines(
            InlineBranches::default(),
            "g (float[2] x, bool c = {1}) => (float[2] y) {
                y = If(c) <then_branch = t () => (float[2] a) { a = Neg(x) },
                           else_branch = e () => (float[2] b) { b = Abs(x) }> }",
        );
    }
}
