//! Applying a patch: all of it, or nothing.

use crate::{
    Applied, Graph, Node, NodeId, Patch, PatchError, Ref, Value, ValueId,
    graph::edit::rename_captures,
    journal::Journal,
    node::Rank,
    patch::{Edit, NewNode, Replacement},
};

/// The ids of the values and nodes that a patch adds.
struct Added {
    values: Vec<ValueId>,
    nodes: Vec<NodeId>,
}

impl Added {
    fn id(&self, value: Ref) -> ValueId {
        resolve(&self.values, value)
    }
}

fn resolve(new: &[ValueId], value: Ref) -> ValueId {
    match value {
        Ref::Old(id) => id,
        Ref::New(value) => new[value.index],
    }
}

impl Graph {
    /// Checks the patch and applies it. On an error the graph is unchanged.
    ///
    /// # Errors
    ///
    /// The patch refers to something that is not in the graph, changes a type, creates a cycle, connects
    /// parts of the interface directly, or makes shape inference fail.
    pub fn apply(&mut self, patch: Patch) -> Result<Applied, PatchError> {
        self.check_refs(&patch)?;
        let mut journal = Journal::new(self);
        let result = self.try_apply(patch, &mut journal);
        if result.is_err() {
            journal.undo(self);
        }
        result
    }

    /// Checks that the nodes and values that a patch refers to exist.
    fn check_refs(&self, patch: &Patch) -> Result<(), PatchError> {
        let is_foreign = |r: Ref| matches!(r, Ref::New(value) if !patch.has(value));
        let mut outputs = patch.new_nodes().flat_map(|n| n.outputs.iter().flatten());
        if patch.refs().any(is_foreign) || outputs.any(|&value| !patch.has(value)) {
            return Err(PatchError::ForeignValue);
        }
        let exists = |edit: &Edit| match edit {
            Edit::AddNode(_) => true,
            Edit::Replace(r) => self.has_value(r.old),
            Edit::SetInput { node, .. }
            | Edit::SetConstant { node, .. }
            | Edit::SetAttribute { node, .. } => self.has_node(*node),
            Edit::SetData { constant, .. } => self.has_value(*constant),
        };
        let is_current = |r: Ref| if let Ref::Old(id) = r { self.has_value(id) } else { true };
        let all = patch.edits.iter().all(exists) && patch.refs().all(is_current);
        if all { Ok(()) } else { Err(PatchError::Removed) }
    }

    fn try_apply(&mut self, mut patch: Patch, journal: &mut Journal) -> Result<Applied, PatchError> {
        // Such patches are consistent only when all of their changes are made.
        let in_place = patch.edits.iter().any(Edit::is_in_place);
        let deferred =
            patch.replacements().any(|r| r.reshapes) || in_place && patch.new_inputs().next().is_some();
        if deferred {
            // Inference can fail after uses have been redirected and nodes have been removed.
            journal.keep_graph(self);
        }
        let infer = |graph: &mut Self| graph.reinfer().map_err(|e| PatchError::Shape(e.to_string()));
        let Edited { touched, unused } = self.edit(&mut patch, journal)?;
        if in_place && !deferred {
            journal.keep_facts(self);
            infer(self)?;
        }
        let place = self.place(&patch)?;
        let added = self.add(&patch, place, journal)?;
        self.check_types(&patch, &added)?;
        let mut applied = self.splice(&patch, &added, unused);
        if place.is_none() {
            self.renumber();
        }
        if deferred {
            infer(self)?;
        }
        applied.touched.extend(touched);
        applied.touched.retain(|&n| self.has_node(n));
        Ok(applied)
    }

