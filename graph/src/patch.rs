//! Patches: changes to a graph as data.

use crate::{Attribute, GraphError, Node, NodeId, NodeRef, Tensor, Value, ValueId, ValueRef};
use std::sync::atomic::{AtomicU64, Ordering};

/// A value of the graph, or one that a patch adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ref {
    /// A value of the graph.
    Old(ValueId),
    /// A value that a patch adds.
    New(NewValue),
}

/// A value that a patch adds. Only valid in that patch and its clones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewValue {
    patch: u64,
    pub(crate) index: usize,
}

impl From<ValueId> for Ref {
    fn from(id: ValueId) -> Self {
        Self::Old(id)
    }
}

impl From<ValueRef<'_>> for Ref {
    fn from(value: ValueRef<'_>) -> Self {
        Self::Old(value.id)
    }
}

/// A change to a graph, which [`Graph::apply`](crate::Graph::apply) checks and then applies as a unit. Nodes
/// and values that are unused afterwards are removed.
///
/// ```
/// use pare_graph::{Node, Patch, text};
///
/// let mut graph = text::parse_graph("g (float[2] x) => (float[2] y) { a = Neg(x) y = Neg(a) }", 18)?;
/// let y = graph.value_ref(graph.outputs()[0]);
/// let last = y.producer().unwrap();
/// let mut patch = Patch::at(last);
/// let abs = patch.node("abs", Node::new("Abs"), &[graph.inputs()[0].into()]);
/// patch.replace(y, abs);
/// graph.apply(patch)?;
/// assert_eq!(graph.node_count(), 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct Patch {
    id: u64,
    pub(crate) anchor: NodeId,
    pub(crate) values: Vec<Value>,
    pub(crate) edits: Vec<Edit>,
}

/// One change.
#[derive(Clone, Debug)]
pub(crate) enum Edit {
    AddNode(Box<NewNode>),
    Replace(Replacement),
    SetInput { node: NodeId, slot: usize, value: Ref },
    SetConstant { node: NodeId, slot: usize, constant: Box<Value> },
    SetData { constant: ValueId, tensor: Tensor },
    SetAttribute { node: NodeId, name: String, value: Option<Attribute> },
}

impl Edit {
    /// Returns true if the edit changes data, attributes or constants and connects nothing else.
    pub fn is_in_place(&self) -> bool {
        matches!(self, Self::SetData { .. } | Self::SetAttribute { .. } | Self::SetConstant { .. })
    }
}

#[derive(Clone, Debug)]
pub(crate) struct NewNode {
    pub node: Node,
    pub inputs: Vec<Option<Ref>>,
    pub outputs: Vec<Option<NewValue>>,
    /// The values that its subgraphs capture, by the names they have there.
    pub captures: Vec<(String, Ref)>,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Replacement {
    pub old: ValueId,
    pub new: Ref,
    /// True if the new value may have another shape.
    pub reshapes: bool,
}

/// The nodes that `apply` affected, for the worklist of a rewriter.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct Applied {
    /// Nodes that were added.
    pub added: Vec<NodeId>,
    /// Nodes whose inputs changed, or one of whose outputs lost a use.
    pub touched: Vec<NodeId>,
}

