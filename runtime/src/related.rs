//! Comparison of models whose interfaces differ, by presenting both with the interface of the original.
//!
//! ```text
//! original:   feed ──▶ split into batches of the old size ──▶ original ──▶ stack ──▶ outputs
//! candidate:  feed ──▶ values between ──▶ new names ──▶ candidate ──▶ old names ──▶ outputs
//! ```
//!
//! Floats of another type are converted to it, and back.

use crate::{Engine, EngineError, Feed, LoadOptions, ModelSource, Port, PortDim, PortKind, Session, Value};
use bytes::Bytes;
use pare_graph::{DataType, Tensor, TensorError};
use std::sync::OnceLock;

/// The relation of a candidate's interface to that of the original.
#[derive(Clone, Debug, Default)]
pub struct Relation {
    /// The inputs of the candidate, each with the name of the value in the original.
    pub inputs: Vec<(String, String)>,
    /// The outputs of the candidate, each with the name of the output of the original.
    pub outputs: Vec<(String, String)>,
    /// The part of the original that computes those inputs of the candidate that are not its own inputs.
    pub between: Option<ModelSource>,
    /// Axes that have a fixed size in the original only.
    pub freed: Vec<FreedPorts>,
}

/// An axis that has a fixed size in the original and any size in the candidate.
#[derive(Clone, Debug)]
pub struct FreedPorts {
    /// The symbol in the candidate.
    pub symbol: String,
    /// The size in the original.
    pub size: usize,
    /// The inputs of the original with the axis.
    pub inputs: Vec<(String, usize)>,
    /// The outputs of the original with the axis.
    pub outputs: Vec<(String, usize)>,
    /// True if the positions are computed one by one, so that other sizes are stacked from runs of the
    /// original.
    pub stacked: bool,
}

/// An engine that loads a candidate and its original with the same interface.
pub struct RelatedEngine<'e> {
    engine: &'e dyn Engine,
    candidate: &'e ModelSource,
    relation: Relation,
    /// The inputs and outputs of the original, which is loaded first.
    ports: OnceLock<(Vec<Port>, Vec<Port>)>,
}

impl<'e> RelatedEngine<'e> {
    /// An engine for comparing `candidate` with its original.
    pub fn new(engine: &'e dyn Engine, candidate: &'e ModelSource, relation: Relation) -> Self {
        Self { engine, candidate, relation, ports: OnceLock::new() }
    }

    fn is_candidate(&self, model: &ModelSource) -> bool {
        match (self.candidate, model) {
            (ModelSource::File(a), ModelSource::File(b)) => a == b,
            (ModelSource::Bytes { bytes: a, .. }, ModelSource::Bytes { bytes: b, .. }) => {
                (a.as_ptr(), a.len()) == (b.as_ptr(), b.len())
            }
            _ => false,
        }
    }
}

impl Engine for RelatedEngine<'_> {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn version(&self) -> String {
        self.engine.version()
    }

    fn check(&self, options: &LoadOptions) -> Result<(), EngineError> {
        self.engine.check(options)
    }

    fn load(&self, model: &ModelSource, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        let mut session = self.engine.load(model, options)?;
        if self.is_candidate(model) {
            let between = match &self.relation.between {
                Some(part) => Some(self.engine.load(part, options)?),
                None => None,
            };
            let ports = self.ports.get().cloned().unwrap_or_default();
            return Ok(Box::new(Renamed::new(session, between, ports, &self.relation)));
        }
        for freed in &self.relation.freed {
            session = Box::new(Stacked::new(session, freed.clone(), self.engine.name()));
        }
        let _ = self.ports.set((session.inputs().to_vec(), session.outputs().to_vec()));
        Ok(session)
    }
}

/// The candidate with the names of the original.
struct Renamed {
    session: Box<dyn Session>,
    between: Option<Box<dyn Session>>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Name in the candidate, name in the original.
    input_names: Vec<(String, String)>,
    output_names: Vec<(String, String)>,
}

impl Renamed {
    fn new(
        session: Box<dyn Session>,
        between: Option<Box<dyn Session>>,
        (inputs, known): (Vec<Port>, Vec<Port>),
        relation: &Relation,
    ) -> Self {
        let port = |port: &Port| {
            let mut port = Port { name: original(&relation.outputs, &port.name), ..port.clone() };
            let known = known.iter().find(|known| known.name == port.name).and_then(Port::dtype);
            if let (PortKind::Tensor { dtype, .. }, Some(known)) = (&mut port.kind, known)
                && dtype.is_float()
                && known.is_float()
            {
                *dtype = known;
            }
            port
        };
        let outputs = session.outputs().iter().map(port).collect();
        let (input_names, output_names) = (relation.inputs.clone(), relation.outputs.clone());
        Self { session, between, inputs, outputs, input_names, output_names }
    }
}

fn original(names: &[(String, String)], name: &str) -> String {
    names.iter().find(|(now, _)| now == name).map_or(name, |(_, original)| original).to_owned()
}

