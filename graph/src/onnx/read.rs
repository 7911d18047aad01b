//! Decoding of a file to a [`Model`].

use super::{
    ReadError, external, metadata_from, opsets_from,
    tensor::{sparse_from, tensor_from},
    types::{declared_from, declared_to},
    wire,
};
use crate::{
    Constant, Declared, Edge, Fact, Function, Graph, GraphError, Model, Node, NodeId, TensorFact, Value,
    ValueId,
    extra::{FunctionExtra, InfoEntry, InterfaceEntry, ModelExtra, NodeBag, NodeExtra},
    mapped::Mapping,
    proto::{
        FunctionProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto,
    },
};
use bytes::Bytes;
use prost::Message;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::Arc,
};

/// Options of [`read`].
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// Follow links to external data outside of the model's folder, as in model caches. Unsafe for untrusted
    /// models: such a link may point to any file of this machine.
    pub follow_links: bool,
}

/// Reads a model. The file and its external data are mapped, and weights are slices of the mappings: the
/// files must not be changed in place while the model exists.
pub fn read(path: impl AsRef<Path>, options: &ReadOptions) -> Result<Model, ReadError> {
    let path = path.as_ref();
    let (mapping, bytes) = Mapping::open(path).map_err(|e| ReadError::of_mapping(e, path))?;
    let proto = message(bytes)?;
    // Typed lists have been copied, so their part of the mapping is not needed any more.
    mapping.forget();
    let mut model = model_from(proto, &folders_of(path), options)?;
    model.extra.mappings.push(mapping);
    Ok(model)
}

/// Size in bytes of the files that a model was read from, including external data; 0 for a model from memory.
pub fn bytes_on_disk(model: &Model) -> u64 {
    model.extra.mappings.iter().map(|m| m.bytes()).sum()
}

/// Reads a model from memory, and its external data from files in `external_folder`.
pub fn read_bytes(bytes: impl Into<Bytes>, external_folder: Option<&Path>) -> Result<Model, ReadError> {
    let folders: Vec<_> = external_folder.map(Path::to_owned).into_iter().collect();
    model_from(message(bytes.into())?, &folders, &ReadOptions::default())
}

/// The folders that may hold external data: that of the model, and, if its path is a link, that of the file it
/// refers to. In a model cache, both the model and its data are links into a folder of contents.
fn folders_of(path: &Path) -> Vec<PathBuf> {
    let folder = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        parent.unwrap_or(Path::new(".")).to_owned()
    };
    let resolved = path.canonicalize().ok().filter(|_| path.is_symlink());
    std::iter::once(folder(path)).chain(resolved.map(|path| folder(&path))).collect()
}

fn message(bytes: Bytes) -> Result<ModelProto, ReadError> {
    wire::check(&bytes, "ModelProto")?;
    decode(bytes)
}

fn model_from(mut proto: ModelProto, folders: &[PathBuf], options: &ReadOptions) -> Result<Model, ReadError> {
    let mappings = external::load(&mut proto, folders, options)?;
    let opsets = Arc::new(opsets_from(&proto.opset_import));
    let mut reader = Reader { root: Graph::new(opsets.clone()) };
    let mut graph = reader.root(proto.graph.take().ok_or(ReadError::NoGraph)?)?;
    reader.root = graph.nested();
    let (mut functions, mut seen) = (vec![], HashSet::new());
    for function in proto.functions {
        let function = reader.function(function)?;
        let overload = function.overload.clone().unwrap_or_default();
        if !seen.insert((function.name.clone(), function.domain.clone(), overload)) {
            let object = format!("the function `{}` of domain `{}`", function.name, function.domain);
            return Err(ReadError::invalid(object, "is defined twice"));
        }
        functions.push(function);
    }
    let old = proto.ir_version.is_some_and(|v| v < super::encode::FREE_INITIALIZERS);
    let loose = old && super::encode::has_free_initializers(&graph);
    if old {
        super::constant_inputs::take(&mut graph);
    }
    Ok(Model {
        ir_version: proto.ir_version,
        opsets,
        producer_name: proto.producer_name,
        producer_version: proto.producer_version,
        domain: proto.domain,
        model_version: proto.model_version,
        doc: proto.doc_string,
        metadata: metadata_from(proto.metadata_props),
        extra: ModelExtra {
            opset_import: proto.opset_import,
            training_info: proto.training_info,
            configuration: proto.configuration,
            external: !mappings.is_empty(),
            loose,
            mappings,
        },
        graph,
        functions,
    })
}

