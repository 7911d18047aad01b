//! ONNX Runtime, loaded at run time.

mod absent;
mod dtype;
mod handle;

use crate::{
    Engine, EngineError, Feed, LoadOptions, ModelSource, Optimize, Port, PortDim, PortKind, Prepared,
    Session, Value,
    engine::check_feeds,
    locate::{Located, providers},
    message::one_line,
    panic::catch_panic,
};
use handle::Handle;
use ort::{
    environment::Environment,
    logging::LogLevel,
    session::{
        Session as Inner,
        builder::{GraphOptimizationLevel, SessionBuilder},
    },
    sys,
    value::{Outlet, ValueType},
};
use std::{
    ffi::{CStr, CString},
    path::PathBuf,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Name in reports and errors.
const NAME: &str = "ONNX Runtime";

/// The library in use. A process has one environment and one library of ONNX Runtime. Neither is released:
/// their destructors would run in unspecified order at exit.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

/// The library in use.
struct Loaded {
    /// Its file, or for an adopted one the name of its owner.
    path: PathBuf,
    version: String,
    environment: Environment,
    adopted: bool,
}

fn loaded() -> MutexGuard<'static, Option<Loaded>> {
    LOADED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// ONNX Runtime from a library on this machine.
#[derive(Debug)]
pub struct OrtEngine {
    environment: Environment,
    version: String,
}

impl OrtEngine {
    /// Loads `library`, unless it is the one in use.
    ///
    /// # Errors
    /// [`EngineError::Taken`] if another library is in use, [`EngineError::Library`] if it cannot be
    /// initialized.
    pub fn new(library: &Located) -> Result<Self, EngineError> {
        let path = library.path.canonicalize().unwrap_or_else(|_| library.path.clone());
        let version = library.version.clone();
        let mut loaded = loaded();
        match &*loaded {
            Some(known) if known.path == path => {
                return Ok(Self { environment: known.environment.clone(), version });
            }
            Some(known) => return Err(EngineError::Taken(known.path.clone())),
            None => {}
        }
        let environment = catch_panic(|| {
            let builder = ort::init_from(&path).map_err(|e| one_line(&e.to_string()))?;
            let built = builder.with_name("pare").with_telemetry(false).build();
            let environment = built.map_err(|e| one_line(e.message()))?;
            // Errors are returned, so nothing is logged.
            environment.set_log_level(LogLevel::Fatal);
            Ok(environment)
        });
        let environment = environment.flatten().map_err(|reason| {
            let (path, from) = (library.path.clone(), library.from.clone());
            EngineError::Library { path, from, reason }
        })?;
        *loaded =
            Some(Loaded { path, version: version.clone(), environment: environment.clone(), adopted: false });
        Ok(Self { environment, version })
    }

    /// The ONNX Runtime that was adopted ([`adopt`](Self::adopt)), with the name of its owner.
    pub fn adopted() -> Option<(Self, String)> {
        let loaded = loaded();
        let known = loaded.as_ref().filter(|known| known.adopted)?;
        let engine = Self { environment: known.environment.clone(), version: known.version.clone() };
        Some((engine, known.path.display().to_string()))
    }

    /// Uses the ONNX Runtime that `owner`, another part of this process, has loaded: [`resolve`](crate::resolve())
    /// returns it from now on instead of loading a library.
    ///
    /// # Errors
    /// [`EngineError::Taken`] if a library is in use, [`EngineError::Library`] if it is too old.
    ///
    /// # Safety
    /// `base` is the result of `OrtGetApiBase` of a library that is never unloaded.
    #[allow(unsafe_code)]
    pub unsafe fn adopt(base: *const sys::OrtApiBase, owner: &str) -> Result<(), EngineError> {
        let mut loaded = loaded();
        match &*loaded {
            Some(known) if known.adopted => return Ok(()),
            Some(known) => return Err(EngineError::Taken(known.path.clone())),
            None => {}
        }
        let refused = |reason: String| EngineError::Library {
            path: owner.into(),
            from: "loaded in this process".to_owned(),
            reason,
        };
        // SAFETY: the caller passes the table of a library, which is valid as long as the library.
        let (version, api) = unsafe {
            let base = base.as_ref().ok_or_else(|| refused("it has no interface".to_owned()))?;
            let version = CStr::from_ptr((base.GetVersionString)()).to_string_lossy().into_owned();
            (version, (base.GetApi)(sys::ORT_API_VERSION).as_ref())
        };
        let too_old =
            || refused(format!("it is version {version}, and 1.{} or later is needed", ort::MINOR_VERSION));
        // SAFETY: the table consists of function pointers.
        let api = unsafe { std::ptr::read(api.ok_or_else(too_old)?) };
        let environment = catch_panic(|| {
            ort::set_api(api);
            ort::init().with_name("pare").build().map_err(|e| one_line(e.message()))
        });
        let environment = environment.flatten().map_err(refused)?;
        *loaded = Some(Loaded { path: owner.into(), version, environment, adopted: true });
        Ok(())
    }

    /// A builder of sessions with `options`.
    fn builder(&self, options: &LoadOptions) -> Result<SessionBuilder, String> {
        let level = match options.optimize {
            Optimize::Off => GraphOptimizationLevel::Disable,
            Optimize::Basic => GraphOptimizationLevel::Level1,
            Optimize::Extended => GraphOptimizationLevel::Level2,
            Optimize::All => GraphOptimizationLevel::All,
        };
        let builder = SessionBuilder::new(&self.environment).map_err(text)?;
        let builder = builder.with_optimization_level(level).map_err(text)?;
        let builder = builder.with_log_level(LogLevel::Fatal).map_err(text)?;
        let builder = builder.with_intra_threads(options.threads).map_err(text)?;
        let builder = builder.with_inter_threads(1).map_err(text)?;
        let builder = builder.with_intra_op_spinning(options.spinning).map_err(text)?;
        let provider = options.provider.build(options.threads)?;
        let builder = builder.with_execution_providers(provider.as_slice()).map_err(text)?;
        match &options.optimized_model {
            Some(path) => builder.with_optimized_model_path(path).map_err(text),
            None => Ok(builder),
        }
    }

    /// Adds the operators of `libraries`.
    fn with_operators(
        mut builder: SessionBuilder,
        libraries: &[PathBuf],
    ) -> Result<SessionBuilder, EngineError> {
        for library in libraries {
            let refused = |reason| EngineError::CustomOps { library: library.clone(), reason };
            let file = std::fs::metadata(library).map_err(|e| refused(e.to_string()))?;
            if !file.is_file() {
                return Err(refused("it is not a file".to_owned()));
            }
            let added = catch_panic(|| builder.with_operator_library(library).map_err(text)).flatten();
            builder = added.map_err(refused)?;
        }
        Ok(builder)
    }

    fn build(mut builder: SessionBuilder, model: &ModelSource) -> Result<Inner, String> {
        match model {
            ModelSource::File(path) => builder.commit_from_file(path).map_err(text),
            ModelSource::Bytes { bytes, folder } => {
                if let Some(folder) = folder {
                    let key = "session.model_external_initializers_file_folder_path";
                    builder = builder.with_config_entry(key, folder.to_string_lossy()).map_err(text)?;
                }
                builder.commit_from_memory(bytes).map_err(text)
            }
        }
    }
}

fn text<R>(error: ort::Error<R>) -> String {
    one_line(error.message())
}

impl Engine for OrtEngine {
    fn name(&self) -> &str {
        NAME
    }

    fn version(&self) -> String {
        self.version.clone()
    }

    fn check(&self, options: &LoadOptions) -> Result<(), EngineError> {
        let provider = &options.provider;
        if !provider.is_cpu() {
            let offered = providers(ort::api());
            if !offered.iter().any(|name| name == provider.name()) {
                let (engine, provider) = (format!("{NAME} {}", self.version), provider.clone());
                return Err(EngineError::NoProvider { engine, provider, offered });
            }
            let refused = |reason| EngineError::Provider { provider: provider.clone(), reason };
            catch_panic(|| self.builder(options).map(drop)).flatten().map_err(refused)?;
        }
        if options.custom_op_libraries.is_empty() {
            return Ok(());
        }
        let refused =
            |reason| EngineError::Load { engine: NAME.to_owned(), model: "any model".to_owned(), reason };
        let builder = catch_panic(|| self.builder(options)).flatten().map_err(refused)?;
        Self::with_operators(builder, &options.custom_op_libraries).map(drop)
    }

    fn load(&self, model: &ModelSource, options: &LoadOptions) -> Result<Box<dyn Session>, EngineError> {
        let refused =
            |reason| EngineError::Load { engine: NAME.to_owned(), model: model.to_string(), reason };
        let builder = catch_panic(|| self.builder(options)).flatten().map_err(refused)?;
        let builder = Self::with_operators(builder, &options.custom_op_libraries)?;
        let inner = catch_panic(|| Self::build(builder, model)).flatten().map_err(refused)?;
        let inputs = inner.inputs().iter().map(port).collect();
        let outputs: Vec<Port> = inner.outputs().iter().map(port).collect();
        let names = outputs.iter().map(|port| c_string(&port.name)).collect::<Result<_, _>>()?;
        let environment = self.environment.clone();
        Ok(Box::new(OrtSession { inner, environment, inputs, outputs, names }))
    }
}

struct OrtSession {
    inner: Inner,
    environment: Environment,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    /// Names of the outputs.
    names: Vec<CString>,
}

type Handles = Vec<(CString, Handle)>;

impl OrtSession {
    /// The values of a run. Those that are kept for many runs are copies.
    fn handles(&self, feeds: &[(String, Value)], keep: bool) -> Result<Handles, EngineError> {
        check_feeds(&self.inputs, feeds)?;
        let kind = |name: &str| self.inputs.iter().find(|port| port.name == name).map(|port| &port.kind);
        let mut handles = Vec::with_capacity(self.inputs.len());
        for (name, value) in feeds {
            let handle = match value {
                Value::Tensor(tensor) if !keep => Handle::input(tensor),
                value => self.handle(value, kind(name)),
            };
            handles.push((c_string(name)?, handle.map_err(unsupported)?));
        }
        for port in &self.inputs {
            if feeds.iter().all(|(name, _)| *name != port.name) {
                let absent = self.handle(&Value::Optional(None), Some(&port.kind)).map_err(unsupported)?;
                handles.push((c_string(&port.name)?, absent));
            }
        }
        Ok(handles)
    }

    /// `kind` is the type of the port, which completes the type of an absent or empty value.
    fn handle(&self, value: &Value, kind: Option<&PortKind>) -> Result<Handle, String> {
        let inner_kind = match kind {
            Some(PortKind::Optional(inner) | PortKind::Sequence(inner)) => Some(&**inner),
            kind => kind,
        };
        match value {
            Value::Tensor(tensor) => Handle::tensor(tensor),
            Value::Optional(Some(inner)) => self.handle(inner, inner_kind),
            Value::Optional(None) => absent::value(&self.environment, kind.ok_or("absent value")?),
            Value::Sequence(items) if items.is_empty() => {
                let kind = match kind {
                    Some(PortKind::Optional(_)) => inner_kind,
                    kind => kind,
                };
                absent::value(&self.environment, kind.ok_or("empty sequence of unknown type")?)
            }
            Value::Sequence(items) => {
                let of_items = match inner_kind {
                    Some(PortKind::Sequence(inner)) => Some(&**inner),
                    kind => kind,
                };
                let items = items.iter().map(|item| self.handle(item, of_items));
                Handle::sequence(&items.collect::<Result<Vec<_>, _>>()?)
            }
            Value::Map { keys, values } => Handle::map(Handle::tensor(keys)?, Handle::tensor(values)?),
        }
    }

    fn execute(&mut self, feeds: &Handles) -> Result<Vec<Option<Handle>>, EngineError> {
        let outputs = catch_panic(|| handle::run(&mut self.inner, feeds, &self.names)).flatten();
        outputs.map_err(|reason| EngineError::Run { engine: NAME.to_owned(), reason })
    }
}

impl Session for OrtSession {
    fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    fn prepare(&mut self, feeds: &[(String, Value)]) -> Result<Prepared, EngineError> {
        Ok(Prepared(Box::new(self.handles(feeds, true)?)))
    }

    fn run_prepared(&mut self, feeds: &Prepared) -> Result<(), EngineError> {
        let feeds = feeds.0.downcast_ref::<Handles>();
        let feeds = feeds.ok_or_else(|| unsupported("feeds prepared by another engine".to_owned()))?;
        self.execute(feeds).map(drop)
    }

    fn run(&mut self, feeds: &[(String, Value)]) -> Result<Feed, EngineError> {
        let handles = self.handles(feeds, false)?;
        let outputs = self.execute(&handles)?;
        let read = |(port, handle): (&Port, Option<Handle>)| {
            let value = match handle {
                Some(handle) => handle.read().map_err(unsupported)?,
                None => None,
            };
            let value = match (value, &port.kind) {
                (Some(value), PortKind::Optional(_)) => Value::Optional(Some(Box::new(value))),
                (Some(value), _) => value,
                (None, _) => Value::Optional(None),
            };
            Ok((port.name.clone(), value))
        };
        self.outputs.iter().zip(outputs).map(read).collect()
    }
}

fn unsupported(what: String) -> EngineError {
    EngineError::Unsupported { engine: NAME.to_owned(), what }
}

fn c_string(name: &str) -> Result<CString, EngineError> {
    CString::new(name).map_err(|_| unsupported(format!("name with a zero byte: {name:?}")))
}

fn port(outlet: &Outlet) -> Port {
    Port { name: outlet.name().to_owned(), kind: kind(outlet.dtype()) }
}

fn kind(value: &ValueType) -> PortKind {
    match value {
        ValueType::Tensor { ty, shape, dimension_symbols } => {
            let Some(dtype) = dtype::from_ort(*ty) else { return PortKind::Other(value.to_string()) };
            let dim = |(i, &size): (usize, &i64)| match usize::try_from(size) {
                Ok(size) => PortDim::Fixed(size),
                Err(_) => match dimension_symbols.get(i).filter(|name| !name.is_empty()) {
                    Some(name) => PortDim::Symbol(name.clone()),
                    None => PortDim::Unknown,
                },
            };
            // ONNX Runtime does not distinguish a scalar from a tensor of unknown rank.
            let dims = (!shape.is_empty()).then(|| shape.iter().enumerate().map(dim).collect());
            PortKind::Tensor { dtype, dims }
        }
        ValueType::Sequence(inner) => PortKind::Sequence(Box::new(kind(inner))),
        ValueType::Optional(inner) => PortKind::Optional(Box::new(kind(inner))),
        ValueType::Map { key, value: inner } => match (dtype::from_ort(*key), dtype::from_ort(*inner)) {
            (Some(key), Some(value)) => PortKind::Map { key, value },
            _ => PortKind::Other(value.to_string()),
        },
    }
}