    /// Applies the edits of data, attributes and constants.
    fn edit(&mut self, patch: &mut Patch, journal: &mut Journal) -> Result<Edited, PatchError> {
        let mut edited = Edited::default();
        for edit in patch.edits.extract_if(.., |edit| edit.is_in_place()) {
            match edit {
                Edit::SetData { constant: id, tensor } => {
                    let old = self.value(id);
                    if old.tensor().is_none() || old.is_captured() {
                        return Err(PatchError::NotConstant(old.name.clone()));
                    }
                    let (role, seq) = (old.role, old.seq);
                    let new = Value { role, seq, ..Value::constant(&old.name, tensor) };
                    journal.set_value(id, std::mem::replace(self.value_mut(id), new));
                    edited.touched.extend(self.users(id).iter().map(|u| u.0));
                }
                Edit::SetAttribute { node, name, value } => {
                    let attributes = &mut self.node_mut(node).attributes;
                    let index = attributes.get_index_of(&name).unwrap_or(attributes.len());
                    let old = match value {
                        Some(value) => attributes.insert(name.clone(), value),
                        None => attributes.shift_remove(&name),
                    };
                    journal.set_attribute(node, name, index, old);
                    edited.touched.push(node);
                }
                Edit::SetConstant { node, slot, constant } => {
                    let name = self.fresh_name(&constant.name);
                    let id = self.add_value(Value { name, ..*constant })?;
                    let count = self.node(node).slots.0;
                    let old = self.connect_input(node, slot, Some(id));
                    journal.set_input(node, slot, old, count);
                    edited.unused.extend(old);
                    edited.touched.push(node);
                }
                Edit::AddNode(_) | Edit::Replace(_) | Edit::SetInput { .. } => {}
            }
        }
        Ok(edited)
    }

    /// The rank for the first new node: after the producers of everything that new nodes read, before all
    /// nodes that will read them. `None` if no such rank is free; then all nodes are renumbered afterwards.
    fn place(&self, patch: &Patch) -> Result<Option<Rank>, PatchError> {
        let old = |r: Ref| if let Ref::Old(id) = r { Some(id) } else { None };
        let read: Vec<_> = patch.refs().filter_map(old).collect();
        let rank = |node: NodeId| self.node(node).rank;
        let count = patch.new_nodes().count() as u64;
        let anchor = self.rank(patch.anchor).filter(|_| count > 0);
        let producers = read.iter().filter_map(|&v| self.producer(v)).map(|(node, _)| rank(node));
        let Rank(major, minor) = producers.chain(anchor).max().unwrap_or_default();
        let last = Rank(major, minor + 1 + count);
        let of_replaced = || patch.replacements().flat_map(|r| self.users(r.old)).map(|u| u.0);
        let users = || of_replaced().chain(patch.new_inputs().map(|(node, ..)| node));
        if users().all(|user| rank(user) >= last) {
            return Ok(Some(Rank(major, minor + 1)));
        }
        // Ranks are not sufficient to exclude a cycle.
        for user in users() {
            let is_cycle = |&&v: &&ValueId| {
                let is_replaced = patch.replacements().any(|r| r.old == v);
                !is_replaced && self.reaches(user, v)
            };
            if let Some(&value) = read.iter().find(is_cycle) {
                return Err(PatchError::Cycle(self.value(value).name.clone()));
            }
        }
        Ok(None)
    }

    fn rank(&self, node: NodeId) -> Option<Rank> {
        self.has_node(node).then(|| self.node(node).rank)
    }

    /// Adds the new values and nodes, which nothing reads yet.
    fn add(
        &mut self,
        patch: &Patch,
        place: Option<Rank>,
        journal: &mut Journal,
    ) -> Result<Added, PatchError> {
        let mut values = vec![];
        for value in &patch.values {
            let name = self.fresh_name(&value.name);
            values.push(self.add_value(Value { name, ..value.clone() })?);
        }
        let mut nodes = vec![];
        let Rank(major, minor) = place.or(self.rank(patch.anchor)).unwrap_or_default();
        for (i, NewNode { node, inputs, outputs, captures }) in patch.new_nodes().enumerate() {
            let inputs: Vec<_> = inputs.iter().map(|r| r.map(|r| resolve(&values, r))).collect();
            let outputs: Vec<_> = outputs.iter().map(|o| o.map(|new| values[new.index])).collect();
            let captures = captures.iter().map(|(name, r)| (name.as_str(), resolve(&values, *r)));
            let mut node = node.clone();
            self.recapture(&mut node, captures.collect());
            let node = self.add_node_at(node, Rank(major, minor + i as u64), &inputs, &outputs)?;
            journal.add_node(node);
            nodes.push(node);
        }
        for &node in &nodes {
            self.infer_node(node);
        }
        Ok(Added { values, nodes })
    }

