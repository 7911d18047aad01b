//! tract, the embedded engine.
//!
//! tract needs no library on the machine, but supports fewer operators and element types than ONNX Runtime. A
//! plan of tract holds for fixed shapes: the session builds one for each set of input shapes and keeps it.

use crate::{
    Engine, EngineError, Feed, LoadOptions, ModelSource, Optimize, Port, PortDim, PortKind, Prepared,
    Provider, Session, Value, engine::check_feeds, error::TRACT, message::one_line, panic::catch_panic,
};
use pare_graph::{DataType, Tensor};
use std::{collections::HashMap, fs, sync::Arc};
use tract_onnx::{
    prelude::{
        DatumType, Framework, InferenceFact, InferenceModel, InferenceModelExt, IntoArcTensor, IntoRunnable,
        TDim, TValue, TVec, Tensor as TractTensor, TypedFact, TypedModel, TypedOp, tract_ndarray::ArrayD,
    },
    tract_core::{
        internal::{Datum, DimLike},
        plan::SimplePlan,
    },
    tract_hir::infer::{Factoid, GenericFactoid},
};

/// Version of the crate `tract-onnx`.
const VERSION: &str = "0.23.9";

/// Most plans that are kept: each has its own copy of the weights.
const MAX_PLANS: usize = 8;

/// The embedded engine.
#[derive(Clone, Copy, Debug, Default)]
pub struct TractEngine;

impl TractEngine {
    /// The engine, which needs no setup.
    pub fn new() -> Self {
        Self
    }
}

impl Engine for TractEngine {
    fn name(&self) -> &str {
        TRACT
    }

    fn version(&self) -> String {
        VERSION.to_owned()
    }

    fn check(&self, options: &LoadOptions) -> Result<(), EngineError> {
        let provider = &options.provider;
        if !provider.is_cpu() {
            let (engine, offered) = (format!("{TRACT} {VERSION}"), vec![Provider::default().to_string()]);
            return Err(EngineError::NoProvider { engine, provider: provider.clone(), offered });
        }
        let first = options.custom_op_libraries.first().cloned();
        let refused =
            |library| EngineError::CustomOps { library, reason: format!("{TRACT} takes no libraries") };
        first.map_or(Ok(()), |library| Err(refused(library)))
    }

    fn load(&self, model: &ModelSource, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        self.check(options)?;
        let load =
            |reason: String| EngineError::Load { engine: TRACT.to_owned(), model: model.to_string(), reason };
        let read = catch_panic(|| read(model)).flatten().map_err(load)?;
        let ports = catch_panic(|| ports(&read)).flatten().map_err(load)?;
        let session = TractSession { model: read, ports, optimize: options.optimize, plans: HashMap::new() };
        Ok(Box::new(session))
    }
}

fn read(model: &ModelSource) -> Result<InferenceModel, String> {
    let (bytes, folder) = match model {
        ModelSource::File(path) => {
            let bytes = fs::read(path).map_err(|error| error.to_string())?;
            (bytes.into(), path.parent().map(ToOwned::to_owned))
        }
        ModelSource::Bytes { bytes, folder } => (bytes.clone(), folder.clone()),
    };
    let onnx = tract_onnx::onnx();
    let proto = onnx.proto_model_for_read(&mut &bytes[..]).map_err(text)?;
    let folder = folder.as_ref().map(|folder| folder.to_string_lossy());
    let parsed = onnx.parse(&proto, folder.as_deref()).map_err(text)?;
    match parsed.unresolved_inputs.first() {
        Some(name) => Err(format!("nothing produces `{name}`")),
        None => Ok(parsed.model),
    }
}

/// The message of an error and its causes, in one line.
fn text(error: tract_onnx::prelude::TractError) -> String {
    one_line(&format!("{error:#}"))
}

