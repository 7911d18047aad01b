//! Construction of nodes in the form of their graph's operator set: newer sets take as inputs what older ones
//! take as attributes.

use pare_graph::{Attribute, DataType, Dim, Graph, Node, Patch, Ref, Tensor, TensorError};

/// Adds nodes to a patch for one graph.
pub(crate) struct NodeBuilder<'g, 'p> {
    graph: &'g Graph,
    patch: &'p mut Patch,
    /// The prefix of the names of new values.
    hint: &'g str,
}

impl<'g, 'p> NodeBuilder<'g, 'p> {
    pub(crate) fn new(graph: &'g Graph, patch: &'p mut Patch, hint: &'g str) -> Self {
        Self { graph, patch, hint }
    }

    fn opset(&self) -> i64 {
        self.graph.opset("").unwrap_or(1)
    }

    /// Adds a constant: an initializer, or a `Constant` node in functions, which have no initializers.
    pub(crate) fn constant(&mut self, what: &str, tensor: Tensor) -> Ref {
        let hint = format!("{}_{what}", self.hint);
        if !self.graph.is_function {
            return self.patch.constant(&hint, tensor);
        }
        self.patch.node(&hint, Node::new("Constant").with("value", Attribute::Tensor(tensor)), &[])
    }

    /// Adds a node with one output.
    pub(crate) fn node(&mut self, node: Node, inputs: &[Ref]) -> Ref {
        self.patch.node(self.hint, node, inputs)
    }

    /// Adds a node with several outputs, whose names end in `names`.
    pub(crate) fn nodes<const N: usize>(&mut self, node: Node, inputs: &[Ref], names: [&str; N]) -> [Ref; N] {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        let names = names.map(|name| format!("{}_{name}", self.hint));
        let hints: Vec<_> = names.iter().map(|name| Some(name.as_str())).collect();
        let outputs = self.patch.node_with(node, &inputs, &hints);
        std::array::from_fn(|i| outputs[i].expect("each output has a name"))
    }

    /// Adds a node with a list of integers that is an attribute before operator set `since` and an input from
    /// then on.
    fn with_ints(&mut self, mut node: Node, x: Ref, name: &str, ints: &[i64], since: i64) -> Ref {
        let mut inputs = vec![x];
        if self.opset() < since {
            node = node.with(name, ints.to_vec());
        } else {
            inputs.push(self.constant(name, Tensor::vector(ints)));
        }
        self.node(node, &inputs)
    }

    pub(crate) fn reshape(&mut self, x: Ref, target: &[i64]) -> Ref {
        self.with_ints(Node::new("Reshape"), x, "shape", target, 5)
    }

    /// Reshapes to these sizes, of which some are 0: no size is copied (operator set 14).
    pub(crate) fn reshape_empty(&mut self, x: Ref, sizes: &[i64]) -> Ref {
        self.with_ints(Node::new("Reshape").with("allowzero", 1_i64), x, "shape", sizes, 5)
    }

    pub(crate) fn squeeze(&mut self, x: Ref, axes: &[i64]) -> Ref {
        self.with_ints(Node::new("Squeeze"), x, "axes", axes, 13)
    }

    pub(crate) fn unsqueeze(&mut self, x: Ref, axes: &[i64]) -> Ref {
        self.with_ints(Node::new("Unsqueeze"), x, "axes", axes, 13)
    }

    pub(crate) fn transpose(&mut self, x: Ref, perm: &[usize]) -> Ref {
        let perm: Vec<_> = perm.iter().map(|&p| p as i64).collect();
        self.node(Node::new("Transpose").with("perm", perm), &[x])
    }

    /// Adds a reduction along `axes`. `ReduceSum` takes them as an input since set 13, the others since 18.
    pub(crate) fn reduce(&mut self, op: &str, x: Ref, axes: &[i64], keepdims: bool) -> Ref {
        let since = if op == "ReduceSum" { 13 } else { 18 };
        let node = Node::new(op).with("keepdims", i64::from(keepdims));
        self.with_ints(node, x, "axes", axes, since)
    }

