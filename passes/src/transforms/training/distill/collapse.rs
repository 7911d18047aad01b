//! The regularizer of *LaCoOT* (Quétu et al. 2024): residual blocks are to change the distribution of their stream
//! as little as they can, so that `drop-blocks` costs less.
//!
//! `L + λ/B · Σ_b D_b`, where for the stream `X` without the block `b` and `Y` with it, one row a sample,
//!
//! `D_b = max_θ mean_i (sort(X·θ)ᵢ − sort(Y·θ)ᵢ)² / mean X²`
//!
//! is the square of the max-sliced Wasserstein distance `W₂`, relative to the stream as in the criterion
//! `wasserstein` of `drop-blocks`. The maximum is over directions `θ` of length 1 that are drawn again in each step:
//! as many as the authors' code draws. The gradient passes the sort by its indices.

use super::loss::{Builder, LossModel};
use crate::{
    analysis::{
        blocks::{Block, blocks},
        random::normal,
    },
    framework::PassError,
};
use fastrand::Rng;
use pare_graph::{DataType, Dim, Fact, Graph, Node, Tensor, ValueId, ops::Trait};
use std::collections::{BTreeMap, BTreeSet};

/// Directions in a step.
const DIRECTIONS: usize = 50;
/// Keeps the quotient finite for a stream of zeros.
const LEAST: f64 = 1e-12;

/// The term of the loss model: its second output is the mean of all `D_b`.
pub struct Collapse {
    /// The inputs that take directions, by the size of a sample's row.
    directions: BTreeMap<usize, String>,
}

impl Collapse {
    /// Adds the term with the factor `λ` to a loss. Refuses a model without residual blocks.
    pub fn add(loss: &mut LossModel, factor: f64) -> Result<Self, PassError> {
        let streams = streams(&loss.model.graph);
        if streams.is_empty() {
            return Err(PassError::refused("there is no residual block to collapse"));
        }
        let mut builder = Builder { graph: &mut loss.model.graph };
        let widths: BTreeSet<_> = streams.iter().map(|stream| stream.width).collect();
        let mut inputs = BTreeMap::new();
        for width in widths {
            let fact = Fact::tensor(DataType::Float, [width, DIRECTIONS].map(Dim::from).to_vec());
            let name = builder.graph.fresh_name("directions");
            inputs.insert(width, (builder.input(&name, fact)?, name));
        }
        let distances = streams.iter().map(|stream| builder.distance(stream, inputs[&stream.width].0));
        let distances = distances.collect::<Result<Vec<_>, _>>()?;
        let sum = builder.op("Sum", &distances)?;
        let mean = builder.scaled(sum, 1.0 / distances.len() as f64)?;
        let term = builder.scaled(mean, factor)?;
        let output = builder.graph.find(&loss.loss).ok_or_else(|| PassError::refused("there is no loss"))?;
        let total = builder.op("Add", &[output, term])?;
        let graph = &mut loss.model.graph;
        graph.remove_outputs(&[output]);
        graph.add_output(total);
        graph.add_output(mean);
        loss.loss.clone_from(&graph.value(total).name);
        loss.model.infer()?;
        Ok(Self { directions: inputs.into_iter().map(|(width, (_, name))| (width, name)).collect() })
    }

    /// Random directions of length 1, uniform on the sphere, for all inputs that take some.
    pub fn draw(&self, rng: &mut Rng) -> Result<Vec<(String, Tensor)>, PassError> {
        let one = |(&width, name): (&usize, &String)| {
            let mut values: Vec<f32> = (0..width * DIRECTIONS).map(|_| normal(rng) as f32).collect();
            let mut squares = [0.0_f32; DIRECTIONS];
            for row in values.chunks_exact(DIRECTIONS) {
                squares.iter_mut().zip(row).for_each(|(sum, value)| *sum += value * value);
            }
            let scales = squares.map(|square| if square > 0.0 { 1.0 / square.sqrt() } else { 0.0 });
            for row in values.chunks_exact_mut(DIRECTIONS) {
                row.iter_mut().zip(scales).for_each(|(value, scale)| *value *= scale);
            }
            let tensor = Tensor::from_slice(&[width, DIRECTIONS], &values).map_err(PassError::from_error)?;
            Ok((name.clone(), tensor))
        };
        self.directions.iter().map(one).collect()
    }
}

/// A stream with and without the blocks that end in one sum.
struct Stream {
    without: ValueId,
    with: ValueId,
    /// The activation that alone reads the sum: it belongs to the stream.
    activation: Option<Node>,
    /// Other inputs of the activation.
    parameters: Vec<ValueId>,
    rows: usize,
    /// Elements of a row.
    width: usize,
}

