//! Parts of a file that the graph does not represent, kept so that they can be written back.
//!
//! Each struct belongs to one object of the graph and is dropped with it. Where it repeats something that
//! passes may change, it also keeps the original, and is ignored once they differ.

use crate::{
    Declared,
    mapped::Mapping,
    proto::{
        AttributeProto, DeviceConfigurationProto, NodeDeviceConfigurationProto, OperatorSetIdProto,
        StringStringEntryProto, TensorAnnotation, TrainingInfoProto, ValueInfoProto,
    },
};
use std::{collections::HashMap, sync::Arc};

/// Remaining fields of a [`crate::Model`].
#[derive(Clone, Debug, Default)]
pub(crate) struct ModelExtra {
    pub opset_import: Vec<OperatorSetIdProto>,
    pub training_info: Vec<TrainingInfoProto>,
    pub configuration: Vec<DeviceConfigurationProto>,
    /// Some tensor is stored as external data: large new ones are too.
    pub external: bool,
    /// The file has initializers that are not inputs although its IR version requires that.
    pub loose: bool,
    /// The mapped files that tensors are slices of.
    pub mappings: Vec<Arc<Mapping>>,
}

/// Remaining fields of a [`crate::Function`].
#[derive(Clone, Debug, Default)]
pub(crate) struct FunctionExtra {
    pub opset_import: Vec<OperatorSetIdProto>,
    /// The domain is absent rather than empty.
    pub no_domain: bool,
    pub defaults: HashMap<String, AttributeExtra>,
}

/// Remaining fields of a [`crate::Graph`].
#[derive(Clone, Debug, Default)]
pub(crate) struct GraphExtra {
    /// Entries of `value_info` without a value of their own: duplicates, and those for unknown names.
    pub value_info: Vec<InfoEntry>,
    /// Entries of inputs and outputs that hold more than the value does.
    pub interface: Vec<InterfaceEntry>,
    /// Entries of initializers among the inputs of the file, with their positions, in an IR version in which
    /// they are constants.
    pub constant_inputs: Vec<(usize, ValueInfoProto)>,
    pub annotations: Vec<(Known, TensorAnnotation)>,
    /// Set if the order of the file is not topological: the clock of the graph and its number of nodes. The
    /// order is kept until either changes.
    pub unsorted: Option<(u64, usize)>,
}

/// True if the names in an entry are those of values; then the entry is dropped with them.
pub(crate) type Known = bool;

/// An entry of `value_info` and its position.
#[derive(Clone, Debug)]
pub(crate) struct InfoEntry {
    pub position: u64,
    pub known: Known,
    /// The entry contradicted the rest of the file from the start.
    pub wrong: bool,
    pub entry: ValueInfoProto,
}

/// An entry among the inputs or outputs, valid while its value is declared as `declared`.
#[derive(Clone, Debug)]
pub(crate) struct InterfaceEntry {
    pub output: bool,
    pub position: usize,
    pub declared: Option<Declared>,
    pub entry: ValueInfoProto,
}

/// Remaining fields of a [`crate::Node`].
#[derive(Clone, Debug, Default)]
pub(crate) struct NodeExtra(Option<Box<NodeBag>>);

/// Fields that few nodes have.
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

/// Remaining fields of a [`crate::Attribute`].
#[derive(Clone, Debug)]
pub(crate) struct AttributeExtra {
    /// The message without name and value: doc string, type (absent in old files), unused fields.
    pub rest: AttributeProto,
    /// The value is absent, since it is the default of its type.
    pub absent: bool,
}

impl TensorAnnotation {
    /// Names of the annotated tensor and of its quantization parameters.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let parameters = self.quant_parameter_tensor_names.iter().map(StringStringEntryProto::value);
        std::iter::once(self.tensor_name()).chain(parameters)
    }
}