/// The reason why a patch cannot be applied. The graph is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PatchError {
    /// A value would change its type or shape.
    #[error("`{old}` ({old_fact}) cannot be replaced by `{new}` ({new_fact})")]
    Type {
        /// The value to be replaced.
        old: String,
        /// Its type and shape.
        old_fact: String,
        /// Its replacement.
        new: String,
        /// The type and shape of the replacement.
        new_fact: String,
    },
    /// An output of the graph would be an input, another output or a captured value.
    #[error("the output `{output}` cannot be replaced by `{by}`: both are part of the interface")]
    Boundary {
        /// The output.
        output: String,
        /// Its replacement.
        by: String,
    },
    /// An input or a captured value would be replaced.
    #[error("`{0}` has no producer and cannot be replaced")]
    NoProducer(String),
    /// A node would depend on its own output.
    #[error("the patch creates a cycle through `{0}`")]
    Cycle(String),
    /// New data for a value that is not an initializer, or that the caller may override.
    #[error("`{0}` is not a constant of the graph")]
    NotConstant(String),
    /// The patch refers to a node or value that has been removed.
    #[error("the patch refers to a node or value that has been removed")]
    Removed,
    /// The patch refers to a new value of another patch.
    #[error("the patch refers to a value that another patch adds")]
    ForeignValue,
    /// Shape inference fails after the change.
    #[error("shape inference fails after the patch: {0}")]
    Shape(String),
    /// The patch is invalid for this graph.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Patch {
    /// A patch whose nodes take the position of `at` in the file.
    pub fn at(at: NodeRef<'_>) -> Self {
        Self::anchored(at.id)
    }

    /// A patch whose nodes take the position of the node `anchor` in the file.
    pub fn anchored(anchor: NodeId) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), anchor, values: vec![], edits: vec![] }
    }

    fn new_value(&mut self, value: Value) -> NewValue {
        self.values.push(value);
        NewValue { patch: self.id, index: self.values.len() - 1 }
    }

    pub(crate) fn value(&mut self, value: Value) -> Ref {
        Ref::New(self.new_value(value))
    }

    /// Adds an initializer, named after `hint`.
    pub fn constant(&mut self, hint: &str, tensor: Tensor) -> Ref {
        self.value(Value::constant(hint, tensor))
    }

    /// Adds a node with one output, which is named after `hint`.
    pub fn node(&mut self, hint: &str, node: Node, inputs: &[Ref]) -> Ref {
        self.capturing(hint, node, inputs, &[])
    }

    /// Adds a node with omitted inputs (`None`) or several outputs, named after their hints (`None`:
    /// omitted).
    pub fn node_with(
        &mut self,
        node: Node,
        inputs: &[Option<Ref>],
        outputs: &[Option<&str>],
    ) -> Vec<Option<Ref>> {
        let outputs = outputs.iter().map(|o| o.map(|hint| Value::named(hint))).collect();
        self.add_node(node, inputs.to_vec(), outputs, vec![])
    }

    /// Adds a node with new outputs, whose subgraphs capture.
    pub(crate) fn add_node(
        &mut self,
        node: Node,
        inputs: Vec<Option<Ref>>,
        outputs: Vec<Option<Value>>,
        captures: Vec<(String, Ref)>,
    ) -> Vec<Option<Ref>> {
        let outputs: Vec<_> = outputs.into_iter().map(|o| o.map(|value| self.new_value(value))).collect();
        let refs = outputs.iter().map(|o| o.map(Ref::New)).collect();
        self.edits.push(Edit::AddNode(Box::new(NewNode { node, inputs, outputs, captures })));
        refs
    }

    /// Adds a node with one output whose subgraphs capture the values in `captures` by the given names.
    pub fn capturing(&mut self, hint: &str, node: Node, inputs: &[Ref], captures: &[(&str, Ref)]) -> Ref {
        let inputs = inputs.iter().copied().map(Some).collect();
        let captures = captures.iter().map(|&(name, value)| (name.to_owned(), value)).collect();
        self.add_node(node, inputs, vec![Some(Value::named(hint))], captures)[0].expect("it has one output")
    }

    /// Adds a copy of a node with one output that reads other inputs.
    pub fn copy(&mut self, like: NodeRef<'_>, inputs: &[Option<Ref>]) -> Ref {
        let hint = like.outputs().first().copied().flatten().map_or("", ValueRef::name);
        self.node_with(like.node().clone(), inputs, &[Some(hint)])[0].expect("it has one output")
    }

    /// Replaces all uses of `old` by `new`. A new value takes over the name of `old`.
    pub fn replace(&mut self, old: ValueRef<'_>, new: impl Into<Ref>) {
        self.edits.push(Edit::Replace(Replacement { old: old.id, new: new.into(), reshapes: false }));
    }

    /// As [`replace`](Self::replace), but the new value may have another shape; all shapes are inferred
    /// again. For changes that propagate to all later values, such as a smaller number of tokens.
    pub fn reshape(&mut self, old: ValueRef<'_>, new: impl Into<Ref>) {
        self.edits.push(Edit::Replace(Replacement { old: old.id, new: new.into(), reshapes: true }));
    }

    /// Sets the elements of an initializer, possibly with another shape; all shapes are inferred again.
    pub fn set_data(&mut self, constant: ValueId, tensor: Tensor) {
        self.edits.push(Edit::SetData { constant, tensor });
    }

    /// Sets (`Some`) or removes an attribute of a node; all shapes are inferred again.
    pub fn set_attribute(&mut self, node: NodeId, name: &str, value: Option<Attribute>) {
        self.edits.push(Edit::SetAttribute { node, name: name.into(), value });
    }

    /// Connects input `slot` of a node, which may be omitted so far, to a new initializer of any shape, named
    /// after `hint`; all shapes are inferred again. Other users of the previous value keep it.
    pub fn set_constant(&mut self, node: NodeId, slot: usize, hint: &str, tensor: Tensor) {
        let constant = Value::constant(hint, tensor).into();
        self.edits.push(Edit::SetConstant { node, slot, constant });
    }

    /// Connects input `slot` of a node to another value of compatible type and shape. Other users of the
    /// previous value keep it. Together with edits of data, attributes or constants, shapes are inferred again
    /// after all of them.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: impl Into<Ref>) {
        self.edits.push(Edit::SetInput { node, slot, value: value.into() });
    }

    /// Returns true if the patch changes nothing: added nodes are unused unless another edit refers to them.
    pub fn is_empty(&self) -> bool {
        self.edits.iter().all(|edit| matches!(edit, Edit::AddNode(_)))
    }

    pub(crate) fn new_nodes(&self) -> impl Iterator<Item = &NewNode> {
        self.edits.iter().filter_map(|edit| if let Edit::AddNode(node) = edit { Some(&**node) } else { None })
    }

    pub(crate) fn replacements(&self) -> impl Iterator<Item = Replacement> {
        self.edits.iter().filter_map(|edit| if let Edit::Replace(r) = edit { Some(*r) } else { None })
    }

    /// Node, slot and value of every [`Edit::SetInput`].
    pub(crate) fn new_inputs(&self) -> impl Iterator<Item = (NodeId, usize, Ref)> {
        self.edits.iter().filter_map(|edit| match *edit {
            Edit::SetInput { node, slot, value } => Some((node, slot, value)),
            _ => None,
        })
    }

    /// The values that new nodes, replacements and inputs refer to.
    pub(crate) fn refs(&self) -> impl Iterator<Item = Ref> {
        let of_node = |n: &NewNode| {
            let captures = n.captures.iter().map(|&(_, value)| value);
            n.inputs.iter().copied().flatten().chain(captures).collect::<Vec<_>>()
        };
        let by_nodes = self.new_nodes().flat_map(of_node);
        by_nodes.chain(self.replacements().map(|r| r.new)).chain(self.new_inputs().map(|(.., value)| value))
    }

    /// Returns true if `value` is a new value of this patch.
    pub(crate) fn has(&self, value: NewValue) -> bool {
        value.patch == self.id && value.index < self.values.len()
    }
}
