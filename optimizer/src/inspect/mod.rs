//! The structure and the cost of a model.

mod blocks;
mod gradients;
mod groups;
mod quantization;
mod tokens;

pub use blocks::{BlockShare, Blocks, inspect_blocks};
pub use gradients::{Gradients, WeightGradient, inspect_gradients};
pub use groups::{ChannelGroup, ChannelGroups, GroupMember, inspect_groups};
pub use quantization::{Quantization, QuantizedLayer, inspect_quantization};
pub use tokens::{TokenBlock, Tokens, inspect_tokens};

use crate::{Environment, Error, Hint, Source, options::setters, runner::Data, samples::check_dims};
use pare_graph::{
    Graph, Model, Samples,
    ops::{Bindings, Cost},
    text,
};
use pare_passes::Tools;
use pare_runtime::{InputSpec, PortDim, PortKind, input_specs};
use serde::{Serialize, Serializer};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

/// Elements of a tensor that [`model_text`] prints.
const TEXT_ELEMENTS: usize = 8;

/// Options of [`inspect`] and its relatives.
#[derive(Clone, Default)]
#[non_exhaustive]
pub struct InspectOptions {
    /// Sizes of symbolic dimensions; 1 without.
    pub dims: Vec<(String, i64)>,
    /// Samples whose sizes symbolic dimensions have that `dims` does not set.
    pub samples: Option<PathBuf>,
    /// True to list every node.
    pub layers: bool,
    /// Engine, threads, seed, progress; used for timing only.
    pub environment: Environment,
}

setters!(InspectOptions {
    /// Sets the sizes of symbolic dimensions.
    dims: Vec<(String, i64)>,
    /// Lists every node.
    layers: bool,
    /// Sets the environment.
    environment: Environment,
    ;
    /// Sets the samples whose sizes symbolic dimensions have.
    samples: PathBuf,
});

impl InspectOptions {
    /// The sizes of the symbolic dimensions of a model.
    fn bindings(&self, model: &Model) -> Result<Bindings, Error> {
        check_dims(&self.dims, model)?;
        let data = Data::with_samples(self.samples.as_deref(), model)?;
        let tools = Tools { samples: data.samples.as_ref().map(|s| s as &dyn Samples), ..Tools::default() };
        let mut sizes = tools.sizes(&model.graph);
        sizes.sizes.extend(self.dims.iter().cloned());
        Ok(sizes)
    }
}

/// The result of [`inspect`].
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Inspection {
    /// The model file.
    pub model: Option<PathBuf>,
    /// Bytes of the model, external data included.
    pub bytes: u64,
    /// Nodes, subgraphs and functions included.
    pub nodes: usize,
    /// Versions of operator sets, by domain.
    #[serde(serialize_with = "as_map")]
    pub opsets: Vec<(String, i64)>,
    /// Elements of the weights.
    pub parameters: u64,
    /// Bytes of the weights.
    pub weight_bytes: u64,
    /// Multiply-accumulates.
    pub macs: u64,
    /// Largest number of bytes of activations that exist at the same time.
    pub activation_peak: u64,
    /// Number of nodes by operator.
    pub operators: BTreeMap<String, u64>,
    /// Inputs with their types.
    pub inputs: Vec<(String, String)>,
    /// Outputs with their types.
    pub outputs: Vec<(String, String)>,
    /// Every node, if requested.
    pub layers: Vec<LayerCost>,
    /// Symbolic dimensions of the inputs, other than first ones, that were counted as 1.
    #[serde(skip)]
    pub open_dims: Vec<String>,
    /// True if some sizes are unknown, so that the cost is incomplete.
    #[serde(skip)]
    pub incomplete: bool,
}

/// The cost of one node.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct LayerCost {
    /// The operator and the name of the node.
    pub name: String,
    /// The type of its first output.
    pub output: String,
    /// Elements of its weights.
    pub params: u64,
    /// Multiply-accumulates; `None` if unknown.
    pub macs: Option<u64>,
}