struct Ports {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

fn ports(model: &InferenceModel) -> Result<Ports, String> {
    let inputs = model.input_outlets().map_err(text)?.iter().map(|outlet| {
        let fact = model.outlet_fact(*outlet).map_err(text)?;
        Ok(Port { name: model.node(outlet.node).name.clone(), kind: kind(fact) })
    });
    let outputs = model.output_outlets().map_err(text)?.iter().map(|outlet| {
        let fact = model.outlet_fact(*outlet).map_err(text)?;
        let label = model.outlet_label(*outlet);
        let name = label.map_or_else(|| model.node(outlet.node).name.clone(), ToOwned::to_owned);
        Ok(Port { name, kind: kind(fact) })
    });
    Ok(Ports {
        inputs: inputs.collect::<Result<_, String>>()?,
        outputs: outputs.collect::<Result<_, String>>()?,
    })
}

fn kind(fact: &InferenceFact) -> PortKind {
    let Some(dtype) = fact.datum_type.concretize().and_then(from_tract) else {
        return PortKind::Other("an unknown type".to_owned());
    };
    let dims = (!fact.shape.is_open()).then(|| {
        let dim = |dim: &GenericFactoid<TDim>| match dim.concretize() {
            Some(size) => match size.to_isize().map(usize::try_from) {
                Ok(Ok(size)) => PortDim::Fixed(size),
                _ => PortDim::Symbol(size.to_string()),
            },
            None => PortDim::Unknown,
        };
        fact.shape.dims().map(dim).collect()
    });
    PortKind::Tensor { dtype, dims }
}

type RunnablePlan = Arc<SimplePlan<TypedFact, Box<dyn TypedOp>>>;
/// Shapes of all inputs.
type Signature = Vec<Vec<usize>>;

struct TractSession {
    model: InferenceModel,
    ports: Ports,
    optimize: Optimize,
    plans: HashMap<Signature, RunnablePlan>,
}

impl TractSession {
    /// The plan for the shapes of `inputs`.
    fn plan(&mut self, inputs: &[TValue]) -> Result<RunnablePlan, EngineError> {
        let signature: Signature = inputs.iter().map(|value| value.shape().to_vec()).collect();
        if let Some(plan) = self.plans.get(&signature) {
            return Ok(plan.clone());
        }
        let plan = catch_panic(|| {
            let mut model = self.model.clone();
            for (index, value) in inputs.iter().enumerate() {
                let fact = InferenceFact::dt_shape(value.datum_type(), value.shape());
                model.set_input_fact(index, fact).map_err(text)?;
            }
            let typed = match self.optimize {
                Optimize::Off => model.into_typed(),
                Optimize::Basic => model.into_typed().and_then(TypedModel::into_decluttered),
                Optimize::Extended | Optimize::All => model.into_optimized(),
            };
            typed.and_then(IntoRunnable::into_runnable).map_err(text)
        });
        let plan = plan.flatten().map_err(run_error)?;
        if self.plans.len() >= MAX_PLANS {
            self.plans.clear();
        }
        self.plans.insert(signature, plan.clone());
        Ok(plan)
    }

    fn values(&self, feeds: &[(String, Value)]) -> Result<TVec<TValue>, EngineError> {
        check_feeds(&self.ports.inputs, feeds)?;
        let known = |name: &String| self.ports.inputs.iter().any(|port| port.name == *name);
        if let Some((name, _)) = feeds.iter().find(|(name, _)| !known(name)) {
            // tract turns an input with a default into a constant.
            let reason = "is not an input that tract lets the caller set".to_owned();
            return Err(EngineError::Input { input: name.clone(), reason });
        }
        let value = |port: &Port| {
            let found = feeds.iter().find(|(name, _)| *name == port.name);
            match found.and_then(|(_, value)| value.as_tensor()) {
                Some(tensor) => Ok(to_tract(tensor)?.into()),
                None => Err(unsupported(&port.kind.to_string())),
            }
        };
        self.ports.inputs.iter().map(value).collect()
    }

    fn execute(&mut self, inputs: &TVec<TValue>) -> Result<TVec<TValue>, EngineError> {
        let plan = self.plan(inputs)?;
        catch_panic(|| plan.run(inputs.clone()).map_err(text)).flatten().map_err(run_error)
    }
}

impl Session for TractSession {
    fn inputs(&self) -> &[Port] {
        &self.ports.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.ports.outputs
    }

    fn prepare(&mut self, feeds: &[(String, Value)]) -> Result<Prepared, EngineError> {
        let values = self.values(feeds)?;
        self.plan(&values)?;
        Ok(Prepared(Box::new(Inputs(values.iter().map(|value| value.clone().into_arc_tensor()).collect()))))
    }

    fn run_prepared(&mut self, feeds: &Prepared) -> Result<(), EngineError> {
        let Some(Inputs(tensors)) = feeds.0.downcast_ref() else {
            return Err(unsupported("feeds prepared by another engine"));
        };
        let values = tensors.iter().map(|tensor| TValue::from_const(tensor.clone())).collect();
        self.execute(&values).map(drop)
    }

