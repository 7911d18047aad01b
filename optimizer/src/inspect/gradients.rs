//! The gradients of the weights of a model.

use super::{Checked, InspectOptions};
use crate::{Error, Source};
use pare_graph::{DataType, Graph, GraphError, Node, Value, ValueId};
use pare_passes::{
    Pipeline, RunOptions,
    analysis::gradient::{Differentiated, OPSET, differentiate},
    run,
};
use serde::Serialize;
use std::path::PathBuf;

/// The gradients of the weights.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Gradients {
    /// The model file.
    pub model: Option<PathBuf>,
    /// The floating-point weights with more than one element.
    pub weights: Vec<WeightGradient>,
    /// Why gradients stop at some nodes: one sentence each, which names the node.
    pub stopped: Vec<String>,
    /// Nodes that compute all gradients, beside those of the model.
    pub nodes: usize,
}

/// A weight, and whether training can change it.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct WeightGradient {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// True if a floating-point output has a gradient with respect to it.
    pub gradient: bool,
}

/// Returns which weights get a gradient from the floating-point outputs, and what stops it, in operator set 18 or
/// newer with constants folded.
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] for an invalid model, and for one without a floating-point output.
pub fn inspect_gradients(source: impl Into<Source>, options: &InspectOptions) -> Result<Gradients, Error> {
    let Checked { mut model, path, .. } = Checked::load(source.into())?;
    options.bindings(&model)?;
    let text = format!("upgrade-opset{{to={OPSET}}},lift-constants,fold-constants");
    let pipeline: Pipeline = text.parse().map_err(|e| Error::pipeline(e, &text))?;
    run(&pipeline, &mut model, RunOptions::default(), &mut ()).map_err(Error::Run)?;
    model.infer().map_err(Error::invalid)?;
    let loss = add_sum(&mut model.graph).map_err(Error::invalid)?;
    let loss = loss.ok_or_else(|| Error::invalid("the model has no floating-point output"))?;
    model.infer().map_err(Error::invalid)?;
    let names = weights(&model.graph);
    let Differentiated { model: result, gradients, stopped } =
        differentiate(&model, &loss, &names).map_err(Error::invalid)?;
    let weight = |name: String| {
        let fact = model.graph.find(&name).map(|v| model.graph.value(v).fact.to_string());
        WeightGradient { gradient: gradients.contains_key(&name), ty: fact.unwrap_or_default(), name }
    };
    let nodes = result.node_count().saturating_sub(model.node_count());
    Ok(Gradients { model: path, weights: names.into_iter().map(weight).collect(), stopped, nodes })
}

/// Adds the sum of the elements of all floating-point outputs as an output, and returns its name.
fn add_sum(graph: &mut Graph) -> Result<Option<String>, GraphError> {
    let append = |graph: &mut Graph, node: Node, inputs: &[ValueId]| -> Result<ValueId, GraphError> {
        let value = graph.add_value(Value::named(&graph.fresh_name("sum")))?;
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        graph.add_node(node, &inputs, &[Some(value)])?;
        Ok(value)
    };
    let mut sums = vec![];
    for output in graph.outputs().to_vec() {
        if graph.value(output).fact.dtype().is_some_and(DataType::is_float) {
            let to = i64::from(DataType::Float.number());
            let cast = append(graph, Node::new("Cast").with("to", to), &[output])?;
            sums.push(append(graph, Node::new("ReduceSum").with("keepdims", 0_i64), &[cast])?);
        }
    }
    if sums.is_empty() {
        return Ok(None);
    }
    let loss = append(graph, Node::new("Sum"), &sums)?;
    graph.add_output(loss);
    Ok(Some(graph.value(loss).name.clone()))
}

/// The floating-point initializers with more than one element.
fn weights(graph: &Graph) -> Vec<String> {
    let is_weight = |v: &ValueId| {
        let tensor = graph.value(*v).tensor();
        tensor.is_some_and(|tensor| tensor.len() > 1 && is_trainable(tensor.dtype()))
    };
    graph.initializers().into_iter().filter(is_weight).map(|v| graph.value(v).name.clone()).collect()
}

fn is_trainable(dtype: DataType) -> bool {
    matches!(dtype, DataType::Float | DataType::Double | DataType::Float16 | DataType::Bfloat16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text;

    #[test]
    fn reports_weights_and_reasons() {
        let source = "<ir_version: 8, opset_import: [\"\" : 17]> \
                      main (float[N,3] x) => (float[N,2] y, int64[N,1] k) \
                      <float[3,2] w = {1,2,3,4,5,6}, float[2] b = {1,2}, float[2] c = {1,2}> \
                      { z = MatMul(x, w) q = Add(z, b) r = Round(q) p = Add(r, z) s = Add(p, c) y = Mul(s, c) k = ArgMax <axis = 1> (y) }";
        let model = text::parse_model(source).unwrap();
        let found = inspect_gradients(model, &InspectOptions::default()).unwrap();
        let weights: Vec<_> = found.weights.iter().map(|w| (w.name.as_str(), w.gradient)).collect();
        assert_eq!(weights, [("w", true), ("b", false), ("c", true)]);
        assert_eq!(
            found.stopped,
            ["Round producing `r` is constant between its steps, so its derivative is 0"]
        );
    }
}