    /// Clips numbers of this type to `[low, high]`; the bounds are inputs since set 11, and an infinite one is
    /// omitted.
    pub(crate) fn clip(&mut self, x: Ref, dtype: DataType, low: f64, high: f64) -> Result<Ref, TensorError> {
        let bounds = [("min", low), ("max", high)].map(|(name, bound)| (name, bound, bound.is_finite()));
        if self.opset() < 11 {
            let given = bounds.into_iter().filter(|bound| bound.2);
            let node = given.fold(Node::new("Clip"), |node, (name, bound, _)| node.with(name, bound as f32));
            return Ok(self.node(node, &[x]));
        }
        let mut inputs = vec![Some(x)];
        for (name, bound, given) in bounds {
            let tensor = Tensor::from_f64(dtype, &[], &[bound])?;
            inputs.push(given.then(|| self.constant(name, tensor)));
        }
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        Ok(self.patch.node_with(Node::new("Clip"), &inputs, &[Some(self.hint)])[0]
            .expect("it has one output"))
    }

    /// Splits `x` along `axis` into parts of these sizes, named `hints`.
    pub(crate) fn split(&mut self, x: Ref, axis: usize, sizes: &[i64], hints: &[&str]) -> Vec<Option<Ref>> {
        let mut node = Node::new("Split").with("axis", axis as i64);
        let mut inputs = vec![Some(x)];
        if self.opset() < 13 {
            node = node.with("split", sizes.to_vec());
        } else {
            inputs.push(Some(self.constant("split", Tensor::vector(sizes))));
        }
        let hints: Vec<_> = hints.iter().copied().map(Some).collect();
        self.patch.node_with(node, &inputs, &hints)
    }

    /// Slices `x`. Steps other than 1 need operator set 10.
    pub(crate) fn slice(&mut self, x: Ref, cuts: &[pare_graph::ops::SliceAxis]) -> Ref {
        let axes: Vec<_> = cuts.iter().map(|c| c.axis as i64).collect();
        let starts: Vec<_> = cuts.iter().map(|c| c.start).collect();
        let ends: Vec<_> = cuts.iter().map(|c| c.end).collect();
        let steps: Vec<_> = cuts.iter().map(|c| c.step).collect();
        if self.opset() < 10 {
            let node = Node::new("Slice").with("axes", axes).with("ends", ends).with("starts", starts);
            return self.node(node, &[x]);
        }
        let mut inputs = vec![x];
        for (name, ints) in [("starts", &starts), ("ends", &ends), ("axes", &axes)] {
            inputs.push(self.constant(name, Tensor::vector(ints)));
        }
        if steps.iter().any(|&s| s != 1) {
            inputs.push(self.constant("steps", Tensor::vector(&steps)));
        }
        self.node(Node::new("Slice"), &inputs)
    }
}

/// The target with which `Reshape` turns shape `from` into `to` for all values of the symbolic dims: a single
/// symbolic size is inferred (-1); of several, those at an unchanged position are copied (0). `None` if more
/// than one of the others remains.
///
/// ONNX Runtime runs a vision transformer up to 10 % faster with -1 for the batch than with 0.
pub(crate) fn reshape_target(from: Option<&[Dim]>, to: &[Dim]) -> Option<Vec<i64>> {
    let symbols = to.iter().filter(|d| d.known().is_none()).count();
    let empty = to.iter().any(|d| d.known() == Some(0));
    let copied = |i: usize| (symbols > 1 || empty) && from.and_then(|f| f.get(i)) == Some(&to[i]);
    let mut open = false;
    let target = to.iter().enumerate().map(|(i, dim)| match dim.known() {
        Some(n) if n > 0 || n == 0 && copied(i) => Some(n),
        None if copied(i) => Some(0),
        None if !open => {
            open = true;
            Some(-1)
        }
        // A size of 0 too: without `allowzero` (set 14), 0 means a copied size.
        _ => None,
    });
    let target: Vec<_> = target.collect::<Option<_>>()?;
    // The size for -1 is determined only if no other size is 0.
    (!open || !empty).then_some(target)
}
