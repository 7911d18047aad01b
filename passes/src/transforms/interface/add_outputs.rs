use super::{Names, declare::declare};
use crate::{
    framework::{Context, InterfaceChange, Pass, PassError},
    pass,
};
use pare_graph::{Model, ValueId};

pass! {
    /// Return intermediate values as outputs of the model, after the existing ones.
    ///
    /// `add-outputs{only=[hidden_*]}` adds the values with these names, in the order in which they are
    /// computed.
    ///
    /// Refused if no node computes a value of such a name.
    #[pass("add-outputs", Exact, "output added", "outputs added")]
    pub struct AddOutputs {
        /// Names of the values; `*` matches any text.
        pub only: Names = Names::default(),
    }
}

impl Pass for AddOutputs {
    fn validate(&self) -> Result<(), String> {
        if self.only.is_empty() { Err("it needs names of values, `only=[…]`".into()) } else { Ok(()) }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let graph = &mut model.graph;
        let computed: Vec<ValueId> = graph.nodes().iter().flat_map(|&n| graph.results(n)).collect();
        for value in self.only.find(graph, &computed, "computed value")? {
            if graph.value(value).is_output() || !cx.permit() {
                continue;
            }
            declare(graph, value);
            graph.add_output(value);
            let name = &graph.value(value).name;
            cx.report.interface.push(InterfaceChange::Other(format!("`{name}` is an output now")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{model, run_pass, tools, try_pass};
    use pare_graph::text;

    const CHAIN: &str = "g (float[N,2] x) => (float[N,2] y) { h1 = Relu(x) h2 = Neg(h1) y = Exp(h2) }";

    #[test]
    fn returns_intermediate_values() {
        let mut changed = model(CHAIN);
        run_pass(AddOutputs { only: ["h*", "y"].into() }, &mut changed);
        let expected = model(
            "g (float[N,2] x) => (float[N,2] y, float[N,2] h1, float[N,2] h2) { h1 = Relu(x) h2 = Neg(h1) y = Exp(h2) }",
        );
        assert_eq!(text::print_graph(&changed.graph), text::print_graph(&expected.graph));
        changed.check().unwrap();
    }

    #[test]
    fn refuses_values_that_no_node_computes() {
        let pass = AddOutputs { only: ["x"].into() };
        let error = try_pass(pass, &mut model(CHAIN), tools()).unwrap_err();
        assert_eq!(error.to_string(), "`add-outputs`: there is no computed value `x`");
    }
}