    /// Renames the captures in the subgraphs of a new node to the names that the given values have in this
    /// graph.
    fn recapture(&self, node: &mut Node, mut captures: Vec<(&str, ValueId)>) {
        captures.retain(|&(name, id)| self.value(id).name != name);
        // In two steps, since a new name may be the old name of another.
        let unused: Vec<_> = captures.iter().map(|(name, _)| self.fresh_name(name)).collect();
        for ((name, _), unused) in captures.iter().zip(&unused) {
            rename_captures(node, name, unused);
        }
        for ((_, id), unused) in captures.iter().zip(&unused) {
            rename_captures(node, unused, &self.value(*id).name);
        }
    }

    /// Checks that replacements and new inputs have the types of the values they replace.
    fn check_types(&self, patch: &Patch, added: &Added) -> Result<(), PatchError> {
        for r in patch.replacements() {
            let same = |other: &Replacement| {
                other.old != r.old && other.new == r.new && self.value(other.old).is_output()
            };
            if let Some(other) = patch.replacements().find(same).filter(|_| self.value(r.old).is_output()) {
                return Err(self.interface_error(r.old, other.old));
            }
            self.check_replacement(r, added.id(r.new))?;
        }
        for (node, slot, value) in patch.new_inputs() {
            if let Some(old) = self.input(node, slot) {
                let new = added.id(value);
                self.value(old).fact.unify(&self.value(new).fact).ok_or_else(|| self.type_error(old, new))?;
            }
        }
        Ok(())
    }

    fn check_replacement(&self, replacement: Replacement, new: ValueId) -> Result<(), PatchError> {
        let Replacement { old, new: by, reshapes } = replacement;
        let (old_value, new_value) = (self.value(old), self.value(new));
        // An initializer may be replaced by an equal one.
        let is_fixed = old_value.data.is_none() || old_value.is_input() || old_value.is_captured();
        if self.producer(old).is_none() && is_fixed {
            return Err(PatchError::NoProducer(old_value.name.clone()));
        }
        let is_interface = new_value.is_input() || new_value.is_output() || new_value.is_captured();
        if old_value.is_output() && matches!(by, Ref::Old(_)) && is_interface {
            return Err(self.interface_error(old, new));
        }
        let has_dtype = || old_value.fact.dtype() == new_value.fact.dtype();
        if old_value.fact.unify(&new_value.fact).is_none() && !(reshapes && has_dtype()) {
            return Err(self.type_error(old, new));
        }
        Ok(())
    }

    fn interface_error(&self, output: ValueId, by: ValueId) -> PatchError {
        let (output, by) = (self.value(output).name.clone(), self.value(by).name.clone());
        PatchError::Boundary { output, by }
    }

    fn type_error(&self, old: ValueId, new: ValueId) -> PatchError {
        let (old, new) = (self.value(old), self.value(new));
        PatchError::Type {
            old: old.name.clone(),
            old_fact: old.fact.to_string(),
            new: new.name.clone(),
            new_fact: new.fact.to_string(),
        }
    }

