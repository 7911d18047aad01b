//! Conversion of a model, or of some of its nodes, to another floating-point type.

use crate::{
    Attribute, Constant, DataType, Fact, Graph, Model, Node, NodeId, Tensor, Type, TypeKind, Value, ValueId,
    node::Rank,
};
use std::collections::{HashMap, HashSet};

impl Model {
    /// Changes the type of every number of type `from` to `to`: inputs, outputs, initializers, tensors in
    /// attributes, and the attributes of operators that name a type. Sparse tensors and functions are not
    /// changed. Inferred types are discarded; [`Model::infer`] reports operators that do not accept the new type.
    pub fn convert_numbers(&mut self, from: DataType, to: DataType) {
        convert_graph(&mut self.graph, Conversion { from, to });
    }

    /// Changes the type of chosen values of the main graph and its subgraphs from `from` to `to`, and adds a
    /// `Cast` where a node reads a value of the other type. A `Cast` that has nothing to change any more is
    /// removed. Functions are not changed. Types must be inferred before; they are set afterwards.
    pub fn convert_nodes(&mut self, from: DataType, to: DataType, types: &ConvertedGraph) {
        let conversion = Conversion { from, to };
        NodeConversion::new(&mut self.graph, conversion).run(types, &HashMap::new(), false);
    }
}

/// The values of a graph that [`Model::convert_nodes`] gives the new type. Only tensors of the old type
/// change; the flags of others have no effect. Missing flags are false.
#[derive(Clone, Debug, Default)]
pub struct ConvertedGraph {
    /// The inputs of the graph, by position.
    pub inputs: Vec<bool>,
    /// The outputs of the graph, by position.
    pub outputs: Vec<bool>,
    /// The initializers.
    pub constants: HashSet<ValueId>,
    /// The nodes with values of the new type.
    pub nodes: HashMap<NodeId, ConvertedNode>,
}

/// The inputs and outputs of a node that have the new type.
#[derive(Clone, Debug, Default)]
pub struct ConvertedNode {
    /// By input slot.
    pub inputs: Vec<bool>,
    /// By output slot.
    pub outputs: Vec<bool>,
    /// Its subgraphs, in order.
    pub bodies: Vec<ConvertedGraph>,
}

/// The values of an outer graph that have the new type, by name, with the elements of constants.
type Captured = HashMap<String, Option<Constant>>;

/// The conversion of some nodes of one graph.
struct NodeConversion<'g> {
    graph: &'g mut Graph,
    conversion: Conversion,
    /// The tensors that had the old type.
    affected: HashSet<ValueId>,
    /// Those that have the new type.
    converted: HashSet<ValueId>,
    /// The cast of a value to the other type.
    casts: HashMap<ValueId, ValueId>,
}

impl<'g> NodeConversion<'g> {
    fn new(graph: &'g mut Graph, conversion: Conversion) -> Self {
        let is_affected = |v: &ValueId| graph.value(*v).fact.dtype() == Some(conversion.from);
        let affected = graph.values().filter(is_affected).collect();
        Self { graph, conversion, affected, converted: HashSet::new(), casts: HashMap::new() }
    }

    fn run(mut self, types: &ConvertedGraph, captured: &Captured, is_body: bool) {
        // New nodes are placed between ranks.
        self.graph.renumber();
        for (position, id) in self.graph.inputs().to_vec().into_iter().enumerate() {
            if flag(&types.inputs, position) {
                self.convert(id);
            }
        }
        for id in self.graph.captures() {
            if let Some(data) = captured.get(&self.graph.value(id).name) {
                self.graph.value_mut(id).data = None;
                self.convert(id);
                self.graph.value_mut(id).data.clone_from(data);
            }
        }
        for &id in &types.constants {
            self.convert(id);
        }
        let (nodes, unchanged) = (self.graph.nodes(), ConvertedNode::default());
        for &id in nodes.iter() {
            self.node(id, types.nodes.get(&id).unwrap_or(&unchanged));
        }
        self.outputs(types, is_body);
        for &id in nodes.iter() {
            self.drop_equal_cast(id, is_body);
        }
        self.graph.renumber();
    }

    /// Gives a value the new type.
    fn convert(&mut self, id: ValueId) {
        if !self.affected.contains(&id) || !self.converted.insert(id) {
            return;
        }
        let (conversion, value) = (self.conversion, self.graph.value_mut(id));
        if let Some(Constant::Dense(tensor)) = &mut value.data {
            conversion.tensor(tensor);
        }
        if let Some(declared) = &mut value.declared {
            declared.computed = None;
            if let Some(ty) = &mut declared.ty {
                conversion.ty(ty);
            }
        }
        set_dtype(&mut value.fact, conversion.to);
    }