/// The streams of all blocks whose sizes are known.
fn streams(graph: &Graph) -> Vec<Stream> {
    let mut found: Vec<Block> = vec![];
    for block in blocks(graph) {
        if found.iter().all(|known| known.exit != block.exit) {
            found.push(block);
        }
    }
    found.iter().filter_map(|block| stream(graph, block)).collect()
}

fn stream(graph: &Graph, block: &Block) -> Option<Stream> {
    let without = if block.identity { block.entry } else { block.rest };
    let value = graph.value_ref(block.exit);
    let fact = &value.value().fact;
    let shape = fact.fixed_shape()?;
    if value.dtype() != Some(DataType::Float) || graph.value(without).fact != *fact || shape.len() < 2 {
        return None;
    }
    let activation = value
        .sole_user()
        .ok()
        .filter(|at| at.has(Trait::Activation) && at.input(0).is_ok_and(|input| input.id == block.exit));
    let parameters = activation.map_or_else(Vec::new, |at| graph.inputs_of(at.id)[1..].to_vec());
    Some(Stream {
        without,
        with: activation.and_then(|at| Some(at.output().ok()?.id)).unwrap_or(block.exit),
        parameters: parameters.into_iter().collect::<Option<_>>()?,
        activation: activation.map(|at| {
            let mut node = Node::new(at.op());
            node.domain.clone_from(&at.node().domain);
            node.attributes.clone_from(&at.node().attributes);
            node
        }),
        rows: shape[0],
        width: shape[1..].iter().product(),
    })
}

