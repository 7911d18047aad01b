use super::Names;
use crate::{
    framework::{Context, InterfaceChange, Pass, PassError},
    pass,
};
use pare_graph::{Graph, Model, ValueId};

pass! {
    /// Keep only the part of the model between named values, with its weights.
    ///
    /// `extract{inputs=[a],outputs=[b]}` makes a model that computes `b` from `a`. Without `inputs` the part
    /// starts at the inputs of the model, without `outputs` it ends at its outputs. Inputs of the model that
    /// the part reads besides the named values remain inputs, with a remark.
    ///
    /// Refused if a value does not exist, if nothing would be computed, or if the type of a new input is
    /// unknown.
    #[pass("extract", Exact, "part extracted", "parts extracted")]
    pub struct Extract {
        /// Values that become the inputs; the inputs of the model if empty.
        pub inputs: Names = Names::default(),
        /// Values that become the outputs; the outputs of the model if empty.
        pub outputs: Names = Names::default(),
    }
}

impl Pass for Extract {
    fn validate(&self) -> Result<(), String> {
        if self.inputs.is_empty() && self.outputs.is_empty() {
            return Err("it needs names of values, `inputs=[…]` or `outputs=[…]`".into());
        }
        Ok(())
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let graph = &model.graph;
        let computed: Vec<ValueId> = graph.nodes().iter().flat_map(|&n| graph.results(n)).collect();
        let all = [graph.inputs(), &computed].concat();
        let inputs = match self.inputs.is_empty() {
            true => graph.inputs().to_vec(),
            false => self.inputs.find(graph, &all, "input or computed value")?,
        };
        let outputs = match self.outputs.is_empty() {
            true => graph.outputs().to_vec(),
            false => self.outputs.find(graph, &computed, "computed value")?,
        };
        if let Some(&given) = outputs.iter().find(|v| inputs.contains(v)) {
            let name = &graph.value(given).name;
            return Err(PassError::refused(format!("`{name}` is both an input and an output")));
        }
        let mut part = model.extract(&inputs, &outputs).map_err(PassError::from_error)?;
        part.producer_name.clone_from(&model.producer_name);
        part.producer_version.clone_from(&model.producer_version);
        let untyped = part.graph.inputs().iter().find(|&&v| part.graph.value(v).declared.is_none());
        if let Some(&input) = untyped {
            let name = &part.graph.value(input).name;
            return Err(PassError::refused(format!(
                "the type of `{name}` is unknown, so it cannot be an input"
            )));
        }
        let names = |graph: &Graph, ids: &[ValueId]| -> Vec<String> {
            ids.iter().map(|&v| format!("`{}`", graph.value(v).name)).collect()
        };
        if names(graph, graph.inputs()) == names(&part.graph, part.graph.inputs())
            && names(graph, graph.outputs()) == names(&part.graph, part.graph.outputs())
        {
            return Ok(());
        }
        if !cx.permit() {
            return Ok(());
        }
        let asked = names(graph, &inputs);
        for name in names(&part.graph, part.graph.inputs()).iter().filter(|n| !asked.contains(n)) {
            cx.report.notes.push(format!("the part also reads the input {name}"));
        }
        let text = format!(
            "the part from {} to {}",
            names(&part.graph, part.graph.inputs()).join(", "),
            names(&part.graph, part.graph.outputs()).join(", ")
        );
        cx.report.interface.push(InterfaceChange::Other(text));
        *model = part;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{model, run_pass, tools, try_pass};
    use pare_graph::text;

    const NET: &str = "g (float[N,2] x, float[N,2] u) => (float[N,2] y) <float[2] w = {1, 2}> {
        a = Mul(x, w) b = Relu(a) c = Add(b, u) y = Neg(c) }";

    fn extract(inputs: Names, outputs: Names) -> (String, Vec<String>) {
        let mut changed = model(NET);
        let report = run_pass(Extract { inputs, outputs }, &mut changed);
        changed.check().unwrap();
        (text::print_graph(&changed.graph), report.steps.into_iter().flat_map(|s| s.notes).collect())
    }

    #[test]
    fn keeps_the_part_between_values() {
        let print = |source: &str| text::print_graph(&model(source).graph);
        let head = "g (float[N,2] x) => (float[N,2] b) <float[2] w = {1, 2}> { a = Mul(x, w) b = Relu(a) }";
        assert_eq!(extract(Names::default(), ["b"].into()), (print(head), vec![]));
        let tail = "g (float[N,2] b, float[N,2] u) => (float[N,2] y) { c = Add(b, u) y = Neg(c) }";
        let notes = vec!["the part also reads the input `u`".to_owned()];
        assert_eq!(extract(["b"].into(), Names::default()), (print(tail), notes));
    }

    #[test]
    fn refuses_unknown_values_and_empty_parts() {
        let why = |inputs: Names, outputs: Names| {
            try_pass(Extract { inputs, outputs }, &mut model(NET), tools()).unwrap_err().to_string()
        };
        assert_eq!(why(["d"].into(), Names::default()), "`extract`: there is no input or computed value `d`");
        assert_eq!(why(["c"].into(), ["c"].into()), "`extract`: `c` is both an input and an output");
    }
}