    /// Redirects uses to the replacements, connects new inputs, and removes what is unused then.
    /// `unused` are further values that lost a use.
    fn splice(&mut self, patch: &Patch, added: &Added, mut unused: Vec<ValueId>) -> Applied {
        let (mut touched, mut named) = (vec![], vec![]);
        for Replacement { old, new, .. } in patch.replacements() {
            let by = added.id(new);
            touched.extend(self.users(old).into_iter().map(|u| u.0).filter(|u| !added.nodes.contains(u)));
            if let Some(fact) = self.value(old).fact.unify(&self.value(by).fact) {
                self.set_fact(by, fact);
            }
            let takes_name =
                self.value(old).is_output() || matches!(new, Ref::New(_)) && !named.contains(&by);
            named.push(by);
            self.redirect(old, by, &added.nodes);
            if takes_name {
                let name = self.value(old).name.clone();
                let declared = self.value(old).declared.clone();
                let temporary = self.fresh_name(&name);
                self.rename(old, temporary);
                self.rename(by, name);
                self.set_declared(by, declared);
            }
        }
        for (node, slot, value) in patch.new_inputs() {
            unused.extend(self.connect_input(node, slot, Some(added.id(value))));
            touched.push(node);
        }
        self.remove_unused(unused);
        let start: Vec<_> = patch.replacements().map(|r| r.old).chain(added.values.iter().copied()).collect();
        touched.extend(self.remove_unused(start));
        touched.retain(|&n| self.has_node(n));
        let added = added.nodes.iter().copied().filter(|&n| self.has_node(n)).collect();
        Applied { added, touched }
    }
}

/// The effect of edits in place.
#[derive(Default)]
struct Edited {
    touched: Vec<NodeId>,
    /// Values that lost a use.
    unused: Vec<ValueId>,
}

#[cfg(test)]
mod tests {
    use crate::{
        Dim, Graph, Node, NodeId, Patch, PatchError, Tensor,
        text::{parse_graph, print_graph},
    };

