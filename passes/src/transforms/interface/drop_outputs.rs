use super::Names;
use crate::{
    framework::{Context, InterfaceChange, Pass, PassError},
    pass,
};
use pare_graph::Model;

pass! {
    /// Remove outputs of the model, with everything that only they need.
    ///
    /// `drop-outputs{only=[aux_*]}` removes the outputs with these names. Inputs stay, even if nothing reads
    /// them any more.
    ///
    /// Refused if no output has such a name, or if none would remain.
    #[pass("drop-outputs", Exact, "output removed", "outputs removed")]
    pub struct DropOutputs {
        /// Names of the outputs; `*` matches any text.
        pub only: Names = Names::default(),
    }
}

impl Pass for DropOutputs {
    fn validate(&self) -> Result<(), String> {
        if self.only.is_empty() { Err("it needs names of outputs, `only=[…]`".into()) } else { Ok(()) }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let graph = &mut model.graph;
        let outputs = graph.outputs().to_vec();
        let removed = self.only.find(graph, &outputs, "output")?;
        if outputs.iter().all(|v| removed.contains(v)) {
            return Err(PassError::refused("no output would remain"));
        }
        for value in removed {
            if !cx.permit() {
                break;
            }
            let name = graph.value(value).name.clone();
            graph.remove_outputs(&[value]);
            cx.report.interface.push(InterfaceChange::Other(format!("the output `{name}` was removed")));
        }
        graph.sweep();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{model, run_pass, tools, try_pass};
    use pare_graph::text;

    const TWO: &str = "g (float[2] x, float[2] u) => (float[2] y, float[2] aux_1) { y = Relu(x) a = Neg(u) aux_1 = Exp(a) }";

    #[test]
    fn removes_what_only_the_outputs_need() {
        let mut changed = model(TWO);
        let report = run_pass(DropOutputs { only: ["aux_*"].into() }, &mut changed);
        let expected = model("g (float[2] x, float[2] u) => (float[2] y) { y = Relu(x) }");
        assert_eq!(text::print_graph(&changed.graph), text::print_graph(&expected.graph));
        let changes: Vec<_> = report.interface().map(ToString::to_string).collect();
        assert_eq!(changes, ["the output `aux_1` was removed"]);
    }

    #[test]
    fn refuses_unknown_names_and_empty_models() {
        let why = |names: Names| {
            try_pass(DropOutputs { only: names }, &mut model(TWO), tools()).unwrap_err().to_string()
        };
        assert_eq!(why(["aux_2"].into()), "`drop-outputs`: there is no output `aux_2`");
        assert_eq!(why(["*"].into()), "`drop-outputs`: no output would remain");
    }
}
