//! Expressions over the values of a graph: every operation adds a node.

use crate::framework::node_builder::reshape_target;
use pare_graph::{DataType, Decline, Dim, Graph, Node, Tensor, Value, ValueId, ops::SliceAxis};
use std::{
    cell::{RefCell, RefMut},
    collections::HashMap,
    ops::{Add, Div, Mul, Neg, Sub},
};

/// A graph under construction.
pub(super) struct Tape {
    graph: RefCell<Graph>,
    /// The prefix of the names of new values.
    hint: RefCell<String>,
    /// Constants by element type, shape and bytes, shared by all nodes that were added.
    constants: RefCell<HashMap<(DataType, Vec<usize>, Vec<u8>), ValueId>>,
}

impl Tape {
    pub(super) fn new(graph: Graph) -> Self {
        Self { graph: RefCell::new(graph), hint: RefCell::default(), constants: RefCell::default() }
    }

    pub(super) fn finish(self) -> Graph {
        self.graph.into_inner()
    }

    /// Reads the graph.
    pub(super) fn read<T>(&self, read: impl FnOnce(&Graph) -> T) -> T {
        read(&self.graph.borrow())
    }

    pub(super) fn graph_mut(&self) -> RefMut<'_, Graph> {
        self.graph.borrow_mut()
    }

    /// Sets the prefix of the names of new values.
    pub(super) fn name_after(&self, hint: String) {
        self.hint.replace(hint);
    }

    pub(super) fn term(&self, id: ValueId) -> Term<'_> {
        Term { tape: self, id }
    }

    fn value(&self, graph: &mut Graph, value: impl FnOnce(&str) -> Value) -> ValueId {
        let name = graph.fresh_name(&self.hint.borrow());
        graph.add_value(value(&name)).expect("the name is fresh")
    }

    /// Adds a node with `outputs` outputs, and infers their types.
    pub(super) fn nodes(&self, mut node: Node, inputs: &[Option<Term<'_>>], outputs: usize) -> Vec<Term<'_>> {
        let mut graph = self.graph.borrow_mut();
        let ids: Vec<_> = (0..outputs).map(|_| self.value(&mut graph, Value::named)).collect();
        let inputs: Vec<_> = inputs.iter().map(|input| input.map(|term| term.id)).collect();
        let slots: Vec<_> = ids.iter().copied().map(Some).collect();
        // A copy of a node of the graph must not keep its name, which is unique.
        node.name = None;
        let node = graph.add_node(node, &inputs, &slots).expect("its outputs are new");
        graph.infer_node(node);
        ids.into_iter().map(|id| self.term(id)).collect()
    }

    /// Adds a node with one output.
    pub(super) fn node(&self, node: Node, inputs: &[Term<'_>]) -> Term<'_> {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.nodes(node, &inputs, 1)[0]
    }

    pub(super) fn constant(&self, tensor: Tensor) -> Term<'_> {
        let key = (tensor.dtype(), tensor.shape().to_vec(), tensor.bytes().to_vec());
        if let Some(&id) = self.constants.borrow().get(&key) {
            return self.term(id);
        }
        let id = self.value(&mut self.graph.borrow_mut(), |name| Value::constant(name, tensor));
        self.constants.borrow_mut().insert(key, id);
        self.term(id)
    }

    /// A vector of integers.
    pub(super) fn ints(&self, ints: &[i64]) -> Term<'_> {
        self.constant(Tensor::vector(ints))
    }

    /// The concatenation of vectors.
    pub(super) fn concat<'t>(&'t self, parts: &[Term<'t>], axis: i64) -> Term<'t> {
        match parts {
            [single] => *single,
            _ => self.node(Node::new("Concat").with("axis", axis), parts),
        }
    }

    /// The sum of terms of equal shape; `None` if there are none.
    pub(super) fn sum<'t>(&'t self, terms: &[Term<'t>]) -> Option<Term<'t>> {
        match *terms {
            [] => None,
            [single] => Some(single),
            [a, b] => Some(a + b),
            _ => Some(self.node(Node::new("Sum"), terms)),
        }
    }
}

/// A value of the graph under construction.
#[derive(Clone, Copy)]
pub(super) struct Term<'t> {
    tape: &'t Tape,
    pub(super) id: ValueId,
}

impl<'t> Term<'t> {
    /// The element type; that of most models where it is unknown.
    pub(super) fn dtype(self) -> DataType {
        self.tape.read(|graph| graph.value(self.id).fact.dtype()).unwrap_or(DataType::Float)
    }

    /// The shape; declines if it is unknown.
    pub(super) fn dims(self) -> Result<Vec<Dim>, Decline> {
        self.tape.read(|graph| {
            let value = graph.value(self.id);
            let unknown = || Decline::because(format!("the rank of `{}` is unknown", value.name));
            value.fact.shape().map(<[Dim]>::to_vec).ok_or_else(unknown)
        })
    }

    pub(super) fn rank(self) -> Result<usize, Decline> {
        Ok(self.dims()?.len())
    }

    /// The size of an axis; declines unless it is a number.
    pub(super) fn size(self, axis: usize) -> Result<usize, Decline> {
        let size = self.dims()?.get(axis).and_then(Dim::size);
        size.ok_or_else(|| Decline::because(format!("axis {axis} of `{}` has no fixed size", self.name())))
    }

    fn name(self) -> String {
        self.tape.read(|graph| graph.value(self.id).name.clone())
    }

    /// The elements of a constant with one element.
    pub(super) fn scalar(self) -> Option<f64> {
        self.tape.read(|graph| graph.value_ref(self.id).scalar().ok())
    }

    /// A number in the element type of this term.
    pub(super) fn number(self, value: f64) -> Term<'t> {
        self.numbers(&[], &[value])
    }

    /// Numbers in the element type of this term.
    pub(super) fn numbers(self, shape: &[usize], values: &[f64]) -> Term<'t> {
        let tensor = Tensor::from_f64(self.dtype(), shape, values).or(Tensor::from_f64(
            DataType::Float,
            shape,
            values,
        ));
        self.tape.constant(tensor.expect("the values fit their shape"))
    }

    /// An operator of one operand.
    pub(super) fn op(self, op: &str) -> Term<'t> {
        self.tape.node(Node::new(op), &[self])
    }

    /// An operator of two operands.
    pub(super) fn op2(self, op: &str, other: Self) -> Term<'t> {
        self.tape.node(Node::new(op), &[self, other])
    }

    pub(super) fn pow(self, exponent: f64) -> Term<'t> {
        self.op2("Pow", self.number(exponent))
    }

    pub(super) fn exp(self) -> Term<'t> {
        self.op("Exp")
    }

    pub(super) fn squared(self) -> Term<'t> {
        self * self
    }

    /// The condition that an element is larger than a number.
    pub(super) fn above(self, number: f64) -> Term<'t> {
        self.op2("Greater", self.number(number))
    }

    /// The condition that an element is smaller than a number.
    pub(super) fn below(self, number: f64) -> Term<'t> {
        self.op2("Less", self.number(number))
    }

    /// `yes` where this condition holds, and `no` elsewhere.
    pub(super) fn select(self, yes: Self, no: Self) -> Term<'t> {
        self.tape.node(Node::new("Where"), &[self, yes, no])
    }

    /// This term where the condition holds, and 0 elsewhere. A product takes a fifth of the time of `Where` in ONNX
    /// Runtime.
    pub(super) fn where_true(self, condition: Self) -> Term<'t> {
        self * condition.cast(self.dtype())
    }

    pub(super) fn cast(self, to: DataType) -> Term<'t> {
        if self.dtype() == to {
            return self;
        }
        self.tape.node(Node::new("Cast").with("to", i64::from(to.number())), &[self])
    }

    /// Applies a node that takes integers as its second input.
    fn with_ints(self, node: Node, ints: &[i64]) -> Term<'t> {
        self.tape.node(node, &[self, self.tape.ints(ints)])
    }

    /// A reduction along `axes`, which are kept with size 1.
    pub(super) fn reduce(self, op: &str, axes: &[usize]) -> Term<'t> {
        self.reduce_as(op, axes, true)
    }

    fn reduce_as(self, op: &str, axes: &[usize], keep: bool) -> Term<'t> {
        if axes.is_empty() {
            return self;
        }
        self.with_ints(Node::new(op).with("keepdims", i64::from(keep)), &signed(axes))
    }

    /// The sum along `axes`, which are kept with size 1.
    pub(super) fn total(self, axes: &[usize]) -> Term<'t> {
        self.reduce("ReduceSum", axes)
    }

    /// The sum along `axes`, which are removed.
    pub(super) fn collapsed(self, axes: &[usize]) -> Term<'t> {
        self.reduce_as("ReduceSum", axes, false)
    }

    /// The mean along `axes`, which are kept with size 1.
    pub(super) fn mean(self, axes: &[usize]) -> Term<'t> {
        self.reduce("ReduceMean", axes)
    }

    pub(super) fn reshape(self, target: &[i64]) -> Term<'t> {
        self.with_ints(Node::new("Reshape"), target)
    }

    /// The same elements in this shape.
    pub(super) fn shaped(self, to: &[Dim], like: impl FnOnce() -> Term<'t>) -> Term<'t> {
        let from = self.dims().ok();
        if from.as_deref() == Some(to) {
            return self;
        }
        match reshape_target(from.as_deref(), to) {
            Some(target) => self.reshape(&target),
            None => self.op2("Reshape", like().op("Shape")),
        }
    }

    /// The same elements in the shape of `other`.
    pub(super) fn reshape_like(self, other: Self) -> Result<Term<'t>, Decline> {
        Ok(self.shaped(&other.dims()?, || other))
    }

    /// The shape as a vector: a constant if it is fixed.
    pub(super) fn shape(self) -> Term<'t> {
        let fixed: Option<Vec<_>> =
            self.dims().ok().and_then(|dims| dims.iter().map(Dim::known).collect::<Option<_>>());
        match fixed {
            Some(sizes) => self.tape.ints(&sizes),
            None => self.op("Shape"),
        }
    }

    /// The size of one axis as a vector of one element.
    pub(super) fn size_vector(self, axis: usize) -> Term<'t> {
        if let Ok(size) = self.size(axis) {
            return self.tape.ints(&[size as i64]);
        }
        let axis = axis as i64;
        self.tape.node(Node::new("Shape").with("start", axis).with("end", axis + 1), &[self])
    }

    /// The number of elements, of this element type.
    pub(super) fn count(self) -> Term<'t> {
        let fixed = self.dims().ok().and_then(|dims| dims.iter().map(Dim::size).product::<Option<usize>>());
        match fixed {
            Some(count) => self.number(count as f64),
            None => self.op("Size").cast(self.dtype()),
        }
    }

    pub(super) fn unsqueeze(self, axes: &[usize]) -> Term<'t> {
        if axes.is_empty() {
            return self;
        }
        self.with_ints(Node::new("Unsqueeze"), &signed(axes))
    }

    pub(super) fn squeeze(self, axes: &[usize]) -> Term<'t> {
        if axes.is_empty() {
            return self;
        }
        self.with_ints(Node::new("Squeeze"), &signed(axes))
    }

    pub(super) fn transpose(self, perm: &[usize]) -> Term<'t> {
        if pare_graph::ops::is_identity(perm) {
            return self;
        }
        self.tape.node(Node::new("Transpose").with("perm", signed(perm)), &[self])
    }

    /// The transpose of the last two axes.
    pub(super) fn transposed(self) -> Result<Term<'t>, Decline> {
        let rank = self.rank()?;
        let mut perm: Vec<_> = (0..rank).collect();
        perm.swap(rank.saturating_sub(2), rank.saturating_sub(1));
        Ok(self.transpose(&perm))
    }

    pub(super) fn matmul(self, other: Self) -> Term<'t> {
        self.op2("MatMul", other)
    }

    /// `α·A'·B'` of two matrices, transposed where the flag is set.
    pub(super) fn gemm(self, trans_a: bool, other: Self, trans_b: bool, alpha: f64) -> Term<'t> {
        let flags = [("transA", trans_a), ("transB", trans_b)];
        let node = flags
            .into_iter()
            .filter(|flag| flag.1)
            .fold(Node::new("Gemm"), |node, (name, _)| node.with(name, 1_i64));
        let node = if alpha == 1.0 { node } else { node.with("alpha", alpha as f32) };
        self.tape.node(node, &[self, other])
    }

    /// Broadcast to the shape of `other`.
    pub(super) fn expand_like(self, other: Self) -> Term<'t> {
        if self.dims().is_ok() && self.dims() == other.dims() {
            return self;
        }
        self.op2("Expand", other.shape())
    }

    /// Zeros of the shape and type of this term.
    pub(super) fn zeros(self) -> Term<'t> {
        self.number(0.0).op2("Expand", self.shape())
    }

    /// The sum over the axes along which a value of the shape of `value` was broadcast to the shape of this term.
    pub(super) fn sum_to(self, value: Self) -> Result<Term<'t>, Decline> {
        let (from, to) = (self.dims()?, value.dims()?);
        if from == to {
            return Ok(self);
        }
        let Some(lead) = from.len().checked_sub(to.len()) else { return Err(Decline::Mismatch) };
        let removed: Vec<_> = (0..lead).collect();
        let mut axes = removed.clone();
        let mut open = false;
        for (axis, dim) in (lead..).zip(&to) {
            let same = from[axis] == *dim;
            match (from[axis].known(), dim.known()) {
                (_, Some(1)) if !same => axes.push(axis),
                (Some(a), Some(b)) if a != b => return Err(Decline::Mismatch),
                // Both have this size: an operand is as large as the result unless its size is 1.
                (_, Some(_)) => {}
                _ => open |= !same,
            }
        }
        let sum = if axes == removed { self.collapsed(&axes) } else { self.total(&axes).squeeze(&removed) };
        Ok(if open { sum.sum_where_one(value) } else { sum })
    }

    /// The sum over the axes that have size 1 in `value` only, which are known when the graph runs.
    fn sum_where_one(self, value: Self) -> Term<'t> {
        let differ = self.op("Shape").op2("Equal", value.op("Shape")).op("Not");
        let axes = differ.op("NonZero").reshape(&[-1]);
        self.tape.node(Node::new("ReduceSum").with("noop_with_empty_axes", 1_i64), &[self, axes])
    }

    /// Slices with constant positions.
    pub(super) fn slice(self, cuts: &[SliceAxis]) -> Term<'t> {
        let ints = |of: fn(&SliceAxis) -> i64| self.tape.ints(&cuts.iter().map(of).collect::<Vec<_>>());
        let inputs = [self, ints(|c| c.start), ints(|c| c.end), ints(|c| c.axis as i64), ints(|c| c.step)];
        let unit = cuts.iter().all(|cut| cut.step == 1);
        self.tape.node(Node::new("Slice"), &inputs[..if unit { 4 } else { 5 }])
    }

    /// The elements at these indices of an axis.
    pub(super) fn take(self, axis: usize, indices: &[usize]) -> Term<'t> {
        self.with_ints(Node::new("Gather").with("axis", axis as i64), &signed(indices))
    }

    /// Adds zeros before and after each axis; negative pads remove elements.
    pub(super) fn pad(self, pads: &[(i64, i64)]) -> Term<'t> {
        if pads.iter().all(|&pad| pad == (0, 0)) {
            return self;
        }
        let ints: Vec<_> = pads.iter().map(|p| p.0).chain(pads.iter().map(|p| p.1)).collect();
        self.with_ints(Node::new("Pad"), &ints)
    }

    /// Splits an axis into parts of these sizes.
    pub(super) fn split(self, axis: usize, sizes: Self, parts: usize) -> Vec<Term<'t>> {
        let node = Node::new("Split").with("axis", axis as i64);
        self.tape.nodes(node, &[Some(self), Some(sizes)], parts)
    }

    pub(super) fn tape(self) -> &'t Tape {
        self.tape
    }
}

/// Axes as ONNX counts them.
pub(super) fn signed(axes: &[usize]) -> Vec<i64> {
    axes.iter().map(|&axis| axis as i64).collect()
}

macro_rules! arithmetic {
    ($($Trait:ident $method:ident),*) => {$(
        impl<'t> $Trait<Term<'t>> for Term<'t> {
            type Output = Term<'t>;
            fn $method(self, other: Term<'t>) -> Term<'t> {
                self.op2(stringify!($Trait), other)
            }
        }
        impl<'t> $Trait<f64> for Term<'t> {
            type Output = Term<'t>;
            fn $method(self, other: f64) -> Term<'t> {
                self.op2(stringify!($Trait), self.number(other))
            }
        }
        impl<'t> $Trait<Term<'t>> for f64 {
            type Output = Term<'t>;
            fn $method(self, other: Term<'t>) -> Term<'t> {
                other.number(self).op2(stringify!($Trait), other)
            }
        }
    )*};
}
arithmetic!(Add add, Sub sub, Mul mul, Div div);

impl<'t> Neg for Term<'t> {
    type Output = Term<'t>;
    fn neg(self) -> Term<'t> {
        self.op("Neg")
    }
}
