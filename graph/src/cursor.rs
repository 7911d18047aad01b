//! Read-only references to nodes and values, as rewrite rules use them. Lookups that fail are declines.

use crate::{Attribute, DataType, Dim, Edge, Graph, Node, NodeId, Tensor, Value, ValueId};

/// The reason why a rule does not apply to a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decline {
    /// The pattern does not match; not reported.
    Mismatch,
    /// The pattern matches, but rewriting it would be wrong or useless.
    Because(String),
}

impl Decline {
    /// A decline with a reason.
    pub fn because(why: impl Into<String>) -> Self {
        Self::Because(why.into())
    }
}

/// Declines with [`Decline::Mismatch`] unless the condition holds.
pub fn expect(condition: bool) -> Result<(), Decline> {
    if condition { Ok(()) } else { Err(Decline::Mismatch) }
}

/// Read-only reference to a node and its graph.
#[derive(Clone, Copy)]
pub struct NodeRef<'g> {
    /// The graph.
    pub graph: &'g Graph,
    /// The node.
    pub id: NodeId,
}

/// Read-only reference to a value and its graph.
#[derive(Clone, Copy)]
pub struct ValueRef<'g> {
    /// The graph.
    pub graph: &'g Graph,
    /// The value.
    pub id: ValueId,
}

impl<'g> NodeRef<'g> {
    /// The node.
    pub fn node(self) -> &'g Node {
        self.graph.node(self.id)
    }

    /// The operator name.
    pub fn op(self) -> &'g str {
        &self.node().op
    }

    /// Returns true if the node is the standard operator `op`.
    pub fn is(self, op: &str) -> bool {
        self.node().is(op)
    }

    /// The version of the operator set the node belongs to; 1 if its domain is not imported.
    pub fn opset(self) -> i64 {
        self.graph.opset(self.node().domain()).unwrap_or(1)
    }

    /// Operator and name for messages; see [`Graph::describe`].
    pub fn describe(self) -> String {
        self.graph.describe(self.id)
    }

    /// Input `slot`; declines if it is omitted.
    pub fn input(self, slot: usize) -> Result<ValueRef<'g>, Decline> {
        self.optional(slot).ok_or(Decline::Mismatch)
    }

    /// Input `slot`, unless it is omitted.
    pub fn optional(self, slot: usize) -> Option<ValueRef<'g>> {
        self.graph.input(self.id, slot).map(|id| self.graph.value_ref(id))
    }

    /// The inputs by slot.
    pub fn inputs(self) -> Vec<Option<ValueRef<'g>>> {
        self.graph.inputs_of(self.id).into_iter().map(|v| v.map(|id| self.graph.value_ref(id))).collect()
    }

    /// The outputs by slot.
    pub fn outputs(self) -> Vec<Option<ValueRef<'g>>> {
        self.graph.outputs_of(self.id).into_iter().map(|v| v.map(|id| self.graph.value_ref(id))).collect()
    }

    /// The first output; declines if other outputs are used.
    pub fn output(self) -> Result<ValueRef<'g>, Decline> {
        let first = self.graph.output(self.id, 0).ok_or(Decline::Mismatch)?;
        expect(self.graph.results(self.id).all(|o| o == first || self.graph.use_count(o) == 0))?;
        Ok(self.graph.value_ref(first))
    }

    /// An attribute.
    pub fn attr(self, name: &str) -> Option<&'g Attribute> {
        self.node().attributes.get(name)
    }

    /// An integer attribute, or its default.
    pub fn int(self, name: &str, default: i64) -> i64 {
        match self.attr(name) {
            Some(Attribute::Int(v)) => *v,
            _ => default,
        }
    }

    /// A float attribute, or its default.
    pub fn float(self, name: &str, default: f32) -> f64 {
        match self.attr(name) {
            Some(Attribute::Float(v)) => f64::from(*v),
            _ => f64::from(default),
        }
    }

    /// An integer list attribute.
    pub fn ints(self, name: &str) -> Option<&'g [i64]> {
        match self.attr(name) {
            Some(Attribute::Ints(v)) => Some(v),
            _ => None,
        }
    }

    /// A string attribute, or its default if it is absent or not UTF-8.
    pub fn string(self, name: &str, default: &'static str) -> &'g str {
        match self.attr(name) {
            Some(Attribute::String(v)) => std::str::from_utf8(v).unwrap_or(default),
            _ => default,
        }
    }

    /// Returns true if an attribute refers to an attribute of the calling node (in functions), so that its
    /// value is unknown.
    pub fn has_references(self) -> bool {
        self.node().attributes.values().any(|a| matches!(a, Attribute::Reference { .. }))
    }
}

