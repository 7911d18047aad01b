//! Interface of engines: load a model, describe its inputs and outputs, run it.

use crate::{Provider, error::EngineError};
use bytes::Bytes;
use pare_graph::{DataType, Tensor};
use std::{any::Any, fmt, path::PathBuf};

/// An input or output value of a model.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    /// A dense tensor.
    Tensor(Tensor),
    /// Values of one type; may be empty.
    Sequence(Vec<Value>),
    /// Keys and values at the same positions of two vectors.
    Map {
        /// Integers or strings.
        keys: Tensor,
        /// One value per key.
        values: Tensor,
    },
    /// A value that may be absent.
    Optional(Option<Box<Value>>),
}

impl Value {
    /// The tensor, also inside of an optional value.
    pub fn as_tensor(&self) -> Option<&Tensor> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            Self::Optional(Some(inner)) => inner.as_tensor(),
            _ => None,
        }
    }
}

impl From<Tensor> for Value {
    fn from(tensor: Tensor) -> Self {
        Self::Tensor(tensor)
    }
}

/// Values by name: the inputs or the outputs of a run.
pub type Feed = Vec<(String, Value)>;

/// One dimension of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortDim {
    /// A fixed size.
    Fixed(usize),
    /// Any size, but the same for each occurrence of the name.
    Symbol(String),
    /// Any size.
    Unknown,
}

impl fmt::Display for PortDim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Symbol(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// The type of a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortKind {
    /// A dense tensor.
    Tensor {
        /// Element type.
        dtype: DataType,
        /// Dimensions; `None` if the number of dimensions is not known.
        dims: Option<Vec<PortDim>>,
    },
    /// A sequence of values of one type.
    Sequence(Box<PortKind>),
    /// A value of this type, or none.
    Optional(Box<PortKind>),
    /// A map.
    Map {
        /// Element type of the keys.
        key: DataType,
        /// Element type of the values.
        value: DataType,
    },
    /// An unsupported type, as the engine names it.
    Other(String),
}

impl fmt::Display for PortKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tensor { dtype, dims: None } => write!(f, "{dtype}"),
            Self::Tensor { dtype, dims: Some(dims) } => {
                let dims: Vec<_> = dims.iter().map(ToString::to_string).collect();
                write!(f, "{dtype}[{}]", dims.join(", "))
            }
            Self::Sequence(inner) => write!(f, "seq({inner})"),
            Self::Optional(inner) => write!(f, "optional({inner})"),
            Self::Map { key, value } => write!(f, "map({key}, {value})"),
            Self::Other(text) => f.write_str(text),
        }
    }
}

impl PortKind {
    /// Checks whether `value` has this type.
    ///
    /// # Errors
    /// A sentence with both types.
    pub fn accepts(&self, value: &Value) -> Result<(), String> {
        let fits = match (self, value) {
            (Self::Tensor { dtype, dims }, Value::Tensor(tensor)) => {
                *dtype == tensor.dtype() && fits(dims.as_deref(), tensor.shape())
            }
            (Self::Sequence(kind), Value::Sequence(items)) => {
                return items.iter().try_for_each(|item| kind.accepts(item));
            }
            (Self::Optional(_), Value::Optional(None)) | (Self::Other(_), _) => true,
            (Self::Optional(kind), Value::Optional(Some(inner))) => return kind.accepts(inner),
            (Self::Optional(kind), value) => return kind.accepts(value),
            (Self::Map { key, value }, Value::Map { keys, values }) => {
                *key == keys.dtype() && *value == values.dtype()
            }
            _ => false,
        };
        if fits { Ok(()) } else { Err(format!("takes {self}, not {}", describe(value))) }
    }
}

fn fits(dims: Option<&[PortDim]>, shape: &[usize]) -> bool {
    let same = |(dim, size): (&PortDim, &usize)| !matches!(dim, PortDim::Fixed(n) if n != size);
    dims.is_none_or(|dims| dims.len() == shape.len() && dims.iter().zip(shape).all(same))
}

