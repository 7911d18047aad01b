//! Removal of units: changes all weights, attributes and shape constants at once and checks the result.

use super::{Groups, Keep, Site, Slot, constant_of, rule, site_of, tracer::operand};
use pare_graph::{
    Attribute, DataType, Dim, Fact, Graph, Node, NodeId, NodeRef, Patch, PatchError, Tensor, Type, TypeKind,
    ValueId,
};
use std::collections::BTreeMap;

/// The reason why units cannot be removed. The graph is unchanged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CutError {
    /// No unit of a group would remain, or the group is pinned.
    #[error("`{0}` cannot lose these channels")]
    Group(String),
    /// A shape constant or attribute cannot be made to fit.
    #[error("{0} cannot be made to fit fewer channels")]
    Node(String),
    /// The inferred shape of a value differs from the one that follows from the removed units.
    #[error("`{value}` would be {got}, not {expected}")]
    Shape {
        /// The value.
        value: String,
        /// The inferred type.
        got: String,
        /// The expected type.
        expected: String,
    },
    /// The patch is invalid for the graph.
    #[error(transparent)]
    Patch(#[from] PatchError),
}

/// Collects the changes that the rules of the operators make.
pub struct Cutter<'a> {
    groups: &'a Groups,
    keep: &'a Keep,
    inputs: BTreeMap<(NodeId, usize), (String, Tensor)>,
    attributes: Vec<(NodeId, String, Option<Attribute>)>,
    /// Inputs of computed sizes, and what is added to them.
    shifts: Vec<(NodeId, usize, Vec<i64>)>,
    /// Nodes whose output is multiplied by a factor.
    scales: Vec<(NodeId, f64)>,
}

impl Cutter<'_> {
    /// The indices of an axis of an operand that are kept; `None` if all are.
    pub fn kept(&self, at: NodeRef<'_>, slot: Slot, axis: usize) -> Option<Vec<usize>> {
        self.kept_at(site_of(at, slot)?, axis)
    }

    fn kept_at(&self, site: Site, axis: usize) -> Option<Vec<usize>> {
        self.groups.kept(self.keep, site, axis)
    }

    /// The sizes of an operand after the cut.
    pub fn dims(&self, at: NodeRef<'_>, slot: Slot) -> Option<Vec<Dim>> {
        let (value, site) = (operand(at, slot)?, site_of(at, slot)?);
        let size = |(axis, dim): (usize, &Dim)| {
            self.kept_at(site, axis).map_or_else(|| dim.clone(), |kept| Dim::from(kept.len()))
        };
        Some(value.shape()?.iter().enumerate().map(size).collect())
    }

    /// Sets or removes an attribute.
    pub fn set_attribute(&mut self, at: NodeRef<'_>, name: &str, value: Option<Attribute>) {
        self.attributes.push((at.id, name.into(), value));
    }

    /// Sets an input to a constant of its own.
    pub fn set_input(&mut self, at: NodeRef<'_>, slot: usize, hint: &str, tensor: Tensor) {
        let name = at.optional(slot).map_or_else(|| hint.to_owned(), |v| v.name().to_owned());
        self.inputs.insert((at.id, slot), (name, tensor));
    }

    /// Multiplies a constant input by a factor, after removal of its indices.
    pub fn scale_input(&mut self, at: NodeRef<'_>, slot: usize, factor: f64) -> Option<()> {
        let old = match self.inputs.get(&(at.id, slot)) {
            Some((_, sliced)) => sliced.clone(),
            None => at.optional(slot)?.constant().ok()?.clone(),
        };
        let values: Vec<_> = old.to_f64()?.into_iter().map(|v| v * factor).collect();
        self.set_input(at, slot, "scale", Tensor::from_f64(old.dtype(), old.shape(), &values).ok()?);
        Some(())
    }

    /// Multiplies the output of a node by a factor.
    pub fn scale_output(&mut self, at: NodeRef<'_>, factor: f64) {
        self.scales.push((at.id, factor));
    }

    /// Changes the sizes that an input requests from `old` to `new`, by an `Add` behind their computation;
    /// `None` if an element that changes is not known. An element other than the old size, such as -1,
    /// requests no size of its own.
    pub fn shift_sizes(&mut self, at: NodeRef<'_>, slot: usize, old: &[Dim], new: &[Dim]) -> Option<()> {
        let content = at.optional(slot)?.value().fact.content()?;
        let change = |(given, (old, new)): (&Dim, (&Dim, &Dim))| match (given.known(), new.known()) {
            _ if old == new => Some(0),
            (Some(_), _) if given != old => Some(0),
            (Some(given), Some(new)) => Some(new - given),
            _ => None,
        };
        // The shape of `Expand` may lack leading axes.
        let leading = new.len().checked_sub(content.len())?;
        let pairs = old.get(leading..)?.iter().zip(&new[leading..]);
        let changes = content.iter().zip(pairs).map(change).collect::<Option<Vec<_>>>()?;
        if changes.iter().any(|&c| c != 0) {
            self.shifts.push((at.id, slot, changes));
        }
        Some(())
    }

    /// Sets an input to integers of the type of its present constant.
    pub fn set_indices(&mut self, at: NodeRef<'_>, slot: usize, hint: &str, values: &[i64]) -> Option<()> {
        let old = at.optional(slot)?.constant().ok()?;
        let values: Vec<f64> = values.iter().map(|&v| v as f64).collect();
        self.set_input(at, slot, hint, Tensor::from_f64(old.dtype(), &[values.len()], &values).ok()?);
        Some(())
    }
}