    fn node(&mut self, id: NodeId, types: &ConvertedNode) {
        for (slot, value) in self.graph.inputs_of(id).into_iter().enumerate() {
            let Some(value) = value.filter(|v| self.affected.contains(v)) else { continue };
            if flag(&types.inputs, slot) != self.converted.contains(&value) {
                let rank = Rank(self.graph.node(id).rank.0 - 1, self.graph.tick());
                let cast = self.cast(value, rank);
                self.graph.connect_input(id, slot, Some(cast));
            }
        }
        if self.graph.node(id).subgraphs().next().is_some() {
            let (conversion, converted, unchanged) =
                (self.conversion, &self.converted, ConvertedGraph::default());
            self.graph.with_subgraphs(id, |bodies, outer| {
                let value = |&v: &ValueId| (outer.value(v).name.clone(), outer.value(v).data.clone());
                let captured: Captured = converted.iter().map(value).collect();
                for (position, body) in bodies.iter_mut().enumerate() {
                    let types = types.bodies.get(position).unwrap_or(&unchanged);
                    NodeConversion::new(body, conversion).run(types, &captured, true);
                }
            });
        }
        let mut any = false;
        for (slot, value) in self.graph.outputs_of(id).into_iter().enumerate() {
            let Some(value) = value.filter(|v| flag(&types.outputs, slot) && self.affected.contains(v))
            else {
                continue;
            };
            self.convert(value);
            any = true;
        }
        if any {
            let schema = self.graph.at(id).schema();
            let conversion = self.conversion;
            let node = self.graph.node_mut(id);
            conversion.attributes(node);
            // Defaults name a type too.
            let missing = |name: &&str| !node.attributes.contains_key(*name);
            let number = i64::from(conversion.from.number());
            let is_default = |name: &&str| {
                let default = schema.and_then(|s| s.attribute(name)?.default());
                matches!(default, Some(Attribute::Int(n)) if n == number)
            };
            for name in TYPE_ATTRIBUTES.iter().filter(|n| missing(n) && is_default(n)).collect::<Vec<_>>() {
                node.attributes.insert((*name).to_owned(), i64::from(conversion.to.number()).into());
            }
            if node.is("ConstantOfShape")
                && !node.attributes.contains_key("value")
                && let Ok(zero) = Tensor::from_f64(conversion.to, &[1], &[0.0])
            {
                node.attributes.insert("value".into(), Attribute::Tensor(zero));
            }
        }
    }

    /// The value in the other type.
    fn cast(&mut self, value: ValueId, rank: Rank) -> ValueId {
        if let Some(&cast) = self.casts.get(&value) {
            return cast;
        }
        let Conversion { from, to } = self.conversion;
        let dtype = if self.converted.contains(&value) { from } else { to };
        let name = format!("{}_{}", self.graph.value(value).name, dtype.name());
        let cast = self.add_cast(value, dtype, &self.graph.fresh_name(&name), rank);
        self.casts.insert(value, cast);
        cast
    }

    fn add_cast(&mut self, value: ValueId, dtype: DataType, name: &str, rank: Rank) -> ValueId {
        let mut fact = self.graph.value(value).fact.clone();
        set_dtype(&mut fact, dtype);
        let cast = Value { fact, ..Value::named(name) };
        let cast = self.graph.add_value(cast).expect("the name is new");
        let node = Node::new("Cast").with("to", i64::from(dtype.number()));
        let added = self.graph.add_node_at(node, rank, &[Some(value)], &[Some(cast)]);
        added.expect("the value has no other producer");
        cast
    }

    /// Gives the outputs of the graph their types. Those of the main graph keep their names.
    fn outputs(&mut self, types: &ConvertedGraph, is_body: bool) {
        for (position, value) in self.graph.outputs().to_vec().into_iter().enumerate() {
            let is_current = self.graph.outputs().get(position) == Some(&value);
            let differs = flag(&types.outputs, position) != self.converted.contains(&value);
            if !is_current || !differs || !self.affected.contains(&value) {
                continue;
            }
            let Conversion { from, to } = self.conversion;
            let dtype = if self.converted.contains(&value) { from } else { to };
            let (name, rank) = (self.graph.value(value).name.clone(), Rank(u64::MAX, self.graph.tick()));
            let is_computed = self.graph.producer(value).is_some();
            let inner = self.graph.fresh_name(&format!("{name}_{}", self.conversion.other(dtype).name()));
            let renamed = !is_body && is_computed;
            if renamed {
                self.graph.rename(value, inner.clone());
            }
            let declared = self.graph.value(value).declared.clone();
            let cast = self.add_cast(value, dtype, if renamed { &name } else { &inner }, rank);
            if is_computed {
                self.graph.value_mut(value).declared = None;
            }
            self.graph.value_mut(cast).declared = declared.map(|mut declared| {
                if let Some(ty) = &mut declared.ty {
                    Conversion { from: self.conversion.other(dtype), to: dtype }.ty(ty);
                }
                declared
            });
            self.graph.set_output(value, cast);
        }
    }