/// The type of `value` in the notation of [`PortKind`], with the length of a sequence.
pub(crate) fn describe(value: &Value) -> String {
    match value {
        Value::Tensor(tensor) => {
            let dims: Vec<_> = tensor.shape().iter().map(ToString::to_string).collect();
            format!("{}[{}]", tensor.dtype(), dims.join(", "))
        }
        Value::Sequence(items) => match items.first() {
            Some(first) => format!("a sequence of {} {}", items.len(), describe(first)),
            None => "an empty sequence".to_owned(),
        },
        Value::Map { keys, values } => format!("map({}, {})", keys.dtype(), values.dtype()),
        Value::Optional(Some(inner)) => format!("optional({})", describe(inner)),
        Value::Optional(None) => "an absent value".to_owned(),
    }
}

/// An input or output of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Its type.
    pub kind: PortKind,
}

impl Port {
    /// The port of a dense tensor.
    pub fn tensor(name: &str, dtype: DataType, dims: &[PortDim]) -> Self {
        Self { name: name.to_owned(), kind: PortKind::Tensor { dtype, dims: Some(dims.to_vec()) } }
    }

    /// The dimensions of a tensor of known rank.
    pub fn dims(&self) -> Option<&[PortDim]> {
        match &self.kind {
            PortKind::Tensor { dims, .. } => dims.as_deref(),
            _ => None,
        }
    }

    /// The element type of a tensor.
    pub fn dtype(&self) -> Option<DataType> {
        match &self.kind {
            PortKind::Tensor { dtype, .. } => Some(*dtype),
            _ => None,
        }
    }
}

/// Location of a model.
#[derive(Clone, Debug)]
pub enum ModelSource {
    /// A file, with external data in the same folder.
    File(PathBuf),
    /// Bytes in memory.
    Bytes {
        /// The serialized model.
        bytes: Bytes,
        /// The folder that paths of external data are relative to.
        folder: Option<PathBuf>,
    },
}

impl ModelSource {
    /// A model in memory without external data.
    pub fn bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Bytes { bytes: bytes.into(), folder: None }
    }
}

impl From<PathBuf> for ModelSource {
    fn from(path: PathBuf) -> Self {
        Self::File(path)
    }
}

impl fmt::Display for ModelSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "`{}`", path.display()),
            Self::Bytes { .. } => f.write_str("the model"),
        }
    }
}

/// Level of the engine's own optimizations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Optimize {
    /// None: the model runs as written.
    Off,
    /// Removal of redundancies.
    Basic,
    /// Fusion of operators.
    Extended,
    /// All, with changes of memory layout, as in deployment.
    #[default]
    All,
}

/// Options for loading a model.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    /// Threads within one operator; 0 is the engine's choice.
    pub threads: usize,
    /// The engine's own optimizations.
    pub optimize: Optimize,
    /// Libraries of custom operators. They run with all rights of this process: only load those that the user
    /// named.
    pub custom_op_libraries: Vec<PathBuf>,
    /// True if idle threads spin instead of sleeping: faster between runs, at the cost of other processes.
    pub spinning: bool,
    /// The file to which the engine writes the graph that it runs, after its own optimizations. Engines that
    /// cannot ignore it.
    pub optimized_model: Option<PathBuf>,
    /// The execution provider, which gets the nodes that it supports; the CPU gets the others.
    pub provider: Provider,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            threads: 1,
            optimize: Optimize::All,
            custom_op_libraries: Vec::new(),
            spinning: false,
            optimized_model: None,
            provider: Provider::default(),
        }
    }
}

impl LoadOptions {
    /// The same options with another level of optimization.
    #[must_use]
    pub fn with_optimize(&self, optimize: Optimize) -> Self {
        Self { optimize, ..self.clone() }
    }

    /// The same options for a model as written: on the CPU, without the engine's optimizations.
    #[must_use]
    pub fn as_written(&self) -> Self {
        Self { optimize: Optimize::Off, provider: Provider::default(), ..self.clone() }
    }
}

