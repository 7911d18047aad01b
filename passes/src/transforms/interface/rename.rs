use super::names::unknown;
use crate::{
    framework::{Context, InterfaceChange, Pass, PassError},
    pass,
};
use indexmap::IndexMap;
use pare_graph::{Graph, GraphError, Model};
use std::collections::HashSet;

pass! {
    /// Rename inputs, outputs and other values of the main graph.
    ///
    /// `rename{input.1=image,"495"=scores}` gives new names to the values with these names; all are renamed
    /// at once, so `rename{a=b,b=a}` exchanges two.
    ///
    /// Refused if there is no such value, or if a new name belongs to another value, also in a subgraph.
    #[pass("rename", Exact, "set of values renamed", "sets of values renamed", open = names)]
    pub struct Rename {
        /// The new name of each value, by its old one.
        pub names: IndexMap<String, String> = IndexMap::new(),
    }
}

impl Pass for Rename {
    fn validate(&self) -> Result<(), String> {
        if self.names.is_empty() {
            return Err("it needs names, `old=new`".into());
        }
        let mut seen = HashSet::new();
        match self.names.values().find(|new| new.is_empty() || !seen.insert(*new)) {
            Some(new) if new.is_empty() => Err("a name is empty".into()),
            Some(new) => Err(format!("two values would be named `{new}`")),
            None => Ok(()),
        }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let graph = &mut model.graph;
        let mut renamed = vec![];
        for (old, new) in self.names.iter().filter(|(old, new)| old != new) {
            let id = graph.find(old).ok_or_else(|| {
                let names: Vec<_> = graph.values().map(|v| graph.value(v).name.as_str()).collect();
                unknown("value", old, names.into_iter())
            })?;
            let is_taken = graph.find(new).is_some() && !self.names.contains_key(new);
            if is_taken || is_nested(graph, new) {
                return Err(PassError::refused(format!("another value is named `{new}`")));
            }
            renamed.push((id, old.clone(), new.clone()));
        }
        if renamed.is_empty() || !cx.permit() {
            return Ok(());
        }
        let failed = |error: GraphError| PassError::refused(error.to_string());
        // In two steps, since a new name may be the old name of another value.
        for (id, old, _) in &renamed {
            let unused = graph.fresh_name(&format!("{old}_renamed"));
            graph.rename_value(*id, &unused).map_err(failed)?;
        }
        for (id, _, new) in &renamed {
            graph.rename_value(*id, new).map_err(failed)?;
        }
        let names = renamed.into_iter().map(|(_, old, new)| (old, new)).collect();
        cx.report.interface.push(InterfaceChange::Renamed(names));
        Ok(())
    }
}

/// Returns true if a subgraph has a value of its own with this name.
fn is_nested(graph: &Graph, name: &str) -> bool {
    let has = |inner: &Graph| {
        inner.find(name).is_some_and(|v| !inner.value(v).is_captured()) || is_nested(inner, name)
    };
    graph.nodes().iter().any(|&n| graph.node(n).subgraphs().any(has))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{model, run_pass, tools, try_pass};
    use pare_graph::text;

    const IF: &str = "g (bool c, float[2] x) => (float[2] y, float[2] z) {
        z = Neg(x)
        y = If(c) <then_branch = t () => (float[2] p) { p = Abs(x) }, else_branch = e () => (float[2] q) { q = Exp(z) }>
    }";

    fn rename(names: &[(&str, &str)]) -> Rename {
        Rename { names: names.iter().map(|&(a, b)| (a.into(), b.into())).collect() }
    }

    #[test]
    fn exchanges_names_and_follows_captures() {
        let mut changed = model(IF);
        let report = run_pass(rename(&[("x", "image"), ("y", "z"), ("z", "y")]), &mut changed);
        let expected = model(
            "g (bool c, float[2] image) => (float[2] z, float[2] y) {
                y = Neg(image)
                z = If(c) <then_branch = t () => (float[2] p) { p = Abs(image) }, else_branch = e () => (float[2] q) { q = Exp(y) }>
            }",
        );
        assert_eq!(text::print_graph(&changed.graph), text::print_graph(&expected.graph));
        let text: Vec<_> = report.interface().map(ToString::to_string).collect();
        assert_eq!(text, ["renamed `x` to `image`, `y` to `z`, `z` to `y`"]);
        changed.check().unwrap();
    }

    #[test]
    fn refuses_unknown_and_taken_names() {
        let why = |names: &[(&str, &str)]| {
            try_pass(rename(names), &mut model(IF), tools()).unwrap_err().to_string()
        };
        assert_eq!(why(&[("input", "x1")]), "`rename`: there is no value `input`");
        assert_eq!(why(&[("x", "z")]), "`rename`: another value is named `z`");
        assert_eq!(why(&[("x", "p")]), "`rename`: another value is named `p`");
        let text = |text: &str| text.parse::<crate::Pipeline>().map(|p| p.to_string()).map_err(|e| e.message);
        assert_eq!(text("rename{a=c,b=c}").unwrap_err(), "`rename`: two values would be named `c`");
        assert_eq!(text("rename").unwrap_err(), "`rename`: it needs names, `old=new`");
        assert_eq!(text("rename{input.1=x,\"a b\"=\"c d\"}").unwrap(), "rename{input.1=x,\"a b\"=\"c d\"}");
    }
}