    /// Removes a `Cast` to the type that its input has now.
    fn drop_equal_cast(&mut self, id: NodeId, is_body: bool) {
        let graph = &mut *self.graph;
        if !graph.has_node(id) || !graph.node(id).is("Cast") {
            return;
        }
        let (Some(from), Some(to)) = (graph.input(id, 0), graph.output(id, 0)) else { return };
        let is_equal = graph.value(from).fact.dtype() == Some(self.conversion.to)
            && graph.value(to).fact.dtype() == Some(self.conversion.to);
        let is_output = graph.value(to).is_output() && !(is_body && graph.producer(from).is_some());
        if is_equal && !is_output {
            graph.redirect(to, from, &[]);
            graph.remove_unused([to]);
        }
    }
}

fn flag(flags: &[bool], position: usize) -> bool {
    flags.get(position).copied().unwrap_or(false)
}

fn set_dtype(fact: &mut Fact, dtype: DataType) {
    if let Fact::Tensor(tensor) = fact {
        tensor.dtype = Some(dtype);
    }
}

#[derive(Clone, Copy)]
struct Conversion {
    from: DataType,
    to: DataType,
}

/// Attributes that name an element type, by number.
const TYPE_ATTRIBUTES: [&str; 4] = ["to", "dtype", "output_datatype", "output_dtype"];

fn convert_graph(graph: &mut Graph, conversion: Conversion) {
    let values: Vec<_> = graph.values().collect();
    for id in values {
        let value = graph.value_mut(id);
        let is_interface = value.is_input() || value.is_output();
        value.declared = value.declared.take().filter(|_| is_interface);
        if let Some(declared) = &mut value.declared {
            declared.computed = None;
            if let Some(ty) = &mut declared.ty {
                conversion.ty(ty);
            }
        }
        if let Some(Constant::Dense(tensor)) = &mut value.data {
            conversion.tensor(tensor);
        }
        value.fact = match (&value.data, &value.declared) {
            (Some(Constant::Dense(tensor)), _) => Fact::of_constant(tensor),
            (_, Some(declared)) => declared.ty.as_ref().map_or(Fact::Unknown, Type::fact),
            _ => Fact::Unknown,
        };
    }
    for &id in graph.nodes().iter() {
        conversion.attributes(graph.node_mut(id));
        graph.with_subgraphs(id, |bodies, _| {
            bodies.iter_mut().for_each(|body| convert_graph(body, conversion));
        });
    }
}

impl Conversion {
    /// The other of the two types.
    fn other(self, dtype: DataType) -> DataType {
        if dtype == self.from { self.to } else { self.from }
    }

    /// Changes tensors in attributes, and attributes that name a type.
    fn attributes(self, node: &mut Node) {
        for (name, attribute) in &mut node.attributes {
            match attribute {
                Attribute::Tensor(tensor) => self.tensor(tensor),
                Attribute::Int(number) if TYPE_ATTRIBUTES.contains(&&**name) => self.number(number),
                _ => {}
            }
        }
        let floats = ["value_float", "value_floats"];
        if node.is("Constant")
            && let Some(values) = floats.iter().find_map(|&name| node.attributes.shift_remove(name))
        {
            let mut tensor = match values {
                Attribute::Floats(values) => Tensor::vector(&values),
                Attribute::Float(value) => Tensor::scalar(value),
                _ => Tensor::vector::<f32>(&[]),
            };
            self.tensor(&mut tensor);
            node.attributes.insert("value".into(), Attribute::Tensor(tensor));
        }
    }

    fn tensor(self, tensor: &mut Tensor) {
        if tensor.dtype() != self.from {
            return;
        }
        let values = tensor.to_f64().unwrap_or_default();
        if let Ok(converted) = Tensor::from_f64(self.to, tensor.shape(), &values) {
            *tensor = converted;
        }
    }

    fn number(self, number: &mut i64) {
        if *number == i64::from(self.from.number()) {
            *number = self.to.number().into();
        }
    }

    fn ty(self, ty: &mut Type) {
        match &mut ty.kind {
            TypeKind::Tensor { dtype, .. } if *dtype == Some(self.from) => *dtype = Some(self.to),
            TypeKind::Sequence(Some(item)) | TypeKind::Optional(Some(item)) => self.ty(item),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{DataType, Model, text};

    #[test]
    fn converts_types_constants_and_attributes() {
        let source = "g (float[N,2] x, bool c) => (float[N,2] y) <float[2] w = {0.1,2}> {
            a = Mul(x, w) k = Constant<value_float = 0.5>() b = Add(a, k) i = Cast<to = 7>(b) f = Cast<to = 1>(i)
            y = If(c) <then_branch = t () => (float[N,2] r) { r = Identity(f) },
                       else_branch = e () => (float[N,2] r) { r = Identity(b) }> }";
        let mut model = Model::of(text::parse_graph(source, 17).unwrap());
        model.convert_numbers(DataType::Float, DataType::Double);
        model.infer().unwrap();
        model.check().unwrap();
        let dtype = |name: &str| model.graph.value(model.graph.find(name).unwrap()).fact.dtype();
        for name in ["x", "w", "a", "k", "f", "y"] {
            assert_eq!(dtype(name), Some(DataType::Double), "{name}");
        }
        assert_eq!(dtype("i"), Some(DataType::Int64));
    }
}
