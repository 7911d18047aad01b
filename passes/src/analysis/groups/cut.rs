//! Removing units: every weight, attribute and shape constant changed at once, and checked.

use super::{Groups, Keep, Site, Slot, constant_of, rule, site_of};
use pare_graph::{
    Attribute, Dim, Fact, Graph, Node, NodeId, NodeRef, Patch, PatchError, Tensor, Type, TypeKind, ValueId,
};
use std::collections::{BTreeMap, HashMap};

/// Why units cannot be removed. The graph is as it was.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// Nothing of a group would be left, or a group is asked for that stays whole.
    #[error("`{0}` cannot lose these channels")]
    Group(String),
    /// A shape constant or attribute cannot be made to fit.
    #[error("{0} cannot be made to fit fewer channels")]
    Node(String),
    /// A value would not get the shape that follows from what was removed.
    #[error("`{value}` would be {got}, not {wanted}")]
    Shape {
        /// The value.
        value: String,
        /// What inference says.
        got: String,
        /// What it should say.
        wanted: String,
    },
    /// The graph refuses.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// What the rules of the operators write their changes to.
pub struct Cutter<'a> {
    groups: &'a Groups,
    keep: &'a Keep,
    inputs: BTreeMap<(NodeId, usize), (String, Tensor)>,
    attributes: Vec<(NodeId, String, Option<Attribute>)>,
    /// Nodes whose output is to be multiplied by a number.
    scales: Vec<(NodeId, f64)>,
}

impl Cutter<'_> {
    /// The indices that stay along an axis of an operand; `None` if all of them do.
    pub fn kept(&self, at: NodeRef<'_>, port: Slot, axis: usize) -> Option<Vec<usize>> {
        self.kept_at(site_of(at, port)?, axis)
    }

    fn kept_at(&self, site: Site, axis: usize) -> Option<Vec<usize>> {
        self.groups.kept(self.keep, site, axis)
    }

    /// The sizes an operand will have.
    pub fn dims(&self, at: NodeRef<'_>, port: Slot) -> Option<Vec<Dim>> {
        let value = match port {
            Slot::In(slot) => at.optional(slot)?,
            Slot::Out(slot) => at.outputs().get(slot).copied().flatten()?,
        };
        let site = site_of(at, port)?;
        let size = |(axis, dim): (usize, &Dim)| {
            self.kept_at(site, axis).map_or_else(|| dim.clone(), |kept| Dim::from(kept.len()))
        };
        Some(value.shape()?.iter().enumerate().map(size).collect())
    }

    /// Set or remove an attribute.
    pub fn set_attribute(&mut self, at: NodeRef<'_>, name: &str, value: Option<Attribute>) {
        self.attributes.push((at.id, name.into(), value));
    }

    /// Give an input a constant of its own.
    pub fn set_input(&mut self, at: NodeRef<'_>, slot: usize, hint: &str, tensor: Tensor) {
        let name = at.optional(slot).map_or_else(|| hint.to_owned(), |v| v.name().to_owned());
        self.inputs.insert((at.id, slot), (name, tensor));
    }

    /// Multiply a constant input by a number, after what it loses.
    pub fn scale_input(&mut self, at: NodeRef<'_>, slot: usize, factor: f64) -> Option<()> {
        let old = match self.inputs.get(&(at.id, slot)) {
            Some((_, sliced)) => sliced.clone(),
            None => at.optional(slot)?.constant().ok()?.clone(),
        };
        let values: Vec<_> = old.to_f64()?.into_iter().map(|v| v * factor).collect();
        self.set_input(at, slot, "scale", Tensor::from_f64(old.dtype(), old.shape(), &values).ok()?);
        Some(())
    }

    /// Multiply what a node computes by a number.
    pub fn scale_output(&mut self, at: NodeRef<'_>, factor: f64) {
        self.scales.push((at.id, factor));
    }

    /// `set_input`, with integers of the type of the constant that is there.
    pub fn set_indices(&mut self, at: NodeRef<'_>, slot: usize, hint: &str, values: &[i64]) -> Option<()> {
        let old = at.optional(slot)?.constant().ok()?;
        let values: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        self.set_input(at, slot, hint, Tensor::from_f64(old.dtype(), &[values.len()], &values).ok()?);
        Some(())
    }
}