/// Decodes a message that [`wire::check`] has accepted.
pub(super) fn decode<M: Message + Default>(bytes: Bytes) -> Result<M, ReadError> {
    M::decode(bytes).map_err(|e| ReadError::NotOnnx(e.to_string()))
}

/// Builds graphs, which share the operator sets and the names of `root`.
pub(super) struct Reader {
    root: Graph,
}

impl Reader {
    fn root(&self, proto: GraphProto) -> Result<Graph, ReadError> {
        let graph = self.fill(self.root.nested(), proto)?;
        no_captures(&graph)?;
        Ok(graph)
    }

    pub(super) fn subgraph(&self, proto: GraphProto, scope: &Graph) -> Result<Graph, ReadError> {
        self.fill(scope.nested(), proto)
    }

    fn fill(&self, mut graph: Graph, proto: GraphProto) -> Result<Graph, ReadError> {
        graph.name = proto.name;
        graph.doc = proto.doc_string;
        graph.metadata = metadata_from(proto.metadata_props);
        // Initializers first, since they are written in the order in which values are added.
        initializers(&mut graph, proto.initializer, proto.sparse_initializer)?;
        for (position, entry) in proto.input.into_iter().enumerate() {
            let name = named(entry.name.clone(), "a graph input")?;
            let id = match graph.find(&name) {
                Some(id) if graph.value(id).is_input() => return Err(GraphError::DuplicateName(name).into()),
                Some(id) => id,
                None => graph.add_value(Value::named(&name))?,
            };
            graph.add_input(id);
            declare(&mut graph, id, entry, false, position)?;
        }
        self.nodes(&mut graph, proto.node)?;
        for (position, entry) in proto.output.into_iter().enumerate() {
            let id = graph.find_or_capture(&named(entry.name.clone(), "a graph output")?);
            graph.add_output(id);
            declare(&mut graph, id, entry, true, position)?;
        }
        value_info(&mut graph, proto.value_info)?;
        for annotation in proto.quantization_annotation {
            let known = annotation.names().all(|name| graph.find(name).is_some());
            graph.extra.annotations.push((known, annotation));
        }
        check_order(&mut graph)?;
        Ok(graph)
    }

    fn function(&self, proto: FunctionProto) -> Result<Function, ReadError> {
        let name = named(proto.name, "a function")?;
        let of = format!("the function `{name}`");
        let mut body = self.root.nested();
        body.is_function = true;
        body.opsets = Arc::new(opsets_from(&proto.opset_import));
        body.doc = proto.doc_string;
        body.metadata = metadata_from(proto.metadata_props);
        for input in proto.input {
            let input = named(Some(input), &format!("an input of {of}"))?;
            let id = body.add_value(Value::named(&input))?;
            body.add_input(id);
        }
        let (mut defaults, mut bag) = (indexmap::IndexMap::new(), NodeBag::default());
        for attribute in proto.attribute_proto {
            let (name, value, extra) = self.attribute(attribute, &body, &of)?;
            bag.attributes.extend(extra.map(|e| (name.clone(), e)));
            if defaults.insert(name.clone(), value).is_some() {
                return Err(ReadError::invalid(of, format!("has the attribute `{name}` twice")));
            }
        }
        self.nodes(&mut body, proto.node)?;
        for output in proto.output {
            let output = named(Some(output), &format!("an output of {of}"))?;
            let id = body.find_or_capture(&output);
            body.add_output(id);
        }
        value_info(&mut body, proto.value_info)?;
        check_order(&mut body)?;
        no_captures(&body)?;
        Ok(Function {
            name,
            overload: proto.overload,
            attributes: proto.attribute,
            defaults,
            extra: FunctionExtra {
                opset_import: proto.opset_import,
                no_domain: proto.domain.is_none(),
                defaults: bag.attributes,
            },
            domain: proto.domain.unwrap_or_default(),
            body,
        })
    }

