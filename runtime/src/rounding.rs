//! Perturbation of a model's weights by one rounding.
//!
//! In a loop a rounding error grows from step to step. The engine's optimizations do not change loop bodies
//! and so do not show how far. Weights moved to a neighbouring number do: the error of every product is then
//! about that of one rounding (backward error: Higham, Accuracy and Stability of Numerical Algorithms, 1.5).

use crate::{ModelSource, epsilon};
use fastrand::Rng;
use pare_graph::{
    Constant, Graph, Model, Patch, Tensor, ValueId,
    onnx::{self, ReadOptions},
};

/// The model with each element `w` of its float matrices changed to `w ± ε·w`, ε the machine epsilon of its
/// type; `None` without a `Loop` or `Scan`. Vectors and scalars are not changed, since some are sizes;
/// neither are subgraphs.
pub(crate) fn perturbed(model: &ModelSource) -> Option<ModelSource> {
    let mut model = match model {
        ModelSource::File(path) => onnx::read(path, &ReadOptions::default()).ok()?,
        ModelSource::Bytes { bytes, folder } => onnx::read_bytes(bytes.clone(), folder.as_deref()).ok()?,
    };
    if !has_loop(&model) {
        return None;
    }
    let mut patch = Patch::anchored(*model.graph.nodes().first()?);
    let mut rng = Rng::with_seed(0);
    for id in model.graph.initializers() {
        if let Some(tensor) = perturbed_matrix(&model.graph, id, &mut rng) {
            patch.set_data(id, tensor);
        }
    }
    model.graph.apply(patch).ok()?;
    Some(ModelSource::bytes(onnx::to_bytes(&model).ok()?))
}

fn has_loop(model: &Model) -> bool {
    fn inside(graph: &Graph) -> bool {
        let node = |&id: &pare_graph::NodeId| {
            let node = graph.node(id);
            (node.domain().is_empty() && ["Loop", "Scan"].contains(&node.op.as_str()))
                || node.subgraphs().any(inside)
        };
        graph.nodes().iter().any(node)
    }
    inside(&model.graph) || model.functions.iter().any(|f| inside(&f.body))
}

fn perturbed_matrix(graph: &Graph, id: ValueId, rng: &mut Rng) -> Option<Tensor> {
    let Some(Constant::Dense(tensor)) = &graph.value(id).data else { return None };
    // Narrower floats are quantization codes, which are more than one rounding apart.
    if tensor.shape().len() < 2 || !tensor.dtype().is_float() || tensor.dtype().bits() < 16 {
        return None;
    }
    let step = epsilon(tensor.dtype());
    let values = tensor.to_f64()?.into_iter().map(|v| if rng.bool() { v + v * step } else { v - v * step });
    Tensor::from_f64(tensor.dtype(), tensor.shape(), &values.collect::<Vec<_>>()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::text::parse_graph;

    #[test]
    fn perturbs_matrices_of_models_with_loops() {
        let text = |body: &str| {
            format!(
                "g (int64 n, bool c, float[1,2] x) => (y) <float[2,2] w = {{1,-3,0,0.1}}, float[2] b = {{1,2}}> {{ {body} }}"
            )
        };
        let source = |body: &str| {
            let model = Model::of(parse_graph(&text(body), 17).unwrap());
            ModelSource::bytes(onnx::to_bytes(&model).unwrap())
        };
        let looped = "y = Loop(n, c, x) <body = b (int64 i, bool k, float[1,2] h) => (bool l, float[1,2] o) {
            l = Identity(k) o = MatMul(h, w) }> z = Add(x, b)";
        let Some(ModelSource::Bytes { bytes, .. }) = perturbed(&source(looped)) else { panic!() };
        let moved = onnx::read_bytes(bytes, None).unwrap();
        let data = |name: &str| {
            let id = moved.graph.find(name).unwrap();
            moved.graph.value(id).tensor().unwrap().to_f64().unwrap()
        };
        assert_eq!(data("b"), [1.0, 2.0]);
        for (new, old) in data("w").into_iter().zip([1.0_f64, -3.0, 0.0, f64::from(0.1_f32)]) {
            let off = (new - old).abs() / f64::from(f32::EPSILON);
            assert!(off <= 1.5 * old.abs() && (off > 0.4 * old.abs() || old == 0.0), "{old} is {new}");
        }
        assert!(perturbed(&source("y = MatMul(x, w)")).is_none());
    }
}