/// Returns the graph without the units that are not kept.
///
/// # Errors
/// If a group cannot lose these units, or an operator cannot be adapted.
pub fn cut(graph: &Graph, groups: &Groups, keep: &Keep) -> Result<Graph, CutError> {
    for (&group, units) in keep {
        let of = &groups.groups[group];
        let none = !units.contains(&true);
        if units.len() != of.width || none || of.pinned.is_some() && units.contains(&false) {
            return Err(CutError::Group(of.name.clone()));
        }
    }
    let Some(&first) = graph.nodes().first() else { return Ok(graph.clone()) };
    let mut cutter =
        Cutter { groups, keep, inputs: BTreeMap::new(), attributes: vec![], shifts: vec![], scales: vec![] };
    let CutSites { data, shapes } = cutter.cut_sites(graph)?;
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        let Some(rewrite) = rule(at).and_then(|r| r.rewrite) else { continue };
        let operands = at.inputs().into_iter().chain(at.outputs()).flatten();
        if operands.into_iter().any(|v| shapes.contains_key(&v.id) || data.contains_key(&v.id)) {
            rewrite(&mut cutter, at).ok_or_else(|| CutError::Node(at.describe()))?;
        }
    }
    let mut patch = Patch::anchored(first);
    for (id, tensor) in data {
        patch.set_data(id, tensor);
    }
    for ((node, slot), (name, tensor)) in cutter.inputs {
        // A constant without other users keeps its name.
        match graph.at(node).optional(slot).filter(|v| v.value().tensor().is_some() && v.sole_use().is_ok()) {
            Some(own) => patch.set_data(own.id, tensor),
            None => patch.set_constant(node, slot, &name, tensor),
        }
    }
    for (node, name, attribute) in cutter.attributes {
        patch.set_attribute(node, &name, attribute);
    }
    for (node, slot, changes) in cutter.shifts {
        let Some(sizes) = graph.at(node).optional(slot) else { continue };
        let changes = patch.constant(&format!("{}_change", sizes.name()), Tensor::vector(&changes));
        let changed = patch.node(sizes.name(), Node::new("Add"), &[sizes.into(), changes]);
        patch.set_input(node, slot, changed);
    }
    let mut new = graph.clone();
    for (&id, shape) in &shapes {
        redeclare(&mut new, id, shape);
    }
    new.apply(patch)?;
    check_shapes(&new, shapes)?;
    for (node, factor) in cutter.scales {
        scale(&mut new, node, factor)?;
    }
    Ok(new)
}

/// The new data of weights and the new shapes of activations.
struct CutSites {
    data: BTreeMap<ValueId, Tensor>,
    shapes: BTreeMap<ValueId, Vec<Dim>>,
}

impl Cutter<'_> {
    /// Removes indices from all sites. Vectors become inputs of their own.
    fn cut_sites(&mut self, graph: &Graph) -> Result<CutSites, CutError> {
        let mut cut = CutSites { data: BTreeMap::new(), shapes: BTreeMap::new() };
        // The kept indices of each axis that loses some, by tensor.
        let mut sites = BTreeMap::<Site, Vec<(usize, Vec<usize>)>>::new();
        for (site, axis) in self.groups.axes() {
            if let Some(kept) = self.kept_at(site, axis) {
                sites.entry(site).or_default().push((axis, kept));
            }
        }
        for (site, axes) in sites {
            let Some(constant) = constant_of(graph, site) else {
                let Site::Value(id) = site else { continue };
                let mut shape = graph.value_ref(id).shape().unwrap_or_default().to_vec();
                axes.iter().for_each(|(axis, kept)| shape[*axis] = Dim::from(kept.len()));
                cut.shapes.insert(id, shape);
                continue;
            };
            let old = constant.value().tensor().expect("a constant at a site has elements");
            let new = axes.iter().try_fold(old.clone(), |t, (axis, kept)| take(&t, *axis, kept));
            let new = new.ok_or_else(|| CutError::Node(format!("`{}`", constant.name())))?;
            match site {
                Site::Value(id) => drop(cut.data.insert(id, new)),
                Site::Use(node, slot) => self.set_input(graph.at(node), slot, "", new),
            }
        }
        Ok(cut)
    }
}

/// Compares the inferred shapes of values with the expected ones.
fn check_shapes(graph: &Graph, shapes: BTreeMap<ValueId, Vec<Dim>>) -> Result<(), CutError> {
    for (id, expected) in shapes {
        let value = graph.value(id);
        let fits = value.fact.shape().is_none_or(|got| {
            let same = |(g, e): (&Dim, &Dim)| e.known().is_none() || g == e;
            got.len() == expected.len() && got.iter().zip(&expected).all(same)
        });
        if !fits {
            let expected = Fact::tensor(value.fact.dtype().unwrap_or(DataType::Float), expected);
            let (got, expected) = (value.fact.to_string(), expected.to_string());
            return Err(CutError::Shape { value: value.name.clone(), got, expected });
        }
    }
    Ok(())
}

/// Multiplies the output of a node by a factor.
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

/// Sets the declared type and the fact of a value to a new shape.
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

/// Returns the elements at these indices of an axis; `None` for elements of less than a byte.
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
