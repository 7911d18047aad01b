//! Changes to a graph, checked as a whole before any of it happens.

use crate::{
    Attribute, Fact, Graph, GraphError, Node, NodeId, NodeRef, Tensor, Value, ValueId, ValueRef,
    graph::{Rank, rename_captures},
};

/// A value that exists already, or one that the patch makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ref {
    /// A value of the graph.
    Old(ValueId),
    /// A value that the patch adds, by its place in the patch.
    New(usize),
}

impl From<ValueId> for Ref {
    fn from(id: ValueId) -> Self {
        Self::Old(id)
    }
}

impl From<ValueRef<'_>> for Ref {
    fn from(wired: ValueRef<'_>) -> Self {
        Self::Old(wired.id)
    }
}

/// A change: nodes and constants to add, values to replace by others, data and attributes to set.
/// What nobody uses afterwards is removed.
#[derive(Clone, Debug)]
pub struct Patch {
    anchor: NodeId,
    values: Vec<Value>,
    nodes: Vec<NewNode>,
    replaced: Vec<(ValueId, Ref)>,
    /// Values among the replaced ones that may be given another shape.
    reshaped: Vec<ValueId>,
    data: Vec<(ValueId, Tensor)>,
    attributes: Vec<(NodeId, String, Option<Attribute>)>,
    constants: Vec<(NodeId, usize, Value)>,
    inputs: Vec<(NodeId, usize, Ref)>,
}

#[derive(Clone, Debug)]
struct NewNode {
    node: Node,
    inputs: Vec<Option<Ref>>,
    outputs: Vec<Option<usize>>,
    /// What stands for the values that its subgraphs capture under these names.
    captures: Vec<(String, Ref)>,
}

/// What `apply` did, for the worklist of a rewriter.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Nodes that were added.
    pub added: Vec<NodeId>,
    /// Nodes whose inputs changed, or one of whose outputs lost a use.
    pub touched: Vec<NodeId>,
}

/// Why a patch cannot be applied. The graph is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// A value would change its type or shape.
    #[error("`{old}` ({old_fact}) would be replaced by `{new}` ({new_fact})")]
    Type {
        /// The value to be replaced.
        old: String,
        /// What is known about it.
        old_fact: String,
        /// The value to take its place.
        new: String,
        /// What is known about that.
        new_fact: String,
    },
    /// An output of the graph would be an input, another output or an outer value: it needs a node of its own.
    #[error("the output `{output}` cannot be `{by}` itself: both are part of the interface")]
    Boundary {
        /// The output.
        output: String,
        /// The value that was to take its place.
        by: String,
    },
    /// An input, or a value of an outer graph, cannot be replaced.
    #[error("`{0}` is made by no node and cannot be replaced")]
    NoProducer(String),
    /// The new nodes would need what they make.
    #[error("the change would make a cycle through `{0}`")]
    Cycle(String),
    /// New data for a value that is no initializer, or one that the caller may override.
    #[error("`{0}` is no constant of the graph")]
    NotConstant(String),
    /// Shapes no longer fit together.
    #[error("shapes no longer fit: {0}")]
    Shape(String),
    /// The graph refuses.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

impl Patch {
    /// A patch whose nodes take the place of `at` in the file.
    pub fn at(at: NodeRef<'_>) -> Self {
        Self::anchored(at.id)
    }

    /// A patch whose nodes take the place of the node `anchor` in the file.
    pub fn anchored(anchor: NodeId) -> Self {
        let (values, nodes, replaced, data, attributes) = (vec![], vec![], vec![], vec![], vec![]);
        let (constants, inputs) = (vec![], vec![]);
        Self { anchor, values, nodes, replaced, reshaped: vec![], data, attributes, constants, inputs }
    }

    pub(crate) fn value(&mut self, value: Value) -> Ref {
        self.values.push(value);
        Ref::New(self.values.len() - 1)
    }

    /// An initializer, named after `hint`.
    pub fn constant(&mut self, hint: &str, tensor: Tensor) -> Ref {
        self.value(Value::constant(hint, tensor))
    }

    /// A node with one output, which is named after `hint`.
    pub fn node(&mut self, hint: &str, node: Node, inputs: &[Ref]) -> Ref {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.node_with(node, &inputs, &[Some(hint)])[0].expect("one output was asked for")
    }