impl Session for Renamed {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, feeds: &[(String, Value)]) -> Result<Feed, EngineError> {
        let mut values = feeds.to_vec();
        if let Some(between) = &mut self.between {
            values.extend(between.run(feeds)?);
        }
        let find = |(now, original): &(String, String)| {
            let (_, value) = values.iter().find(|(name, _)| name == original)?;
            Some((now.clone(), converted(value.clone(), dtype_of(self.session.inputs(), now))))
        };
        let feed: Feed = self.input_names.iter().filter_map(find).collect();
        let outputs = self.session.run(&feed)?;
        let known = |(name, value): (String, Value)| {
            let name = original(&self.output_names, &name);
            let dtype = dtype_of(&self.outputs, &name);
            (name, converted(value, dtype))
        };
        Ok(outputs.into_iter().map(known).collect())
    }
}

fn dtype_of(ports: &[Port], name: &str) -> Option<DataType> {
    ports.iter().find(|port| port.name == name)?.dtype()
}

/// The value with its floats in another float type of at least 16 bits.
fn converted(value: Value, dtype: Option<DataType>) -> Value {
    let converted = dtype.zip(value.as_tensor()).and_then(|(dtype, tensor)| {
        let differs = dtype != tensor.dtype() && dtype.is_float() && tensor.dtype().is_float();
        let elements = if differs { tensor.to_f64() } else { None };
        Tensor::from_f64(dtype, tensor.shape(), &elements?).ok()
    });
    converted.map_or(value, Value::Tensor)
}

/// The original on any number of positions along an axis of fixed size.
struct Stacked {
    session: Box<dyn Session>,
    freed: FreedPorts,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    engine: String,
}

impl Stacked {
    fn new(session: Box<dyn Session>, freed: FreedPorts, engine: &str) -> Self {
        let open = |ports: &[Port], axes: &[(String, usize)]| -> Vec<Port> {
            let port = |port: &Port| {
                let mut port = port.clone();
                if let PortKind::Tensor { dims: Some(dims), .. } = &mut port.kind {
                    for (_, axis) in axes.iter().filter(|(name, _)| *name == port.name) {
                        dims.get_mut(*axis)
                            .into_iter()
                            .for_each(|d| *d = PortDim::Symbol(freed.symbol.clone()));
                    }
                }
                port
            };
            ports.iter().map(port).collect()
        };
        let inputs = open(session.inputs(), &freed.inputs);
        let outputs = open(session.outputs(), &freed.outputs);
        Self { session, inputs, outputs, freed, engine: engine.to_owned() }
    }

    fn error(&self, reason: impl ToString) -> EngineError {
        EngineError::Run { engine: self.engine.clone(), reason: reason.to_string() }
    }

    /// The number of positions in the inputs.
    fn count(&self, feeds: &[(String, Value)]) -> Option<usize> {
        let mut counts = self.freed.inputs.iter().filter_map(|(name, axis)| {
            let (_, value) = feeds.iter().find(|(n, _)| n == name)?;
            value.as_tensor()?.shape().get(*axis).copied()
        });
        let first = counts.next()?;
        counts.all(|n| n == first).then_some(first)
    }
}

impl Session for Stacked {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn run(&mut self, feeds: &[(String, Value)]) -> Result<Feed, EngineError> {
        let size = self.freed.size.max(1);
        let count = self.count(feeds).filter(|&n| n > 0);
        let count =
            count.ok_or_else(|| self.error(format!("there is no one size `{}`", self.freed.symbol)))?;
        if count == size || !self.freed.stacked {
            return self.session.run(feeds);
        }
        let (mut stacked, mut parts) = (Feed::new(), Vec::<Vec<Tensor>>::new());
        for start in (0..count).step_by(size) {
            // The last batch is filled with its last sample.
            let rows: Vec<usize> = (start..start + size).map(|i| i.min(count - 1)).collect();
            let used = size.min(count - start);
            let mut feed = feeds.to_vec();
            for (name, axis) in &self.freed.inputs {
                for (_, value) in feed.iter_mut().filter(|(n, _)| n == name) {
                    let Some(tensor) = value.as_tensor() else { continue };
                    *value = take(tensor, *axis, &rows).map_err(|e| self.error(e))?.into();
                }
            }
            let outputs = self.session.run(&feed)?;
            for (name, axis) in &self.freed.outputs {
                let Some(tensor) = outputs.iter().find(|(n, _)| n == name).and_then(|(_, v)| v.as_tensor())
                else {
                    continue;
                };
                // An axis may count several positions per sample.
                let each = tensor.shape().get(*axis).map_or(0, |n| n / size);
                let kept: Vec<usize> = (0..used * each).collect();
                let part = take(tensor, *axis, &kept).map_err(|e| self.error(e))?;
                let index = self.freed.outputs.iter().position(|(n, _)| n == name).unwrap_or(0);
                parts.resize_with(self.freed.outputs.len(), Vec::new);
                parts[index].push(part);
            }
            if stacked.is_empty() {
                stacked = outputs;
            }
        }
        for ((name, axis), parts) in self.freed.outputs.iter().zip(&parts) {
            let joined = stack(parts, *axis).map_err(|e| self.error(e))?;
            for (_, value) in stacked.iter_mut().filter(|(n, _)| n == name) {
                *value = joined.clone().into();
            }
        }
        Ok(stacked)
    }
}

