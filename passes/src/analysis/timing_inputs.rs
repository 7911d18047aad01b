//! Inputs of models that are timed: random numbers, since zeros and denormals may be faster or slower than
//! other numbers.

use super::calibration::open_inputs;
use pare_graph::{DataType, Dim, Graph, Tensor, Value, element_count};

/// Largest number of elements of an input.
const MAX_ELEMENTS: usize = 1 << 26;

/// Returns a tensor of floats between -1 and 1, or of zeros of another type; `None` if it is too large or of a
/// type without numbers.
pub fn random_tensor(dtype: DataType, shape: &[usize], seed: u64) -> Option<Tensor> {
    let count = element_count(shape).filter(|&n| n <= MAX_ELEMENTS)?;
    let mut rng = fastrand::Rng::with_seed(seed);
    let value = |_| if dtype.is_float() { rng.f64() * 2.0 - 1.0 } else { 0.0 };
    Tensor::from_f64(dtype, shape, &(0..count).map(value).collect::<Vec<_>>()).ok()
}

/// Returns random tensors for the inputs of a graph that have no default. Symbolic sizes are `batch` on first
/// axes, and 1 on others.
///
/// # Errors
/// The name of an input whose tensor cannot be generated.
pub fn random_inputs(graph: &Graph, batch: usize, seed: u64) -> Result<Vec<(String, Tensor)>, String> {
    let size = |(axis, dim): (usize, &Dim)| {
        let symbol = if axis == 0 { batch as i64 } else { 1 };
        usize::try_from(dim.eval(&|_| Some(symbol))?).ok()
    };
    let of = |value: &Value| {
        let shape = value.fact.shape()?.iter().enumerate().map(size).collect::<Option<Vec<_>>>()?;
        random_tensor(value.fact.dtype()?, &shape, seed)
    };
    let named = |id| {
        let value = graph.value(id);
        Ok((value.name.clone(), of(value).ok_or_else(|| value.name.clone())?))
    };
    open_inputs(graph).into_iter().map(named).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::model;

    #[test]
    fn generates_floats_and_zeros_of_the_shapes() {
        let mut graph =
            model("g (float[N,3,H] x, int64[2] i, float[N,4] z) => (float y) { y = Foo(x, i, z) }").graph;
        graph.reinfer().unwrap();
        let inputs = random_inputs(&graph, 5, 0).unwrap();
        let shapes: Vec<_> = inputs.iter().map(|(name, t)| (name.as_str(), t.shape().to_vec())).collect();
        assert_eq!(shapes, [("x", vec![5, 3, 1]), ("i", vec![2]), ("z", vec![5, 4])]);
        let x = inputs[0].1.to_vec::<f32>().unwrap();
        assert!(x.iter().all(|v| v.abs() <= 1.0) && x.iter().any(|v| v.abs() > 0.1), "{x:?}");
        assert_eq!(inputs[1].1.to_f64().unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn names_inputs_that_cannot_be_generated() {
        let mut graph = model("g (float[9999,99999] x) => (float y) { y = ReduceSum(x) }").graph;
        graph.reinfer().unwrap();
        assert_eq!(random_inputs(&graph, 1, 0).unwrap_err(), "x");
        assert!(random_tensor(DataType::String, &[2], 0).is_none());
    }
}