    /// A node with omitted inputs (`None`) or several outputs, named after their hints (`None`: omitted).
    pub fn node_with(
        &mut self,
        node: Node,
        inputs: &[Option<Ref>],
        outputs: &[Option<&str>],
    ) -> Vec<Option<Ref>> {
        let outputs: Vec<_> = outputs.iter().map(|o| o.map(|hint| self.value(Value::named(hint)))).collect();
        self.inlined(node, inputs.to_vec(), outputs.clone(), vec![]);
        outputs
    }

    /// A node that makes new values of the patch, and whose subgraphs capture.
    pub(crate) fn inlined(
        &mut self,
        node: Node,
        inputs: Vec<Option<Ref>>,
        outputs: Vec<Option<Ref>>,
        captures: Vec<(String, Ref)>,
    ) {
        let new = |r| if let Some(Ref::New(i)) = r { Some(i) } else { None };
        let outputs = outputs.into_iter().map(new).collect();
        self.nodes.push(NewNode { node, inputs, outputs, captures });
    }

    /// A node with one output whose subgraphs capture values of this patch, each by the name it is given here.
    pub fn capturing(&mut self, hint: &str, node: Node, inputs: &[Ref], captures: &[(&str, Ref)]) -> Ref {
        let output = self.value(Value::named(hint));
        let captures = captures.iter().map(|&(name, by)| (name.to_owned(), by)).collect();
        self.inlined(node, inputs.iter().copied().map(Some).collect(), vec![Some(output)], captures);
        output
    }

    /// A copy of a node with one output, fed by other inputs.
    pub fn copy(&mut self, like: NodeRef<'_>, inputs: &[Option<Ref>]) -> Ref {
        let hint = like.outputs().first().copied().flatten().map_or("", ValueRef::name);
        self.node_with(like.node().clone(), inputs, &[Some(hint)])[0].expect("one output was asked for")
    }

    /// Everything that uses `old` uses `new` instead. A new value takes over the name of the old one.
    pub fn replace(&mut self, old: ValueRef<'_>, new: impl Into<Ref>) {
        self.replaced.push((old.id, new.into()));
    }

    /// As [`replace`](Self::replace), whatever the shape of the new value: all shapes are inferred anew. For changes that
    /// go on through all that follows, such as fewer tokens.
    pub fn reshape(&mut self, old: ValueRef<'_>, new: impl Into<Ref>) {
        self.reshaped.push(old.id);
        self.replace(old, new);
    }

    /// Give an initializer new elements, perhaps of another shape: all shapes are inferred anew.
    pub fn set_data(&mut self, constant: ValueId, tensor: Tensor) {
        self.data.push((constant, tensor));
    }

    /// Set (`Some`) or remove an attribute of a node: all shapes are inferred anew.
    pub fn set_attribute(&mut self, node: NodeId, name: &str, value: Option<Attribute>) {
        self.attributes.push((node, name.into(), value));
    }

    /// Let input `slot` of a node read a new constant, named after `hint`, of whatever shape: all shapes are inferred
    /// anew. What it read before stays for others; where the slot was omitted it is there now.
    pub fn set_constant(&mut self, node: NodeId, slot: usize, hint: &str, tensor: Tensor) {
        self.constants.push((node, slot, Value::constant(hint, tensor)));
    }

    /// Let input `slot` of a node read another value of a type and shape that fit. What it read before stays for others.
    pub fn set_input(&mut self, node: NodeId, slot: usize, value: impl Into<Ref>) {
        self.inputs.push((node, slot, value.into()));
    }

    /// Whether the patch would change nothing.
    pub fn is_empty(&self) -> bool {
        let edits = self.data.len() + self.attributes.len() + self.constants.len() + self.inputs.len();
        self.replaced.is_empty() && edits == 0
    }
}

impl Graph {
    /// Check the whole patch, then make all of its changes; on an error the graph is as it was.
    pub fn apply(&mut self, patch: Patch) -> Result<Applied, PatchError> {
        let edits = patch.data.len() + patch.attributes.len() + patch.constants.len();
        if edits == 0 && patch.reshaped.is_empty() {
            return self.splice(patch);
        }
        // Edits in place cannot be taken back one by one. Copies are cheap: tensors share their bytes.
        let before = self.clone();
        let result = self.edit(patch);
        if result.is_err() {
            *self = before;
        }
        result
    }