/// The graph without the units that do not stay.
pub fn cut(graph: &Graph, groups: &Groups, keep: &Keep) -> Result<Graph, CutError> {
    for (&group, units) in keep {
        let asked = &groups.groups[group];
        let none = !units.contains(&true);
        if units.len() != asked.width || none || asked.pinned.is_some() && units.contains(&false) {
            return Err(CutError::Group(asked.name.clone()));
        }
    }
    let mut cutter = Cutter { groups, keep, inputs: BTreeMap::new(), attributes: vec![], scales: vec![] };
    // The axes that lose something, by tensor.
    let mut lost = BTreeMap::<Site, Vec<(usize, Vec<usize>)>>::new();
    for (site, axis) in groups.axes() {
        if let Some(kept) = cutter.kept_at(site, axis) {
            lost.entry(site).or_default().push((axis, kept));
        }
    }
    let mut patch = None;
    let mut data = HashMap::new();
    let mut shapes = HashMap::<ValueId, Vec<Dim>>::new();
    for (&site, axes) in &lost {
        let Some(constant) = constant_of(graph, site) else {
            let Site::Value(id) = site else { continue };
            let mut shape = graph.value_ref(id).shape().unwrap_or_default().to_vec();
            axes.iter().for_each(|(axis, kept)| shape[*axis] = Dim::from(kept.len()));
            shapes.insert(id, shape);
            continue;
        };
        let old = constant.value().tensor().expect("a constant at a site has elements");
        let fits = || CutError::Node(format!("`{}`", constant.name()));
        let new =
            axes.iter().try_fold(old.clone(), |t, (axis, kept)| take(&t, *axis, kept)).ok_or_else(fits)?;
        match site {
            Site::Value(id) => drop(data.insert(id, new)),
            Site::Use(node, slot) => cutter.set_input(graph.at(node), slot, "", new),
        }
    }
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        if let Some(rewrite) = rule(at).and_then(|r| r.rewrite) {
            let touched = at.inputs().into_iter().chain(at.outputs()).flatten();
            let touched = touched.into_iter().any(|v| shapes.contains_key(&v.id) || data.contains_key(&v.id));
            if touched {
                patch.get_or_insert_with(|| Patch::anchored(id));
                rewrite(&mut cutter, at).ok_or_else(|| CutError::Node(at.describe()))?;
            }
        }
    }
    let first = graph.nodes().first().copied();
    let Some(mut patch) = patch.or_else(|| first.map(Patch::anchored)) else { return Ok(graph.clone()) };
    let mut new = graph.clone();
    for (id, tensor) in data {
        patch.set_data(id, tensor);
    }
    for ((node, slot), (name, tensor)) in cutter.inputs {
        // What nobody else reads keeps its name.
        match graph.at(node).optional(slot).filter(|v| v.value().tensor().is_some() && v.sole_use().is_ok()) {
            Some(own) => patch.set_data(own.id, tensor),
            None => patch.set_constant(node, slot, &name, tensor),
        }
    }
    for (node, name, attribute) in cutter.attributes {
        patch.set_attribute(node, &name, attribute);
    }
    for (&id, shape) in &shapes {
        redeclare(&mut new, id, shape);
    }
    new.apply(patch)?;
    for (id, wanted) in shapes {
        let value = new.value(id);
        let fits = value.fact.shape().is_none_or(|got| {
            got.len() == wanted.len() && got.iter().zip(&wanted).all(|(g, w)| w.known().is_none() || g == w)
        });
        if !fits {
            let wanted = Fact::tensor(value.fact.dtype().unwrap_or(pare_graph::DataType::Float), wanted);
            let (got, wanted) = (value.fact.to_string(), wanted.to_string());
            return Err(CutError::Shape { value: value.name.clone(), got, wanted });
        }
    }
    for (node, factor) in cutter.scales {
        scale(&mut new, node, factor)?;
    }
    Ok(new)
}

/// Put a multiplication behind the node.
fn scale(graph: &mut Graph, node: NodeId, factor: f64) -> Result<(), CutError> {
    let at = graph.at(node);
    let fits = || CutError::Node(at.describe());
    let output = at.output().map_err(|_| fits())?;
    let dtype = output.dtype().ok_or_else(fits)?;
    let inputs: Vec<_> = at.inputs().into_iter().map(|v| v.map(Into::into)).collect();
    let mut patch = Patch::at(at);
    let factor = patch.constant("share", Tensor::from_f64(dtype, &[], &[factor]).map_err(|_| fits())?);
    let copy = patch.copy(at, &inputs);
    let scaled = patch.node(output.name(), Node::new("Mul"), &[copy, factor]);
    patch.replace(output, scaled);
    graph.apply(patch)?;
    Ok(())
}

/// What a value is declared as follows its new shape; and so does what is known about it.
fn redeclare(graph: &mut Graph, id: ValueId, shape: &[Dim]) {
    let value = graph.value(id);
    let fact = value.fact.dtype().map_or(Fact::Unknown, |d| Fact::tensor(d, shape.to_vec()));
    let mut declared = value.declared.clone();
    if let Some(ty) = declared.as_mut().and_then(|d| d.ty.as_mut())
        && let TypeKind::Tensor { dtype: Some(dtype), .. } = ty.kind
    {
        ty.kind = Type::tensor(dtype, Some(shape)).kind;
    }
    graph.set_declared(id, declared);
    graph.set_fact(id, fact);
}

/// The elements at these indices of an axis; `None` for elements that share bytes.
pub fn take(tensor: &Tensor, axis: usize, kept: &[usize]) -> Option<Tensor> {
    let bits = tensor.dtype().bits() as usize;
    let shape = tensor.shape();
    if !bits.is_multiple_of(8) || bits == 0 || axis >= shape.len() {
        return None;
    }
    let inner = shape[axis + 1..].iter().product::<usize>() * bits / 8;
    let block = inner * shape[axis];
    let mut bytes = Vec::with_capacity(tensor.size_in_bytes() / shape[axis].max(1) * kept.len());
    for outer in tensor.bytes().chunks_exact(block.max(1)) {
        for &i in kept {
            bytes.extend_from_slice(outer.get(i * inner..(i + 1) * inner)?);
        }
    }
    let mut shape = shape.to_vec();
    shape[axis] = kept.len();
    Tensor::new(tensor.dtype(), &shape, bytes).ok()
}
