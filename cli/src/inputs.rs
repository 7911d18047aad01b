//! What commands read: models, samples, and the engine to run them with.

use crate::{
    args::Common,
    failure::{Failure, worded},
    voice::Voice,
};
use pare_graph::{Evaluate, EvaluateError, Model, Run, Setting, onnx};
use pare_runtime::{
    Engine, EngineError, Evaluator, LoadOptions, ModelSource, Port, Resolved, SampleLimits, SampleSet,
    beyond_generation, input_specs, resolve, symbol_plans,
};
use std::{
    io::{Read, Write},
    path::Path,
    sync::{Arc, OnceLock},
};

/// A model as it was read, with where an engine finds it.
pub struct Loaded {
    pub model: Model,
    pub source: ModelSource,
    /// Bytes of the model, external data included.
    pub bytes: u64,
}

/// Read a model; `-` is stdin.
pub fn model(path: &Path) -> Result<Loaded, Failure> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::stdin()
            .read_to_end(&mut bytes)
            .map_err(|e| Failure::new(format!("cannot read stdin: {e}")))?;
        let size = bytes.len() as u64;
        let bytes = bytes::Bytes::from(bytes);
        let model = onnx::read_bytes(bytes.clone(), None).map_err(|e| Failure::read(&e, "stdin"))?;
        return Ok(Loaded { model, source: ModelSource::bytes(bytes), bytes: size });
    }
    let model = onnx::read(path, &onnx::ReadOptions::default())
        .map_err(|e| Failure::read(&e, &format!("`{}`", path.display())))?;
    let size = onnx::bytes_on_disk(&model);
    Ok(Loaded { model, source: ModelSource::File(path.to_owned()), bytes: size })
}

/// The engine, found when it is first needed.
pub struct Engines<'v> {
    common: Common,
    voice: &'v Voice,
    resolved: OnceLock<Result<Resolved, String>>,
}

impl<'v> Engines<'v> {
    pub fn new(common: &Common, voice: &'v Voice) -> Self {
        Self { common: common.clone(), voice, resolved: OnceLock::new() }
    }

    /// Whether the libraries of custom operators can be used, if any were given: asked before the work.
    pub fn check_custom_ops(&self) -> Result<(), Failure> {
        if self.common.custom_ops.is_empty() { Ok(()) } else { self.get().map(drop) }
    }

    /// The engine; a fallback to the embedded one is said once.
    pub fn get(&self) -> Result<&Resolved, Failure> {
        let resolved = self.resolved.get_or_init(|| {
            let resolved = resolve(&self.common.choice(), &mut |line| self.voice.note(line)).map_err(told)?;
            resolved.engine.check(&self.load_options()).map_err(told)?;
            if resolved.fallback {
                self.voice.note(&format!("running models in {}", resolved.note));
            }
            Ok(resolved)
        });
        resolved.as_ref().map_err(|text| {
            let (message, hint) = text.split_once('\n').map_or((text.as_str(), None), |(m, h)| (m, Some(h)));
            Failure { message: message.into(), detail: None, hint: hint.map(Into::into) }
        })
    }

    pub fn engine(&self) -> Result<&Arc<dyn Engine>, Failure> {
        Ok(&self.get()?.engine)
    }

    /// How models are loaded.
    pub fn load_options(&self) -> LoadOptions {
        LoadOptions {
            threads: self.common.threads,
            custom_op_libraries: self.common.custom_ops.clone(),
            ..LoadOptions::default()
        }
    }
}

/// An error with its hint on a line of its own.
fn told(error: EngineError) -> String {
    let hint = error.hint().map_or_else(String::new, |h| format!("\n{}", worded(h)));
    format!("{error}{hint}")
}

/// Passes ask for the engine only when they need one.
impl Evaluate for Engines<'_> {
    fn name(&self) -> String {
        self.get().map_or_else(|e| e.message, |r| r.note.clone())
    }

    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError> {
        let engine = self.engine().map_err(|e| EvaluateError::new(e.message))?;
        Evaluator::new(engine.clone()).with_custom_ops(&self.common.custom_ops).load(model, setting)
    }
}

/// The inputs a model needs, as ports.
pub fn ports(model: &Model) -> Vec<Port> {
    input_specs(model).into_iter().map(|spec| Port { name: spec.name, kind: spec.kind }).collect()
}

/// Whether what `--dim` names are open dimensions of the inputs.
pub fn check_dims(dims: &[(String, i64)], model: &Model) -> Result<(), Failure> {
    let open = symbol_plans(&input_specs(model)).into_iter().next().unwrap_or_default();
    let Some((name, size)) = dims.iter().find(|(name, _)| !open.contains_key(name)) else { return Ok(()) };
    let failure = Failure::new(format!("`--dim {name}={size}`: the inputs have no dimension `{name}`"));
    let known: Vec<_> = open.into_keys().collect();
    Err(if known.is_empty() {
        failure
    } else {
        failure.hint(format!("open dimensions: {}", known.join(", ")))
    })
}

/// Samples from a file or folder.
pub fn samples(path: &Path, model: &Model) -> Result<SampleSet, Failure> {
    Ok(SampleSet::open(path, &ports(model), SampleLimits::default())?)
}

/// Given samples, or generated ones.
pub fn samples_or_generated(path: Option<&Path>, model: &Model, seed: u64) -> Result<SampleSet, Failure> {
    if let Some(path) = path {
        return samples(path, model);
    }
    let specs = input_specs(model);
    if let Some(odd) = beyond_generation(&specs) {
        let message = format!("no samples can be generated for input `{}`, which is {}", odd.name, odd.kind);
        return Err(Failure::new(message).hint("give some with `--samples`"));
    }
    Ok(SampleSet::for_model(model, seed))
}

/// Whether the result could be written, asked before the work rather than after it.
pub fn check_output(path: &Path) -> Result<(), Failure> {
    if path == Path::new("-") {
        return Ok(());
    }
    if path.is_dir() {
        return Err(Failure::new(format!("the output `{}` is a folder", path.display()))
            .hint("give the name of a file in it"));
    }
    match path.parent() {
        Some(folder) if folder != Path::new("") && !folder.is_dir() => {
            let folder = folder.display();
            Err(Failure::new(format!("the output's folder `{folder}` does not exist"))
                .hint(format!("`mkdir -p {folder}` makes it")))
        }
        _ => Ok(()),
    }
}

/// Write a file beside its place, then move it there: never half of it.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let cannot = |e: std::io::Error| Failure::new(format!("cannot write `{}`: {e}", path.display()));
    let folder = path.parent().filter(|f| *f != Path::new("")).unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(cannot)?;
    file.write_all(bytes).map_err(cannot)?;
    file.persist(path).map(drop).map_err(|e| cannot(e.error))
}