    fn edit(&mut self, mut patch: Patch) -> Result<Applied, PatchError> {
        let mut touched = vec![];
        for (id, tensor) in std::mem::take(&mut patch.data) {
            if self.value(id).tensor().is_none() || self.value(id).is_captured() {
                return Err(PatchError::NotConstant(self.value(id).name.clone()));
            }
            let value = self.value_mut(id);
            let seq = value.seq;
            let (name, role) = (std::mem::take(&mut value.name), value.role);
            *value = Value { role, seq, ..Value::constant(&name, tensor) };
            touched.extend(self.users(id).iter().map(|u| u.0));
        }
        for (id, name, attribute) in std::mem::take(&mut patch.attributes) {
            let attributes = &mut self.node_mut(id).attributes;
            match attribute {
                Some(attribute) => drop(attributes.insert(name, attribute)),
                None => drop(attributes.shift_remove(&name)),
            }
            touched.push(id);
        }
        for (node, slot, value) in std::mem::take(&mut patch.constants) {
            let name = self.fresh_name(&value.name);
            let id = self.add_value(Value { name, ..value })?;
            self.rewire(node, slot, id);
            touched.push(node);
        }
        let infer = |graph: &mut Self| graph.reinfer().map_err(|e| PatchError::Shape(e.to_string()));
        let reshapes = !patch.reshaped.is_empty();
        // Edits that go with another shape fit only together with it.
        if !reshapes {
            infer(self)?;
        }
        let mut applied = self.splice(patch)?;
        if reshapes {
            infer(self)?;
        }
        applied.touched.extend(touched.into_iter().filter(|&n| self.has_node(n)));
        Ok(applied)
    }

    fn splice(&mut self, patch: Patch) -> Result<Applied, PatchError> {
        let place = self.place(&patch)?;
        let (ids, added) = self.add(&patch, place)?;
        let new = |r: Ref| match r {
            Ref::Old(id) => id,
            Ref::New(i) => ids[i],
        };
        let shared = |old: ValueId, by: Ref| {
            let twin = |r: &&(ValueId, Ref)| r.0 != old && r.1 == by && self.value(r.0).is_output();
            patch.replaced.iter().find(twin).filter(|_| self.value(old).is_output())
        };
        let fits = |&(old, by): &(ValueId, Ref)| match shared(old, by) {
            Some(&(twin, _)) => Err(self.boundary(old, twin)),
            None => self.fits(old, by, new(by), patch.reshaped.contains(&old)),
        };
        let reads = |&(node, slot, by): &(NodeId, usize, Ref)| self.may_read(node, slot, new(by));
        let fit =
            patch.replaced.iter().try_for_each(fits).and_then(|()| patch.inputs.iter().try_for_each(reads));
        if let Err(error) = fit {
            self.discard(&added, &ids);
            return Err(error);
        }

        let (mut touched, mut named) = (vec![], vec![]);
        for &(old, by) in &patch.replaced {
            let by_id = new(by);
            touched.extend(self.users(old).into_iter().map(|u| u.0).filter(|u| !added.contains(u)));
            if let Some(fact) = self.value(old).fact.unify(&self.value(by_id).fact) {
                self.set_fact(by_id, fact);
            }
            let takes_name =
                self.value(old).is_output() || matches!(by, Ref::New(_)) && !named.contains(&by_id);
            named.push(by_id);
            self.redirect(old, by_id, &added);
            if takes_name {
                let name = self.value(old).name.clone();
                let declared = self.value(old).declared.clone();
                let spare = self.fresh_name(&name);
                self.rename(old, spare);
                self.rename(by_id, name);
                self.set_declared(by_id, declared);
            }
        }
        for &(node, slot, by) in &patch.inputs {
            self.rewire(node, slot, new(by));
            touched.push(node);
        }
        let start = patch.replaced.iter().map(|r| r.0).chain(ids.iter().copied());
        touched.extend(self.remove_unused(start.collect::<Vec<_>>()));
        if place.is_none() {
            self.renumber();
        }
        touched.retain(|&n| self.has_node(n));
        let added = added.into_iter().filter(|&n| self.has_node(n)).collect();
        Ok(Applied { added, touched })
    }

