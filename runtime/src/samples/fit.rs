//! Assignment of arrays to the inputs of a model.

use super::{
    array::{Array, SampleLimits},
    error::SamplesError,
};
use crate::{Port, PortDim, PortKind};
use pare_graph::DataType;
use std::path::Path;

/// An array for one input.
pub(super) struct Column {
    pub array: Array,
    pub dtype: DataType,
    /// The input has no batch axis and takes one row without its first axis.
    pub strip: bool,
}

/// Samples per run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PerRun {
    /// Any number.
    Any,
    /// A fixed number.
    Exactly(usize),
}

pub(super) fn check_names(path: &Path, arrays: &[Array], inputs: &[Port]) -> Result<(), SamplesError> {
    let list = |names: Vec<&str>| match names.len() {
        0 => "none".to_owned(),
        _ => names.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", "),
    };
    let held = || list(arrays.iter().map(|array| array.name.as_str()).collect());
    let wanted = || list(inputs.iter().map(|port| port.name.as_str()).collect());
    let missing = inputs.iter().find(|port| {
        let optional = matches!(port.kind, PortKind::Optional(_));
        !optional && arrays.iter().all(|array| array.name != port.name)
    });
    let file = path.display();
    if let Some(port) = missing {
        let message = format!("`{file}` has no array for input `{}`; it holds {}", port.name, held());
        return Err(SamplesError::Names { message, input: port.name.clone() });
    }
    let known = |name: &str| name == "labels" || inputs.iter().any(|port| port.name == name);
    match arrays.iter().find(|array| !known(&array.name)) {
        Some(array) => {
            let message = format!("`{file}` holds an array `{}`; the inputs are {}", array.name, wanted());
            let input = inputs.first().map_or_else(String::new, |port| port.name.clone());
            Err(SamplesError::Names { message, input })
        }
        None => Ok(()),
    }
}

pub(super) fn read_labels(
    path: &Path,
    array: &mut Array,
    limits: &SampleLimits,
) -> Result<Vec<i64>, SamplesError> {
    let broken = |reason: String| SamplesError::File { path: path.to_owned(), reason };
    let rows = array.rows();
    let dtype = array.header.element.dtype().filter(|dtype| dtype.is_integer() || *dtype == DataType::Bool);
    let single = array.header.shape.iter().skip(1).all(|&size| size == 1) && !array.header.shape.is_empty();
    let (Some(dtype), true) = (dtype, single) else {
        return Err(broken("`labels` is not one class number per sample".to_owned()));
    };
    let labels = array.rows_as(0..rows, dtype, false, limits)?;
    labels.to_i64().ok_or_else(|| broken("`labels` holds numbers beyond 64 bits".to_owned()))
}

/// `array` as a column for `port`, and the samples per run.
pub(super) fn column(array: Array, port: &Port) -> Result<(Column, PerRun), SamplesError> {
    let (shape, element) = (array.header.shape.as_slice(), array.header.element);
    let given = || {
        let dtype = element.dtype().map_or("raw bytes", DataType::name);
        let sizes: Vec<_> = shape.iter().map(ToString::to_string).collect();
        format!("{dtype}[{}]", sizes.join(", "))
    };
    let misfit = || {
        let reason = format!("takes {}, not rows of {}", port.kind, given());
        SamplesError::Port { name: port.name.clone(), reason }
    };
    let dtype = port.dtype().filter(|dtype| element.becomes(*dtype)).ok_or_else(misfit)?;
    let (strip, rest, first) = match port.dims() {
        // A scalar, or a port of unknown rank: each number of a list is a sample.
        None => (shape.len() == 1, None, PortDim::Unknown),
        Some(dims) if dims.len() == shape.len() && !dims.is_empty() => {
            (false, Some(&dims[1..]), dims[0].clone())
        }
        Some(dims) if dims.len() + 1 == shape.len() => (true, Some(dims), PortDim::Unknown),
        Some(_) => return Err(misfit()),
    };
    let same = |(dim, size): (&PortDim, &usize)| !matches!(dim, PortDim::Fixed(n) if n != size);
    if !rest.is_none_or(|rest| rest.iter().zip(&shape[1..]).all(same)) {
        return Err(misfit());
    }
    let per_run = match first {
        _ if strip => PerRun::Exactly(1),
        PortDim::Fixed(0) => return Err(misfit()),
        PortDim::Fixed(size) => PerRun::Exactly(size),
        PortDim::Symbol(_) | PortDim::Unknown => PerRun::Any,
    };
    Ok((Column { array, dtype, strip }, per_run))
}

impl PerRun {
    /// Both constraints; `name` is the input of the second.
    pub fn and(self, other: Self, name: &str) -> Result<Self, SamplesError> {
        match (self, other) {
            (Self::Any, other) | (other, Self::Any) => Ok(other),
            (Self::Exactly(a), Self::Exactly(b)) if a == b => Ok(self),
            (Self::Exactly(a), Self::Exactly(b)) => {
                let text = format!("input `{name}` takes {b} samples a run, where another input takes {a}");
                Err(SamplesError::Counts(text))
            }
        }
    }
}