/// An engine that runs ONNX models.
pub trait Engine: Send + Sync {
    /// Its name in reports and errors.
    fn name(&self) -> &str;

    /// Its version.
    fn version(&self) -> String;

    /// Checks whether the engine has the execution provider and can load the libraries of custom operators in
    /// `options`.
    fn check(&self, options: &LoadOptions) -> Result<(), EngineError>;

    /// Loads `model`.
    fn load(&self, model: &ModelSource, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded model.
pub trait Session: Send {
    /// The required inputs (those without a default), in the model's order.
    fn inputs(&self) -> &[Port];

    /// The outputs, in the model's order.
    fn outputs(&self) -> &[Port];

    /// Converts `feeds` once for many runs. Optional inputs may be omitted. By default nothing is converted.
    fn prepare(&mut self, feeds: &[(String, Value)]) -> Result<Prepared, EngineError> {
        Ok(Prepared(Box::new(feeds.to_vec())))
    }

    /// Runs without reading the outputs, as timing needs it. By default a run whose outputs are dropped.
    fn run_prepared(&mut self, feeds: &Prepared) -> Result<(), EngineError> {
        self.run(feeds.0.downcast_ref().map_or(&[][..], Feed::as_slice)).map(drop)
    }

    /// Runs and returns the outputs, in the model's order.
    fn run(&mut self, feeds: &[(String, Value)]) -> Result<Feed, EngineError>;
}

/// Feeds in the representation of one session.
pub struct Prepared(pub Box<dyn Any + Send>);

impl fmt::Debug for Prepared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Prepared")
    }
}

/// Checks that every required input has a value of its type. Other names are not checked: they may be inputs
/// with a default.
///
/// # Errors
/// [`EngineError::Input`] for the first input without a value that fits.
pub fn check_feeds(inputs: &[Port], feeds: &[(String, Value)]) -> Result<(), EngineError> {
    for port in inputs {
        match feeds.iter().find(|(name, _)| *name == port.name) {
            Some((_, value)) => port
                .kind
                .accepts(value)
                .map_err(|reason| EngineError::Input { input: port.name.clone(), reason })?,
            None if matches!(port.kind, PortKind::Optional(_)) => {}
            None => {
                let reason = format!("needs a value of type {}", port.kind);
                return Err(EngineError::Input { input: port.name.clone(), reason });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port() -> Port {
        Port::tensor("x", DataType::Float, &[PortDim::Symbol("n".into()), PortDim::Fixed(2)])
    }

    fn feed(name: &str, tensor: Tensor) -> Feed {
        vec![(name.to_owned(), tensor.into())]
    }

    #[test]
    fn reports_feeds_that_do_not_fit() {
        let good = Tensor::from_slice(&[3, 2], &[0_f32; 6]).unwrap();
        assert!(check_feeds(&[port()], &feed("x", good.clone())).is_ok());
        let text = |feeds: Feed| check_feeds(&[port()], &feeds).unwrap_err().to_string();
        assert_eq!(text(feed("y", good)), "input `x` needs a value of type float[n, 2]");
        let wide = Tensor::from_slice(&[3, 1], &[0_f32; 3]).unwrap();
        assert_eq!(text(feed("x", wide)), "input `x` takes float[n, 2], not float[3, 1]");
        let ints = Tensor::from_slice(&[1, 2], &[0_i64; 2]).unwrap();
        assert_eq!(text(feed("x", ints)), "input `x` takes float[n, 2], not int64[1, 2]");
    }

    #[test]
    fn accepts_missing_absent_and_plain_optionals() {
        let port = Port { name: "x".into(), kind: PortKind::Optional(Box::new(port().kind)) };
        let tensor = Tensor::from_slice(&[1, 2], &[0_f32; 2]).unwrap();
        assert!(check_feeds(std::slice::from_ref(&port), &[]).is_ok());
        assert!(port.kind.accepts(&Value::Optional(None)).is_ok());
        assert!(port.kind.accepts(&tensor.into()).is_ok());
        assert!(port.kind.accepts(&Value::Sequence(vec![])).is_err());
    }
}