    /// The rank for the first new node: behind everything the new nodes need, before everything that will need
    /// them. `None` if no rank is free there; then ranks are given anew afterwards.
    fn place<'p>(&self, patch: &'p Patch) -> Result<Option<Rank>, PatchError> {
        let old = |r: &Ref| if let Ref::Old(id) = r { Some(*id) } else { None };
        let by = patch.replaced.iter().map(|(_, by)| by).chain(patch.inputs.iter().map(|(.., by)| by));
        let used = |n: &'p NewNode| n.inputs.iter().flatten().chain(n.captures.iter().map(|c| &c.1));
        let needs = patch.nodes.iter().flat_map(used).chain(by).filter_map(old);
        let needs: Vec<_> = needs.collect();
        let made_at = |&v: &ValueId| self.producer(v).map(|(n, _)| self.node(n).rank);
        let has_place = !patch.nodes.is_empty() && self.has_node(patch.anchor);
        let anchor = has_place.then(|| self.node(patch.anchor).rank);
        let Rank(major, minor) = needs.iter().filter_map(made_at).chain(anchor).max().unwrap_or_default();
        let last = Rank(major, minor + 1 + patch.nodes.len() as u64);
        let of_replaced = || patch.replaced.iter().flat_map(|(old, _)| self.users(*old)).map(|u| u.0);
        let users = || of_replaced().chain(patch.inputs.iter().map(|i| i.0));
        if users().all(|user| self.node(user).rank >= last) {
            return Ok(Some(Rank(major, minor + 1)));
        }
        // Ranks cannot tell: walk.
        for user in users() {
            let needed = |&&v: &&ValueId| {
                let own = patch.replaced.iter().any(|r| r.0 == v);
                !own && self.reaches(user, v)
            };
            if let Some(&value) = needs.iter().find(needed) {
                return Err(PatchError::Cycle(self.value(value).name.clone()));
            }
        }
        Ok(None)
    }

    /// Add the new values and nodes, wired to nothing that exists but their inputs.
    fn add(&mut self, patch: &Patch, place: Option<Rank>) -> Result<(Vec<ValueId>, Vec<NodeId>), PatchError> {
        let mut ids = vec![];
        for value in &patch.values {
            let name = self.fresh_name(&value.name);
            ids.push(self.add_value(Value { name, ..value.clone() })?);
        }
        let mut added = vec![];
        let Rank(major, minor) = place.unwrap_or_else(|| self.node(patch.anchor).rank);
        for (i, new) in patch.nodes.iter().enumerate() {
            let at = |r: &Ref| match *r {
                Ref::Old(id) => id,
                Ref::New(i) => ids[i],
            };
            let inputs: Vec<_> = new.inputs.iter().map(|r| r.as_ref().map(at)).collect();
            let outputs: Vec<_> = new.outputs.iter().map(|o| o.map(|i| ids[i])).collect();
            let rank = Rank(major, minor + i as u64);
            let mut node = new.node.clone();
            let captures = new.captures.iter().map(|(name, r)| (name.as_str(), at(r)));
            self.recapture(&mut node, captures.collect());
            added.push(self.add_node_at(node, rank, &inputs, &outputs)?);
        }
        for &node in &added {
            self.infer_node(node);
        }
        Ok((ids, added))
    }

    /// Let the subgraphs of a node that is to be added capture these values under their names here.
    fn recapture(&self, node: &mut Node, mut captures: Vec<(&str, ValueId)>) {
        captures.retain(|&(name, id)| self.value(id).name != name);
        // By way of names that nobody has, since a new name may be the old name of another.
        let spare: Vec<_> = captures.iter().map(|(name, _)| self.fresh_name(name)).collect();
        for ((name, _), spare) in captures.iter().zip(&spare) {
            rename_captures(node, name, spare);
        }
        for ((_, id), spare) in captures.iter().zip(&spare) {
            rename_captures(node, spare, &self.value(*id).name);
        }
    }

    fn boundary(&self, output: ValueId, by: ValueId) -> PatchError {
        let (output, by) = (self.value(output).name.clone(), self.value(by).name.clone());
        PatchError::Boundary { output, by }
    }

    /// Whether an input of a node may be this value instead: by its type, and if it is there at all.
    fn may_read(&self, node: NodeId, slot: usize, new: ValueId) -> Result<(), PatchError> {
        let Some(old) = self.inputs_of(node).get(slot).copied().flatten() else { return Ok(()) };
        let (old_value, new_value) = (self.value(old), self.value(new));
        if old_value.fact.unify(&new_value.fact).is_none() {
            let (old, new) = (old_value.name.clone(), new_value.name.clone());
            let (old_fact, new_fact) = (old_value.fact.to_string(), new_value.fact.to_string());
            return Err(PatchError::Type { old, old_fact, new, new_fact });
        }
        Ok(())
    }

    fn fits(&self, old: ValueId, by: Ref, new: ValueId, reshapes: bool) -> Result<(), PatchError> {
        let (old_value, new_value) = (self.value(old), self.value(new));
        // A constant may give way to an equal one; an input or a value of an outer graph to nothing.
        let fixed = old_value.data.is_none() || old_value.is_input() || old_value.is_captured();
        if self.producer(old).is_none() && fixed {
            return Err(PatchError::NoProducer(old_value.name.clone()));
        }
        let taken = new_value.is_input() || new_value.is_output() || new_value.is_captured();
        if old_value.is_output() && matches!(by, Ref::Old(_)) && taken {
            return Err(self.boundary(old, new));
        }
        let same_type = || old_value.fact.dtype() == new_value.fact.dtype();
        if old_value.fact.unify(&new_value.fact).is_none() && !(reshapes && same_type()) {
            let (old, new) = (old_value.name.clone(), new_value.name.clone());
            let (old_fact, new_fact) = (old_value.fact.to_string(), new_value.fact.to_string());
            return Err(PatchError::Type { old, old_fact, new, new_fact });
        }
        Ok(())
    }
}

