//! The form of a node in another version of its operator.

use crate::framework::NodeBuilder;
use pare_graph::{Attribute, Decline, Node, NodeRef, Patch, Ref, Tensor};

/// The form of a node in the operator set of its graph, written from its form in an adjacent version.
pub(super) struct Form<'g> {
    /// The node in its present form.
    pub(super) at: NodeRef<'g>,
    /// The version of the operator set at the end of the conversion.
    pub(super) to: i64,
    /// Operator and attributes of the new form.
    pub(super) node: Node,
    inputs: Vec<Option<Ref>>,
    outputs: usize,
    patch: Patch,
    changed: bool,
}

impl<'g> Form<'g> {
    /// The present form.
    pub(super) fn of(at: NodeRef<'g>, to: i64) -> Self {
        let inputs: Vec<_> = at.inputs().into_iter().map(|value| value.map(Ref::from)).collect();
        let outputs = at.outputs().len();
        Self { at, to, node: at.node().clone(), inputs, outputs, patch: Patch::at(at), changed: false }
    }

    /// The number of inputs up to the last that is not omitted.
    pub(super) fn input_count(&self) -> usize {
        self.inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1)
    }

    /// Input `slot`.
    pub(super) fn input(&self, slot: usize) -> Option<Ref> {
        self.inputs.get(slot).copied().flatten()
    }

    /// Removes an attribute and returns it. Declines if its value is that of a call.
    pub(super) fn take(&mut self, name: &str) -> Result<Option<Attribute>, Decline> {
        let taken = self.node.attributes.shift_remove(name);
        self.changed |= taken.is_some();
        match taken {
            Some(Attribute::Reference { name: of, .. }) => Err(Decline::because(format!(
                "`{name}` of {} is the attribute `{of}` of a call; inline the function first",
                self.at.describe()
            ))),
            taken => Ok(taken),
        }
    }

    /// Sets an attribute.
    pub(super) fn set(&mut self, name: &str, value: impl Into<Attribute>) {
        self.changed = true;
        self.node.attributes.insert(name.into(), value.into());
    }

    /// Sets the operator.
    pub(super) fn rename(&mut self, op: &str) {
        self.changed = true;
        self.node.op = op.into();
    }

    /// Connects input `slot`.
    pub(super) fn connect(&mut self, slot: usize, value: Option<Ref>) {
        self.changed = true;
        self.inputs.resize(self.inputs.len().max(slot + 1), None);
        self.inputs[slot] = value;
    }

    /// Connects input `slot` to a new constant.
    pub(super) fn connect_constant(&mut self, slot: usize, what: &str, tensor: Tensor) {
        let value = self.builder().constant(what, tensor);
        self.connect(slot, Some(value));
    }

    /// Keeps only the first `count` outputs; the others must be unused.
    pub(super) fn keep_outputs(&mut self, count: usize) {
        self.changed |= self.outputs > count;
        self.outputs = self.outputs.min(count);
    }

    /// A builder of further nodes.
    pub(super) fn builder(&mut self) -> NodeBuilder<'g, '_> {
        NodeBuilder::new(self.at.graph, &mut self.patch, hint(self.at))
    }

    /// The patch that replaces the node by this form.
    pub(super) fn finish(mut self) -> Patch {
        let results = self.add();
        self.replace(&results)
    }

    /// [`finish`](Self::finish), or [`Decline::Mismatch`] if nothing changed.
    pub(super) fn finish_if_changed(self) -> Result<Patch, Decline> {
        if self.changed { Ok(self.finish()) } else { Err(Decline::Mismatch) }
    }

    /// Adds a node of this form, whose outputs replace nothing yet.
    pub(super) fn add(&mut self) -> Vec<Option<Ref>> {
        self.inputs.truncate(self.input_count());
        let outputs = self.at.outputs();
        let names: Vec<_> = outputs.iter().take(self.outputs).map(|o| o.map(|value| value.name())).collect();
        self.patch.node_with(self.node.clone(), &self.inputs, &names)
    }

    /// The patch that replaces the outputs of the node by `results`.
    pub(super) fn replace(mut self, results: &[Option<Ref>]) -> Patch {
        for (old, new) in self.at.outputs().into_iter().zip(results) {
            if let (Some(old), Some(new)) = (old, *new) {
                self.patch.replace(old, new);
            }
        }
        self.patch
    }
}

/// The prefix of the names of new values.
fn hint(at: NodeRef<'_>) -> &str {
    at.outputs().into_iter().flatten().next().map_or("", |value| value.name())
}