    #[test]
    fn connects_inputs_of_the_same_type_without_cycles() {
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
        // One of two users; the new node reads what the other user still reads.
        let mut patch = Patch::anchored(relu);
        let exp = patch.node("e", Node::new("Exp"), &[a.into()]);
        patch.set_input(neg, 0, exp);
        graph.apply(patch).unwrap();
        let wanted =
            "g (float[2] x) => (float[2] y, float[2] z) { a = Relu(x) e = Exp(a) y = Neg(e) z = Abs(a) }";
        let wanted = print_graph(&parse_graph(wanted, 18).unwrap());
        assert_eq!(print_graph(&graph), wanted);
        // `y` depends on a node that would depend on `y`.
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

    /// A graph of nodes that read random earlier values; one of them has a subgraph that captures.
    fn random_graph(rng: &mut fastrand::Rng) -> Graph {
        let mut body = String::new();
        let mut values = vec!["x".to_owned(), "w".into(), "d".into()];
        for i in 0..rng.usize(3..12) {
            let [a, b] = [(); 2].map(|()| rng.choice(&values).unwrap().clone());
            let node = match rng.u8(0..5) {
                0 => format!("v{i} = Neg({a}) "),
                1 => format!("v{i} = Concat <axis = 0> ({a}, {a}) s{i} = Slice(v{i}, zero, two) "),
                2 => format!(
                    "v{i} = If(c) <then_branch = t{i} () => (float[2] p{i}) {{ p{i} = Abs({a}) }},
                    else_branch = e{i} () => (float[2] q{i}) {{ q{i} = Neg({b}) }}> "
                ),
                _ => format!("v{i} = Add({a}, {b}) "),
            };
            body += &node;
            values.push(if node.contains("Slice") { format!("s{i}") } else { format!("v{i}") });
        }
        let last = values.last().unwrap();
        let text = format!(
            "g (float[2] x, bool c, float[2] d) => (float[2] y, float[2] z)
            <float[2] w = {{1, 2}}, float[2] d = {{3, 4}}, int64[1] zero = {{0}}, int64[1] two = {{2}}>
            {{ {body} y = Identity({last}) z = Neg(x) }}"
        );
        let mut graph = parse_graph(&text, 18).unwrap();
        graph.reinfer().unwrap();
        graph
    }

    /// A patch of random edits, many of which are invalid.
    fn random_patch(graph: &Graph, removed: NodeId, rng: &mut fastrand::Rng) -> Patch {
        let nodes = graph.nodes();
        let mut values: Vec<_> = graph.values().collect();
        values.sort_by_key(|&v| graph.value(v).name.clone());
        let mut patch = Patch::anchored(*rng.choice(nodes.iter()).unwrap());
        let mut refs: Vec<_> = values.iter().map(|&v| v.into()).collect();
        for _ in 0..rng.usize(1..5) {
            let node = if rng.u8(0..20) == 0 { removed } else { *rng.choice(nodes.iter()).unwrap() };
            let value = *rng.choice(&values).unwrap();
            let by = *rng.choice(&refs).unwrap();
            let tensor = Tensor::vector(&vec![1_f32; rng.usize(1..4)]);
            match rng.u8(0..8) {
                0 | 1 => refs.push(patch.node("new", Node::new("Abs"), &[by])),
                2 => patch.replace(graph.value_ref(value), by),
                3 => patch.reshape(graph.value_ref(value), by),
                4 => patch.set_data(value, tensor),
                5 => patch.set_attribute(node, "axis", rng.bool().then_some(1_i64.into())),
                6 => patch.set_constant(node, rng.usize(0..2), "new", tensor),
                _ => patch.set_input(node, rng.usize(0..2), by),
            }
            if rng.u8(0..40) == 0 {
                let foreign = Patch::anchored(node).constant("foreign", Tensor::vector(&[1_f32, 2.0]));
                patch.set_input(node, 0, foreign);
            }
        }
        patch
    }

    /// The text and the inferred facts of a graph and its subgraphs.
    fn state(graph: &Graph) -> String {
        fn facts(graph: &Graph, out: &mut Vec<String>) {
            let mut own: Vec<_> = graph.values().map(|v| format!("{:?}", graph.value(v))).collect();
            own.sort();
            out.extend(own);
            for &node in graph.nodes().iter() {
                graph.node(node).subgraphs().for_each(|inner| facts(inner, out));
            }
        }
        let mut all = vec![print_graph(graph), format!("{:?}", graph.nodes()), graph.clock().to_string()];
        facts(graph, &mut all);
        all.join("\n")
    }

    #[test]
    fn rejected_patches_leave_the_graph_unchanged() {
        let mut rng = fastrand::Rng::with_seed(7);
        let (mut applied, mut rejected) = (0, std::collections::BTreeMap::<String, usize>::new());
        for _ in 0..2000 {
            let mut graph = random_graph(&mut rng);
            let removed = {
                let z = graph.outputs()[1];
                let node = graph.producer(z).unwrap().0;
                graph.remove_outputs(&[z]);
                graph.sweep();
                node
            };
            let patch = random_patch(&graph, removed, &mut rng);
            let before = state(&graph);
            match graph.apply(patch.clone()) {
                Ok(_) => applied += 1,
                Err(error) => {
                    assert_eq!(state(&graph), before, "{error}");
                    let name = format!("{error:?}");
                    *rejected.entry(name.split([' ', '(']).next().unwrap().into()).or_default() += 1;
                }
            }
            assert!(graph.unordered_nodes().is_empty(), "{:?} of {before}", patch.edits);
        }
        assert!(applied > 100, "{applied}");
        let expected =
            ["Boundary", "Cycle", "ForeignValue", "NoProducer", "NotConstant", "Removed", "Shape", "Type"];
        assert_eq!(rejected.keys().collect::<Vec<_>>(), expected, "{rejected:?}");
    }

    #[test]
    fn rejects_values_of_other_patches() {
        let mut graph = parse_graph("g (float[2] x) => (float[2] y) { y = Neg(x) }", 18).unwrap();
        let node = graph.nodes()[0];
        let mut other = Patch::anchored(node);
        let value = other.node("e", Node::new("Exp"), &[graph.inputs()[0].into()]);
        let mut patch = Patch::anchored(node);
        patch.set_input(node, 0, value);
        assert_eq!(graph.apply(patch).unwrap_err(), PatchError::ForeignValue);
    }
}
