//! Construction of graphs with random weights in f64.

use super::reference::Array;
use ndarray::IxDyn;
use pare_graph::{Attribute, DataType, Declared, Dim, Fact, Graph, Node, Tensor, Type, Value, ValueId};
use std::sync::Arc;

/// A graph under construction, and an input for it.
pub struct Net {
    pub graph: Graph,
    pub input: Array,
    pub rng: fastrand::Rng,
    pub dtype: DataType,
    /// The latest value.
    pub last: ValueId,
    names: usize,
}

impl Net {
    /// A net with an input of this shape; negative sizes are symbolic.
    pub fn new(seed: u64, dtype: DataType, shape: &[i64]) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let sizes: Vec<_> = shape.iter().map(|n| n.unsigned_abs() as usize).collect();
        let input = Array::from_shape_fn(IxDyn(&sizes), |_| rng.f64() * 2.0 - 1.0);
        let dim = |(i, &n): (usize, &i64)| if n < 0 { Dim::symbol(&format!("n{i}")) } else { Dim::from(n) };
        let dims: Vec<_> = shape.iter().enumerate().map(dim).collect();
        let mut graph = Graph::new(Arc::new(vec![(String::new(), 18)]));
        let mut value = Value::named("x");
        value.declared = Some(declared(dtype, Some(&dims)));
        value.fact = Fact::tensor(dtype, dims);
        let last = graph.add_value(value).unwrap();
        graph.add_input(last);
        Self { graph, input, rng, dtype, last, names: 0 }
    }

    fn name(&mut self, what: &str) -> String {
        self.names += 1;
        format!("{what}{}", self.names)
    }

    /// A random constant.
    pub fn weight(&mut self, shape: &[usize]) -> ValueId {
        let values: Vec<_> = (0..shape.iter().product()).map(|_| self.rng.f64() * 2.0 - 1.0).collect();
        self.constant(shape, &values)
    }

    pub fn constant(&mut self, shape: &[usize], values: &[f64]) -> ValueId {
        let tensor = Tensor::from_f64(self.dtype, shape, values).unwrap();
        let name = self.name("w");
        self.graph.add_value(Value::constant(&name, tensor)).unwrap()
    }

    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        let name = self.name("i");
        self.graph.add_value(Value::constant(&name, Tensor::vector(values))).unwrap()
    }

    /// Appends a node with these inputs.
    pub fn node(&mut self, node: Node, inputs: &[ValueId]) -> ValueId {
        let name = self.name("v");
        let output = self.graph.add_value(Value::named(&name)).unwrap();
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.graph.add_node(node, &inputs, &[Some(output)]).unwrap();
        self.last = output;
        output
    }

    /// Appends a convolution of the last value.
    pub fn conv(&mut self, c: &Conv) -> ValueId {
        let weight = self.weight(&[&[c.outputs, c.inputs / c.group], &c.kernel[..]].concat());
        let mut inputs = vec![self.last, weight];
        if c.bias {
            inputs.push(self.weight(&[c.outputs]));
        }
        let ints = |v: &[usize]| Attribute::Ints(v.iter().map(|&i| i as i64).collect());
        let node = Node::new("Conv")
            .with("strides", ints(&c.strides))
            .with("dilations", ints(&c.dilations))
            .with("pads", ints(&c.pads))
            .with("group", c.group as i64);
        self.node(node, &inputs)
    }

    /// Makes the last value the output.
    pub fn finish(mut self) -> Self {
        self.graph.add_output(self.last);
        self.graph.reinfer().unwrap();
        let declared = declared(self.dtype, self.graph.value(self.last).fact.shape());
        self.graph.set_declared(self.last, Some(declared));
        self
    }
}

fn declared(dtype: DataType, shape: Option<&[Dim]>) -> Declared {
    let mut declared = Declared::default();
    declared.ty = Some(Type::tensor(dtype, shape));
    declared
}

/// The parameters of a convolution.
#[derive(Clone, Debug)]
pub struct Conv {
    pub inputs: usize,
    pub outputs: usize,
    pub group: usize,
    pub kernel: Vec<usize>,
    pub strides: Vec<usize>,
    pub dilations: Vec<usize>,
    pub pads: Vec<usize>,
    pub bias: bool,
}

impl Conv {
    /// A square kernel with stride 1 and a bias.
    pub fn square(inputs: usize, outputs: usize, taps: usize, pads: usize) -> Self {
        let (kernel, pads) = (vec![taps; 2], vec![pads; 4]);
        let (strides, dilations) = (vec![1; 2], vec![1; 2]);
        Self { inputs, outputs, group: 1, kernel, strides, dilations, pads, bias: true }
    }

    pub fn stride(self, stride: usize) -> Self {
        Self { strides: vec![stride; self.kernel.len()], ..self }
    }

    pub fn group(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Random parameters for `spatial` axes; without padding unless `padded`.
    pub fn random(rng: &mut fastrand::Rng, inputs: usize, spatial: usize, padded: bool) -> Self {
        let outputs = 6 * rng.usize(1..3);
        let mut each = |from, to| (0..spatial).map(|_| rng.usize(from..to)).collect::<Vec<_>>();
        let (kernel, strides, dilations) = (each(1, 5), each(1, 4), each(1, 3));
        let pads = if padded { [each(0, 4), each(0, 4)].concat() } else { vec![0; 2 * spatial] };
        let group = [1, 2, 3, 6][rng.usize(0..4)];
        Self { inputs, outputs, group, kernel, strides, dilations, pads, bias: rng.bool() }
    }

    /// The output size of an axis, if it is at least 1.
    pub fn size(&self, axis: usize, input: usize) -> Option<usize> {
        let room = input + self.pads[axis] + self.pads[axis + self.kernel.len()];
        Some(room.checked_sub((self.kernel[axis] - 1) * self.dilations[axis] + 1)? / self.strides[axis] + 1)
    }
}