/// The positions `rows` along an axis.
fn take(tensor: &Tensor, axis: usize, rows: &[usize]) -> Result<Tensor, TensorError> {
    let mut shape = tensor.shape().to_vec();
    let old = std::mem::replace(&mut shape[axis], rows.len());
    let outer: usize = shape[..axis].iter().product();
    let inner: usize = shape[axis + 1..].iter().product();
    let offsets = (0..outer).flat_map(|o| rows.iter().map(move |row| (o * old + row) * inner));
    if let Some(items) = tensor.as_strings() {
        let items = offsets.flat_map(|at| items[at..at + inner].to_vec()).collect();
        return Tensor::strings(&shape, items);
    }
    let width = tensor.dtype().bits() as usize / 8;
    let bytes = tensor.bytes();
    let taken: Vec<u8> =
        offsets.flat_map(|at| bytes[at * width..(at + inner) * width].iter().copied()).collect();
    Tensor::new(tensor.dtype(), &shape, taken)
}

/// Joins tensors along an axis.
fn stack(parts: &[Tensor], axis: usize) -> Result<Tensor, TensorError> {
    let Some(first) = parts.first() else { return Tensor::from_slice::<f32>(&[0], &[]) };
    let mut shape = first.shape().to_vec();
    shape[axis] = parts.iter().map(|p| p.shape()[axis]).sum();
    let outer: usize = shape[..axis].iter().product();
    let width = first.dtype().bits() as usize / 8;
    let chunk = |part: &Tensor| part.shape()[axis..].iter().product::<usize>();
    if first.as_strings().is_some() {
        let of = |o: usize, part: &Tensor| -> Vec<Bytes> {
            let n = chunk(part);
            part.as_strings().map_or_else(Vec::new, |items| items[o * n..(o + 1) * n].to_vec())
        };
        let items = (0..outer).flat_map(|o| parts.iter().flat_map(move |part| of(o, part)));
        return Tensor::strings(&shape, items.collect());
    }
    let mut bytes = vec![];
    for o in 0..outer {
        for part in parts {
            let n = chunk(part) * width;
            bytes.extend_from_slice(&part.bytes()[o * n..(o + 1) * n]);
        }
    }
    Tensor::new(first.dtype(), &shape, bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::{Fake, FakeEngine, feed};

    #[test]
    fn takes_and_stacks_along_any_axis() {
        let tensor = Tensor::from_slice(&[2, 3, 1], &[0_i32, 1, 2, 3, 4, 5]).unwrap();
        let taken = take(&tensor, 1, &[2, 0]).unwrap();
        assert_eq!(taken, Tensor::from_slice(&[2, 2, 1], &[2_i32, 0, 5, 3]).unwrap());
        let stacked = stack(&[taken, take(&tensor, 1, &[1]).unwrap()], 1).unwrap();
        assert_eq!(stacked, Tensor::from_slice(&[2, 3, 1], &[2_i32, 0, 1, 5, 3, 4]).unwrap());
    }

    #[test]
    fn presents_other_names_and_sizes() {
        let engine = FakeEngine::of([("a", Fake::adding(0.0)), ("b", Fake::adding(1.0))]);
        let (a, b) = (ModelSource::bytes("a"), ModelSource::bytes("b"));
        let names = |now: &str, original: &str| vec![(now.to_owned(), original.to_owned())];
        let freed = FreedPorts {
            symbol: "N".into(),
            size: 2,
            inputs: vec![("x".into(), 0)],
            outputs: vec![("y".into(), 0)],
            stacked: true,
        };
        let relation = Relation {
            inputs: names("x", "image"),
            outputs: names("y", "scores"),
            between: None,
            freed: vec![freed],
        };
        let related = RelatedEngine::new(&engine, &b, relation);
        let mut original = related.load(&a, &LoadOptions::default()).unwrap();
        // Three samples take two runs of two.
        assert_eq!(original.run(&feed("x", &[1.0, 2.0, 3.0])).unwrap(), feed("y", &[1.0, 2.0, 3.0]));
        assert_eq!(original.inputs()[0].kind.to_string(), "float[N]");
        let mut candidate = related.load(&b, &LoadOptions::default()).unwrap();
        assert_eq!(candidate.run(&feed("image", &[1.0])).unwrap(), feed("scores", &[2.0]));
        assert_eq!(candidate.inputs(), original.inputs());
    }
}