    fn run(&mut self, feeds: &[(String, Value)]) -> Result<Feed, EngineError> {
        let values = self.values(feeds)?;
        let outputs = self.execute(&values)?;
        let names = self.ports.outputs.iter().map(|port| port.name.clone());
        names.zip(&outputs).map(|(name, value)| Ok((name, from_tract_value(value)?.into()))).collect()
    }
}

/// Prepared inputs, as `Arc`s because `TValue` is not `Send`.
struct Inputs(Vec<Arc<TractTensor>>);

fn run_error(reason: String) -> EngineError {
    EngineError::Run { engine: TRACT.to_owned(), reason }
}

fn unsupported(what: &str) -> EngineError {
    EngineError::Unsupported { engine: TRACT.to_owned(), what: what.to_owned() }
}

fn from_tract(dtype: DatumType) -> Option<DataType> {
    Some(match dtype.unquantized() {
        DatumType::Bool => DataType::Bool,
        DatumType::U8 => DataType::Uint8,
        DatumType::U16 => DataType::Uint16,
        DatumType::U32 => DataType::Uint32,
        DatumType::U64 => DataType::Uint64,
        DatumType::I8 => DataType::Int8,
        DatumType::I16 => DataType::Int16,
        DatumType::I32 => DataType::Int32,
        // tract computes shapes with its own integer type.
        DatumType::I64 | DatumType::TDim => DataType::Int64,
        DatumType::F16 => DataType::Float16,
        DatumType::F32 => DataType::Float,
        DatumType::F64 => DataType::Double,
        DatumType::String => DataType::String,
        _ => return None,
    })
}

/// Evaluates `$body` with `$element` bound to the Rust type of `$dtype`, which both sides store alike.
macro_rules! for_plain {
    ($dtype:expr, $element:ident => $body:expr, else $other:expr) => {
        match $dtype {
            DataType::Bool => for_plain!(@ bool, $element, $body),
            DataType::Uint8 => for_plain!(@ u8, $element, $body),
            DataType::Uint16 => for_plain!(@ u16, $element, $body),
            DataType::Uint32 => for_plain!(@ u32, $element, $body),
            DataType::Uint64 => for_plain!(@ u64, $element, $body),
            DataType::Int8 => for_plain!(@ i8, $element, $body),
            DataType::Int16 => for_plain!(@ i16, $element, $body),
            DataType::Int32 => for_plain!(@ i32, $element, $body),
            DataType::Int64 => for_plain!(@ i64, $element, $body),
            DataType::Float16 => for_plain!(@ half::f16, $element, $body),
            DataType::Float => for_plain!(@ f32, $element, $body),
            DataType::Double => for_plain!(@ f64, $element, $body),
            _ => $other,
        }
    };
    (@ $type:ty, $element:ident, $body:expr) => {{
        type $element = $type;
        $body
    }};
}

fn to_tract(tensor: &Tensor) -> Result<TractTensor, EngineError> {
    let broken = |_| unsupported(&format!("{} tensors of this shape", tensor.dtype()));
    if let Some(items) = tensor.as_strings() {
        let items = items.iter().map(|item| String::from_utf8_lossy(item).into_owned()).collect();
        let array = ArrayD::from_shape_vec(tensor.shape(), items);
        return Ok(array.map_err(|_| unsupported("strings of this shape"))?.into());
    }
    for_plain!(tensor.dtype(), E => {
        let values = tensor.to_vec::<E>().map_err(|_| unsupported("values of this type"))?;
        TractTensor::from_shape(tensor.shape(), &values).map_err(broken)
    }, else Err(unsupported(&format!("{} tensors", tensor.dtype()))))
}

fn from_tract_value(value: &TractTensor) -> Result<Tensor, EngineError> {
    let dtype = from_tract(value.datum_type());
    let dtype = dtype.ok_or_else(|| unsupported(&format!("{:?} tensors", value.datum_type())))?;
    let broken = |error: String| run_error(format!("an output cannot be read: {error}"));
    let plain = value.cast_to_dt(match value.datum_type() {
        DatumType::TDim => i64::datum_type(),
        other => other.unquantized(),
    });
    let plain = plain.map_err(|error| broken(text(error)))?;
    if dtype == DataType::String {
        let view = plain.to_plain_array_view::<String>().map_err(|error| broken(text(error)))?;
        let items = view.iter().map(|item| item.clone().into_bytes().into()).collect();
        return Tensor::strings(plain.shape(), items).map_err(|error| broken(error.to_string()));
    }
    for_plain!(dtype, E => {
        let view = plain.to_plain_array_view::<E>().map_err(|error| broken(text(error)))?;
        let values: Vec<E> = view.iter().copied().collect();
        Tensor::from_slice(plain.shape(), &values).map_err(|error| broken(error.to_string()))
    }, else Err(unsupported(dtype.name())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn converts_values_both_ways() {
        let floats = Tensor::from_slice(&[2, 1], &[1.5_f32, f32::NAN]).unwrap();
        let halves = Tensor::vector(&[half::f16::from_f32(0.1)]);
        let bools = Tensor::vector(&[true, false, true]);
        let longs = Tensor::scalar(-3_i64);
        let empty = Tensor::from_slice(&[0, 3], &[0_u8; 0]).unwrap();
        let strings = Tensor::strings(&[1], vec!["a b".into()]).unwrap();
        for tensor in [floats, halves, bools, longs, empty, strings] {
            assert_eq!(from_tract_value(&to_tract(&tensor).unwrap()).unwrap(), tensor);
        }
    }

    #[test]
    fn reports_unsupported_element_types() {
        let tensor = Tensor::new(DataType::Bfloat16, &[1], vec![0; 2]).unwrap();
        let error = to_tract(&tensor).unwrap_err();
        assert_eq!(error.to_string(), "tract takes no bfloat16 tensors");
        assert_eq!(error.hint(), Some(crate::Hint::UseOnnxRuntime));
    }

    #[test]
    fn rejects_invalid_models() {
        let load = |bytes: &'static [u8]| {
            TractEngine::new().load(&ModelSource::bytes(bytes), &LoadOptions::default()).err().unwrap()
        };
        assert!(load(b"\xff\xff\xff").to_string().starts_with("tract cannot load the model: "));
        assert!(matches!(load(b""), EngineError::Load { .. }));
    }
}