impl<'g> ValueRef<'g> {
    /// The value.
    pub fn value(self) -> &'g Value {
        self.graph.value(self.id)
    }

    /// The name.
    pub fn name(self) -> &'g str {
        &self.value().name
    }

    /// The element type, if known.
    pub fn dtype(self) -> Option<DataType> {
        self.value().fact.dtype()
    }

    /// The shape, if known.
    pub fn shape(self) -> Option<&'g [Dim]> {
        self.value().fact.shape()
    }

    /// The number of dimensions; declines if it is unknown.
    pub fn rank(self) -> Result<usize, Decline> {
        let unknown = || Decline::because(format!("the rank of `{}` is unknown", self.name()));
        self.shape().map(<[Dim]>::len).ok_or_else(unknown)
    }

    /// The shape; declines unless all sizes are numbers.
    pub fn fixed_shape(self) -> Result<Vec<usize>, Decline> {
        let unknown = || Decline::because(format!("the shape of `{}` is not fixed", self.name()));
        self.value().fact.fixed_shape().ok_or_else(unknown)
    }

    /// The node whose first output the value is.
    pub fn producer(self) -> Option<NodeRef<'g>> {
        match self.graph.producer(self.id)? {
            (id, 0) => Some(NodeRef { graph: self.graph, id }),
            _ => None,
        }
    }

    /// The producer; declines unless it is the standard operator `op`.
    pub fn produced_by(self, op: &str) -> Result<NodeRef<'g>, Decline> {
        self.producer().filter(|at| at.is(op)).ok_or(Decline::Mismatch)
    }

    /// The uses by nodes. A use in a subgraph is a [`Edge::Capture`] by the node that contains it.
    pub fn users(self) -> Vec<(NodeRef<'g>, Edge)> {
        self.graph.users(self.id).into_iter().map(|(id, edge)| (self.graph.at(id), edge)).collect()
    }

    /// The only user, which reads the value as an input; declines if there are other uses, including graph
    /// outputs.
    pub fn sole_user(self) -> Result<NodeRef<'g>, Decline> {
        self.sole_use()?;
        match self.users().first() {
            Some(&(at, Edge::Input(_))) => Ok(at),
            _ => Err(Decline::Mismatch),
        }
    }

    /// Declines unless the value has exactly one use.
    pub fn sole_use(self) -> Result<(), Decline> {
        match self.graph.use_count(self.id) {
            1 => Ok(()),
            n => Err(Decline::because(format!("`{}` has {n} uses", self.name()))),
        }
    }

    /// The elements of a constant: an initializer that the caller cannot override, or the output of a
    /// `Constant` node, possibly followed by `Identity` nodes.
    pub fn constant(mut self) -> Result<&'g Tensor, Decline> {
        // A bound on chains of `Identity` nodes.
        for _ in 0..64 {
            if self.value().data.is_some() {
                let overridable =
                    || Decline::because(format!("`{}` can be overridden by the caller", self.name()));
                return self.value().tensor().ok_or_else(overridable);
            }
            let producer = self.producer().ok_or(Decline::Mismatch)?;
            if !producer.is("Identity") {
                return producer.node().literal().ok_or(Decline::Mismatch);
            }
            self = producer.input(0)?;
        }
        Err(Decline::Mismatch)
    }

    /// Returns true if the value is a constant; see [`ValueRef::constant`].
    pub fn is_constant(self) -> bool {
        self.constant().is_ok()
    }

    /// The elements of a constant in f64; declines if the value is not a constant, or not numeric.
    pub fn constant_f64(self) -> Result<Vec<f64>, Decline> {
        self.constant()?.to_f64().ok_or(Decline::Mismatch)
    }

    /// The element of a constant with one element, in f64.
    pub fn scalar(self) -> Result<f64, Decline> {
        self.constant()?.single().ok_or(Decline::Mismatch)
    }

    /// The elements of a constant integer tensor (as for axes, pads and shapes).
    pub fn constant_ints(self) -> Result<Vec<i64>, Decline> {
        self.constant()?.to_i64().ok_or(Decline::Mismatch)
    }
}

impl Graph {
    /// A reference to a node.
    pub fn at(&self, id: NodeId) -> NodeRef<'_> {
        NodeRef { graph: self, id }
    }

    /// A reference to a value.
    pub fn value_ref(&self, id: ValueId) -> ValueRef<'_> {
        ValueRef { graph: self, id }
    }
}
