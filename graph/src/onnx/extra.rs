//! What a file says beyond what the graph understands, kept to be written back.
//!
//! Each bag belongs to one thing and dies with it. Where a bag repeats something that passes may change, it also
//! keeps what that was, and is ignored once they differ.

use super::{
    mapped::Mapping,
    proto::{
        AttributeProto, DeviceConfigurationProto, NodeDeviceConfigurationProto, OperatorSetIdProto,
        StringStringEntryProto, TensorAnnotation, TrainingInfoProto, ValueInfoProto,
    },
};
use crate::Declared;
use std::{collections::HashMap, sync::Arc};

/// Beyond [`crate::Model`].
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelExtra {
    pub opset_import: Vec<OperatorSetIdProto>,
    pub training_info: Vec<TrainingInfoProto>,
    pub configuration: Vec<DeviceConfigurationProto>,
    /// Some tensor stood in a file of its own: large new ones are to stand there too.
    pub external: bool,
    /// The file has initializers that are no inputs although its version asks for that.
    pub loose: bool,
    /// The mapped files that tensors are slices of.
    pub mappings: Vec<Arc<Mapping>>,
}

/// Beyond [`crate::Function`].
#[derive(Clone, Debug, Default)]
pub(crate) struct FunctionExtra {
    pub opset_import: Vec<OperatorSetIdProto>,
    /// The file leaves the domain out, rather than giving an empty one.
    pub no_domain: bool,
    pub defaults: HashMap<String, AttributeExtra>,
}

/// Beyond [`crate::Graph`].
#[derive(Clone, Debug, Default)]
pub(crate) struct GraphExtra {
    /// Entries of `value_info` that no value carries: second ones, and ones for names that no value has.
    pub value_info: Vec<Info>,
    /// Entries of inputs and outputs that say more than the value.
    pub interface: Vec<Kept>,
    pub annotations: Vec<(Known, TensorAnnotation)>,
    /// The file's order is not topological: it stays as long as nobody adds (the graph's clock) or removes (the
    /// number of nodes) any.
    pub unsorted: Option<(u64, usize)>,
}

/// Whether the names an entry speaks of were those of values; then it lives as long as they do.
pub(crate) type Known = bool;

/// An entry of `value_info` and its place there.
#[derive(Clone, Debug)]
pub(crate) struct Info {
    pub place: u64,
    pub known: Known,
    /// It contradicts what else the file says about the value: that it does so later is no news.
    pub wrong: bool,
    pub entry: ValueInfoProto,
}

/// An entry among the inputs or outputs as it was, while its value was declared so.
#[derive(Clone, Debug)]
pub(crate) struct Kept {
    pub output: bool,
    pub place: usize,
    pub declared: Option<Declared>,
    pub entry: ValueInfoProto,
}

/// Beyond [`crate::Node`].
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeExtra(Option<Box<NodeBag>>);

/// What few nodes have.
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeBag {
    pub attributes: HashMap<String, AttributeExtra>,
    pub devices: Vec<NodeDeviceConfigurationProto>,
}

impl NodeExtra {
    pub fn new(bag: NodeBag) -> Self {
        let empty = bag.attributes.is_empty() && bag.devices.is_empty();
        Self((!empty).then(|| Box::new(bag)))
    }

    pub fn bag(&self) -> Option<&NodeBag> {
        self.0.as_deref()
    }
}

/// Beyond [`crate::Attribute`].
#[derive(Clone, Debug)]
pub(crate) struct AttributeExtra {
    /// The message without name and value: doc string, type (which old files lack), stray fields.
    pub rest: AttributeProto,
    /// The value is the default of its type and the file leaves it out.
    pub absent: bool,
}

impl TensorAnnotation {
    /// The tensors it speaks of: the annotated one and its quantization parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let parameters = self.quant_parameter_tensor_names.iter().map(StringStringEntryProto::value);
        std::iter::once(self.tensor_name()).chain(parameters)
    }
}