impl std::fmt::Display for Fact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unknown => f.write_str("unknown"),
            Self::Tensor(t) => {
                f.write_str(t.dtype.map_or("?", |d| d.name()))?;
                match &t.shape {
                    Some(shape) => {
                        let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
                        write!(f, "[{}]", sizes.join(","))
                    }
                    None => f.write_str("[...]"),
                }
            }
            Self::Sequence(item) => write!(f, "seq({item})"),
            Self::Optional(item) => write!(f, "optional({item})"),
            Self::Other => f.write_str("other"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        Dim,
        text::{parse_graph, print_graph},
    };

    #[test]
    fn an_input_may_read_something_else_that_fits_and_makes_no_cycle() {
        let mut graph = parse_graph(
            "g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) y = Neg(a) z = Abs(a) }",
            18,
        )
        .unwrap();
        graph.reinfer().unwrap();
        let node = |graph: &Graph, op: &str| {
            graph.nodes().iter().copied().find(|&n| graph.node(n).op == op).unwrap()
        };
        let (relu, neg) = (node(&graph, "Relu"), node(&graph, "Neg"));
        let [a, y] = ["a", "y"].map(|name| graph.find(name).unwrap());
        // Only one of two readers; what the new node reads is what the other reads still.
        let mut patch = Patch::anchored(relu);
        let exp = patch.node("e", Node::new("Exp"), &[a.into()]);
        patch.set_input(neg, 0, exp);
        graph.apply(patch).unwrap();
        let wanted =
            "g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) e = Exp(a) y = Neg(e) z = Abs(a) }";
        let wanted = print_graph(&parse_graph(wanted, 18).unwrap());
        assert_eq!(print_graph(&graph), wanted);
        // `y` depends on what would then depend on `y`.
        let mut patch = Patch::anchored(neg);
        let sin = patch.node("s", Node::new("Sin"), &[y.into()]);
        patch.set_input(relu, 0, sin);
        assert_eq!(graph.apply(patch).unwrap_err(), PatchError::Cycle("y".into()));
        let mut patch = Patch::anchored(neg);
        let three = patch.constant("c", Tensor::vector(&[1_f32, 2.0, 3.0]));
        patch.set_input(neg, 0, three);
        assert!(matches!(graph.apply(patch), Err(PatchError::Type { .. })));
        assert_eq!(print_graph(&graph), wanted);
        assert_eq!(graph.value(y).fact.shape(), Some(&[Dim::from(2_usize)][..]));
    }
}