impl Builder<'_> {
    /// `D` of a stream: the largest of all directions.
    fn distance(&mut self, stream: &Stream, directions: ValueId) -> Result<ValueId, PassError> {
        let without = match &stream.activation {
            None => stream.without,
            Some(activation) => {
                let inputs: Vec<_> =
                    std::iter::once(stream.without).chain(stream.parameters.clone()).collect();
                self.node(activation.clone(), &inputs)?
            }
        };
        let (x, y) =
            (self.sorted(without, stream, directions)?, self.sorted(stream.with, stream, directions)?);
        let difference = self.op("Sub", &[x, y])?;
        let square = self.op("Mul", &[difference, difference])?;
        let slices = self.reduce("ReduceMean", square, &[0], false)?;
        let largest = self.reduce("ReduceMax", slices, &[0], false)?;
        let square = self.op("Mul", &[without, without])?;
        let size = self.reduce("ReduceMean", square, &[], false)?;
        let least = self.constant(Tensor::scalar(LEAST as f32))?;
        let size = self.op("Add", &[size, least])?;
        self.op("Div", &[largest, size])
    }

    /// The rows along each direction, sorted.
    fn sorted(&mut self, value: ValueId, stream: &Stream, directions: ValueId) -> Result<ValueId, PassError> {
        let rows = self.node(Node::new("Flatten").with("axis", 1_i64), &[value])?;
        let along = self.op("MatMul", &[rows, directions])?;
        let all = self.constant(Tensor::vector(&[stream.rows as i64]))?;
        let [sorted, _] = self.nodes(Node::new("TopK").with("axis", 0_i64), &[along, all])?;
        Ok(sorted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        analysis::gradient::differentiate,
        framework::testing::{model, tools},
    };
    use pare_graph::{Model, Setting};

    /// A loss of 0 with the term of a residual network, from parameters that are drawn.
    fn term(body: &str, factor: f64, rng: &mut Rng) -> (LossModel, Collapse) {
        let mut numbers = |count: usize| {
            let all: Vec<_> = (0..count).map(|_| format!("{:.3}", rng.f64() - 0.5)).collect();
            all.join(",")
        };
        let source = format!(
            "g (float[8,6] x) => (float loss) <float[6,6] a = {{{}}}, float[6,6] b = {{{}}}, float zero = {{0}}> {{
                {body} s = Mul(y, zero) loss = ReduceSum<keepdims = 0>(s) }}",
            numbers(36),
            numbers(36)
        );
        let mut model = model(&source);
        model.infer().unwrap();
        let mut loss = LossModel { model, loss: "loss".into() };
        let collapse = Collapse::add(&mut loss, factor).unwrap();
        loss.model.check().unwrap();
        (loss, collapse)
    }

    const RESIDUAL: &str = "h = MatMul(x, a) r = Tanh(h) d = MatMul(r, b) v = Add(x, d) y = Relu(v)";

    fn run(model: &Model, feeds: &[(String, Tensor)]) -> Vec<Tensor> {
        let feeds: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        tools().engine.unwrap().load(model, Setting::PLAIN).unwrap().run(&feeds).unwrap()
    }

    fn samples(rng: &mut Rng) -> (String, Tensor) {
        let values: Vec<f32> = (0..48).map(|_| normal(rng) as f32).collect();
        ("x".into(), Tensor::from_slice(&[8, 6], &values).unwrap())
    }

    #[test]
    fn the_gradient_agrees_with_central_differences() {
        let mut rng = Rng::with_seed(5);
        for body in [RESIDUAL, &RESIDUAL.replace("v = Add(x, d) y = Relu(v)", "y = Add(d, x)")] {
            let (loss, collapse) = term(body, 3.0, &mut rng);
            let names = ["a".to_owned(), "b".to_owned()];
            let found = differentiate(&loss.model, &loss.loss, &names).unwrap();
            assert_eq!(found.stopped, [""; 0]);
            let mut feeds = vec![samples(&mut rng)];
            feeds.extend(collapse.draw(&mut rng).unwrap());
            let given = feeds.len();
            for name in &names {
                let id = loss.model.graph.find(name).unwrap();
                feeds.push((name.clone(), loss.model.graph.value(id).tensor().unwrap().clone()));
            }
            let first = run(&found.model, &feeds);
            let position = |name: &str| {
                found
                    .model
                    .graph
                    .outputs()
                    .iter()
                    .position(|&v| found.model.graph.value(v).name == name)
                    .unwrap()
            };
            let total = |feeds: &[(String, Tensor)]| run(&found.model, feeds)[0].single().unwrap();
            assert!((total(&feeds) / first[1].single().unwrap() - 3.0).abs() < 1e-5);
            for (i, name) in names.iter().enumerate() {
                let gradient = first[position(&found.gradients[name])].to_f64().unwrap();
                let largest = gradient.iter().fold(0.0_f64, |most, g| most.max(g.abs()));
                assert!(largest > 1e-2);
                for (element, gradient) in gradient.iter().enumerate() {
                    let at = |distance: f64| {
                        let mut moved = feeds.clone();
                        let mut values = moved[given + i].1.to_f64().unwrap();
                        values[element] += distance;
                        moved[given + i].1 = Tensor::from_f64(DataType::Float, &[6, 6], &values).unwrap();
                        total(&moved)
                    };
                    // Losses are floats, and a step may change the order of two rows.
                    let error =
                        |step: f64| ((at(step) - at(-step)) / (2.0 * step) - gradient).abs() / largest;
                    let least = [1e-2, 3e-3, 1e-3].into_iter().map(error).fold(f64::INFINITY, f64::min);
                    assert!(least < 1e-2, "{name}[{element}]: {least}");
                }
            }
        }
    }

    #[test]
    fn distances_are_those_of_sorted_slices() {
        let mut rng = Rng::with_seed(9);
        let (loss, collapse) = term(RESIDUAL, 1.0, &mut rng);
        let mut feeds = vec![samples(&mut rng)];
        feeds.extend(collapse.draw(&mut rng).unwrap());
        let (x, directions) = (feeds[0].1.to_f64().unwrap(), feeds[1].1.to_f64().unwrap());
        let lengths =
            (0..DIRECTIONS).map(|k| (0..6).map(|j| directions[j * DIRECTIONS + k].powi(2)).sum::<f64>());
        assert!(lengths.into_iter().all(|length| (length - 1.0).abs() < 1e-5));
        // Y of the network itself, X without the block.
        let mut with = loss.model.clone();
        let outputs = with.graph.outputs().to_vec();
        with.graph.add_output(with.graph.find("y").unwrap());
        with.graph.remove_outputs(&outputs);
        with.graph.sweep();
        let y = run(&with, &feeds)[0].to_f64().unwrap();
        let x: Vec<_> = x.iter().map(|v| v.max(0.0)).collect();
        let along = |rows: &[f64], k: usize| {
            let one = |row: &[f64]| (0..6).map(|j| row[j] * directions[j * DIRECTIONS + k]).sum::<f64>();
            let mut all: Vec<_> = rows.chunks_exact(6).map(one).collect();
            all.sort_by(f64::total_cmp);
            all
        };
        let distance =
            |k: usize| along(&x, k).iter().zip(along(&y, k)).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / 8.0;
        let largest = (0..DIRECTIONS).map(distance).fold(0.0, f64::max);
        let expected = largest / (x.iter().map(|v| v * v).sum::<f64>() / 48.0);
        let got = run(&loss.model, &feeds)[1].single().unwrap();
        assert!((got / expected - 1.0).abs() < 1e-4, "{got} {expected}");
    }

    #[test]
    fn refuses_a_model_without_blocks() {
        let source = "g (float[8,6] x) => (float loss) { loss = ReduceSum<keepdims = 0>(x) }";
        let mut loss = LossModel { model: model(source), loss: "loss".into() };
        let why = Collapse::add(&mut loss, 1.0).err().unwrap().to_string();
        assert_eq!(why, "there is no residual block to collapse");
    }
}