    /// Adds the outputs of all nodes first, since a file need not be sorted.
    fn nodes(&self, graph: &mut Graph, protos: Vec<NodeProto>) -> Result<(), ReadError> {
        for proto in &protos {
            for output in proto.output.iter().filter(|o| !o.is_empty()) {
                if let Some(id) = graph.find(output) {
                    let first = match graph.value(id) {
                        value if value.is_input() => "the graph's inputs".into(),
                        value if value.data.is_some() => "an initializer".into(),
                        _ => protos
                            .iter()
                            .find(|p| p.output.contains(output))
                            .map_or_else(String::new, describe),
                    };
                    let (value, second) = (output.clone(), describe(proto));
                    return Err(GraphError::MultipleProducers { value, first, second }.into());
                }
                graph.add_value(Value::named(output))?;
            }
        }
        for proto in protos {
            self.node(graph, proto)?;
        }
        Ok(())
    }

    fn node(&self, graph: &mut Graph, proto: NodeProto) -> Result<NodeId, ReadError> {
        let of = describe(&proto);
        if proto.op_type().is_empty() {
            return Err(ReadError::invalid(of, "has no operator"));
        }
        let mut bag = NodeBag { devices: proto.device_configurations, ..NodeBag::default() };
        let mut node = Node {
            op: proto.op_type.unwrap_or_default(),
            domain: proto.domain,
            overload: proto.overload,
            name: proto.name,
            doc: proto.doc_string,
            metadata: metadata_from(proto.metadata_props),
            ..Node::default()
        };
        for attribute in proto.attribute {
            let (name, value, extra) = self.attribute(attribute, graph, &of)?;
            bag.attributes.extend(extra.map(|e| (name.clone(), e)));
            if node.attributes.insert(name.clone(), value).is_some() {
                return Err(ReadError::invalid(of, format!("has the attribute `{name}` twice")));
            }
        }
        node.extra = NodeExtra::new(bag);
        let mut value = |name: &String| (!name.is_empty()).then(|| graph.find_or_capture(name));
        let inputs: Vec<_> = proto.input.iter().map(&mut value).collect();
        let outputs: Vec<_> = proto.output.iter().map(&mut value).collect();
        Ok(graph.add_node(node, &inputs, &outputs)?)
    }
}

/// Adds initializers. Apart from `fill`, which recurs for every level of subgraphs and needs a small frame.
fn initializers(
    graph: &mut Graph,
    dense: Vec<TensorProto>,
    sparse: Vec<SparseTensorProto>,
) -> Result<(), ReadError> {
    for tensor in dense {
        let name = named(tensor.name.clone(), "an initializer")?;
        graph.add_value(Value::constant(&name, tensor_from(tensor)?))?;
    }
    for sparse in sparse {
        let name = sparse.values.as_ref().and_then(|v| v.name.clone());
        let name = named(name, "a sparse initializer")?;
        let data = Constant::Sparse(sparse_from(sparse, &format!("`{name}`"))?);
        graph.add_value(Value { fact: data.fact(), data: Some(data), ..Value::named(&name) })?;
    }
    Ok(())
}

/// A mandatory name.
fn named(name: Option<String>, of: &str) -> Result<String, ReadError> {
    name.filter(|n| !n.is_empty()).ok_or_else(|| ReadError::invalid(of, "has no name"))
}