/// Reads a model and returns its structure and cost.
///
/// ```
/// # fn main() -> Result<(), onnx_pare::Error> {
/// let model = std::path::Path::new("../fixtures/digits-cnn.onnx");
/// let inspection = onnx_pare::inspect(model, &onnx_pare::InspectOptions::default())?;
/// assert_eq!((inspection.operators["Conv"], inspection.nodes), (13, 50));
/// # Ok(())
/// # }
/// ```
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] for an invalid model or an unknown dimension.
pub fn inspect(source: impl Into<Source>, options: &InspectOptions) -> Result<Inspection, Error> {
    let Checked { model, path, bytes } = Checked::load(source.into())?;
    let sizes = options.bindings(&model)?;
    let cost = model.cost(&sizes);
    let specs = input_specs(&model);
    let outputs = model.graph.outputs().iter().map(|&v| model.graph.value(v));
    Ok(Inspection {
        model: path,
        bytes,
        nodes: model.node_count(),
        opsets: model.opsets.iter().cloned().collect(),
        parameters: cost.params,
        weight_bytes: cost.bytes,
        macs: cost.macs,
        activation_peak: cost.activation_peak,
        operators: operators(&model),
        inputs: specs.iter().map(|s| (s.name.clone(), s.kind.to_string())).collect(),
        outputs: outputs.map(|v| (v.name.clone(), v.fact.to_string())).collect(),
        layers: if options.layers { layers(&model, &cost) } else { vec![] },
        open_dims: open_dims(&specs, &sizes),
        incomplete: cost.unsized_values > 0,
    })
}

/// The graph in ONNX textual syntax; long tensors are abbreviated.
pub fn model_text(model: &Model) -> String {
    text::print_model_with(model, text::PrintOptions { max_elements: Some(TEXT_ELEMENTS) })
}

/// Reads a model, and returns its graph in ONNX textual syntax with all types.
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] for an invalid model.
pub fn inspect_text(source: impl Into<Source>) -> Result<String, Error> {
    Ok(model_text(&Checked::load(source.into())?.model))
}

/// A model that is valid, with all types inferred.
struct Checked {
    model: Model,
    path: Option<PathBuf>,
    bytes: u64,
}

impl Checked {
    fn load(source: Source) -> Result<Self, Error> {
        let path = source.path().map(Into::into);
        let loaded = source.load()?;
        let mut model = loaded.model;
        model
            .check()
            .map_err(|e| Error::Invalid { message: e.to_string(), hint: e.hint().map(Hint::Text) })?;
        model.infer().map_err(Error::invalid)?;
        Ok(Self { model, path, bytes: loaded.bytes })
    }
}

fn as_map<S: Serializer>(pairs: &[(String, i64)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(key, value)| (key, value)))
}

/// Symbolic dimensions without a size, other than the first ones, which are batches: with 1 for them the cost
/// is not that of any real run.
fn open_dims(inputs: &[InputSpec], sizes: &Bindings) -> Vec<String> {
    let inner = |input: &InputSpec| match &input.kind {
        PortKind::Tensor { dims, .. } => dims.iter().flatten().skip(1).cloned().collect(),
        _ => vec![],
    };
    let symbol = |dim: PortDim| match dim {
        PortDim::Symbol(name) => Some(name).filter(|name| !sizes.sizes.contains_key(name)),
        _ => None,
    };
    let names: BTreeSet<String> = inputs.iter().flat_map(inner).filter_map(symbol).collect();
    names.into_iter().collect()
}

fn layers(model: &Model, cost: &Cost) -> Vec<LayerCost> {
    let graph = &model.graph;
    let layer = |node: &pare_graph::ops::NodeCost| LayerCost {
        name: graph.describe(node.id),
        output: graph
            .outputs_of(node.id)
            .iter()
            .flatten()
            .next()
            .map_or_else(String::new, |&v| graph.value(v).fact.to_string()),
        params: node.params,
        macs: node.macs,
    };
    cost.nodes.iter().map(layer).collect()
}

/// The number of nodes by operator, subgraphs and functions included.
fn operators(model: &Model) -> BTreeMap<String, u64> {
    fn count(graph: &Graph, into: &mut BTreeMap<String, u64>) {
        for &id in graph.nodes().iter() {
            let node = graph.node(id);
            let name = if node.domain().is_empty() {
                node.op.clone()
            } else {
                format!("{}.{}", node.domain(), node.op)
            };
            *into.entry(name).or_default() += 1;
            node.subgraphs().for_each(|body| count(body, into));
        }
    }
    let mut counts = BTreeMap::new();
    count(&model.graph, &mut counts);
    model.functions.iter().for_each(|f| count(&f.body, &mut counts));
    counts
}