fn describe(proto: &NodeProto) -> String {
    match (proto.op_type(), proto.name(), proto.output.first()) {
        ("", name, _) if !name.is_empty() => format!("the node `{name}`"),
        ("", _, Some(output)) => format!("the node producing `{output}`"),
        ("", ..) => "a node".into(),
        (op, name, _) if !name.is_empty() => format!("{op} `{name}`"),
        (op, _, Some(output)) => format!("{op} producing `{output}`"),
        (op, ..) => op.into(),
    }
}

/// Rejects cycles, and records an order that is not topological.
fn check_order(graph: &mut Graph) -> Result<(), ReadError> {
    if let Some(&node) = graph.unordered_nodes().first() {
        return Err(GraphError::Cycle(graph.describe(node)).into());
    }
    let ranks: Vec<_> = graph.nodes().iter().map(|&n| graph.node(n).rank).collect();
    if !ranks.is_sorted() {
        graph.extra.unsorted = Some((graph.clock(), ranks.len()));
    }
    Ok(())
}

/// Checks that a root graph captures nothing.
fn no_captures(graph: &Graph) -> Result<(), ReadError> {
    let Some(&id) = graph.captures().first() else { return Ok(()) };
    let by = match graph.users(id).first() {
        Some(&(node, Edge::Capture)) => format!("in a subgraph of {}", graph.describe(node)),
        Some(&(node, _)) => format!("by {}", graph.describe(node)),
        None => "as an output".into(),
    };
    Err(ReadError::Undefined { value: graph.value(id).name.clone(), by })
}

/// Declares an input or output by its entry, unless an earlier entry did.
fn declare(
    graph: &mut Graph,
    id: ValueId,
    entry: ValueInfoProto,
    output: bool,
    position: usize,
) -> Result<(), ReadError> {
    let declared = declared_from(&entry)?;
    if graph.value(id).declared.is_none() {
        set_declared_fact(graph, id, &declared);
        graph.set_declared(id, Some(declared));
    }
    let value = graph.value(id);
    let declared = value.declared.clone();
    if declared.as_ref().map(|d| declared_to(&value.name, d)).as_ref() != Some(&entry) {
        graph.extra.interface.push(InterfaceEntry { output, position, declared, entry });
    }
    Ok(())
}

/// Sets the fact of a value from its declaration. The elements of an initializer that is also an input are
/// unknown, since it may be overridden, and its shape is known only as far as it is declared.
fn set_declared_fact(graph: &mut Graph, id: ValueId, declared: &Declared) {
    let value = graph.value(id);
    let fact = declared.ty.as_ref().map_or(Fact::Unknown, crate::Type::fact);
    match (&value.fact, &fact) {
        (Fact::Tensor(t), Fact::Unknown) if value.is_input() => {
            let fact = Fact::Tensor(TensorFact { content: None, ..t.clone() });
            graph.set_fact(id, fact);
        }
        (_, fact) if value.is_input() || value.data.is_none() => graph.set_fact(id, fact.clone()),
        _ => {}
    }
}

fn value_info(graph: &mut Graph, entries: Vec<ValueInfoProto>) -> Result<(), ReadError> {
    for (position, entry) in entries.into_iter().enumerate() {
        let (position, declared) = (position as u64, declared_from(&entry)?);
        let id = graph.find(entry.name());
        let wrong = id.is_some_and(|id| !declared.agrees(&graph.value(id).fact));
        if let Some(id) = id.filter(|&id| graph.value(id).declared.is_none()) {
            set_declared_fact(graph, id, &declared);
            if declared_to(entry.name(), &declared) == entry {
                graph.set_declared(id, Some(Declared { order: Some(position), ..declared }));
                continue;
            }
            graph.set_declared(id, Some(declared));
        }
        if id.is_none() {
            // A new value of this name would take over the entry.
            graph.names.take(entry.name());
        }
        graph.extra.value_info.push(InfoEntry { position, known: id.is_some(), wrong, entry });
    }
    Ok(())
}
