//! Errors of engines.

use crate::{
    Provider,
    cache::VERSION,
    hint::{Hint, Tried},
};
use std::{io, path::PathBuf};

/// Name of the embedded engine.
pub(crate) const TRACT: &str = "tract";

/// Why a model cannot be loaded or run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EngineError {
    /// The crate was built without this engine.
    #[error("this program is built without {0}")]
    NotBuilt(&'static str),
    /// No usable library was found.
    #[error("no usable ONNX Runtime library among {} places", .0.len())]
    NotFound(Vec<Tried>),
    /// The library that was requested cannot be used.
    #[error("the ONNX Runtime library `{}` ({from}) cannot be used: {reason}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// The source of the path.
        from: String,
        /// The reason.
        reason: String,
    },
    /// No library was found, and installing one failed.
    #[error("no ONNX Runtime library was found, and installing one failed: {0}")]
    Install(#[from] InstallError),
    /// Another library is in use; a process can hold one.
    #[error("ONNX Runtime is already loaded from `{}`", .0.display())]
    Taken(PathBuf),
    /// The library of custom operators that was requested cannot be used.
    #[error("the library of custom operators `{}` cannot be used: {reason}", library.display())]
    CustomOps {
        /// The library.
        library: PathBuf,
        /// The reason.
        reason: String,
    },
    /// The engine does not have the execution provider that was requested.
    #[error("{engine} has no execution provider `{provider}`, only {}", offered.join(", "))]
    NoProvider {
        /// Name and version of the engine.
        engine: String,
        /// The provider.
        provider: Provider,
        /// The providers that it has.
        offered: Vec<String>,
    },
    /// The execution provider that was requested cannot be used, for example because its driver is missing.
    #[error("the execution provider `{provider}` cannot be used: {reason}")]
    Provider {
        /// The provider.
        provider: Provider,
        /// The reason.
        reason: String,
    },
    /// The engine cannot load the model.
    #[error("{engine} cannot load {model}: {reason}")]
    Load {
        /// Name of the engine.
        engine: String,
        /// The model.
        model: String,
        /// The engine's message.
        reason: String,
    },
    /// The engine failed during a run.
    #[error("{engine} cannot run the model: {reason}")]
    Run {
        /// Name of the engine.
        engine: String,
        /// The engine's message.
        reason: String,
    },
    /// A value is missing or does not fit its input.
    #[error("input `{input}` {reason}")]
    Input {
        /// Name of the input.
        input: String,
        /// The reason.
        reason: String,
    },
    /// The engine cannot exchange values of this type.
    #[error("{engine} takes no {what}")]
    Unsupported {
        /// Name of the engine.
        engine: String,
        /// The type.
        what: String,
    },
}

impl EngineError {
    /// Returns true if a run failed because memory could not be allocated, which says nothing about the model.
    pub fn is_out_of_memory(&self) -> bool {
        let signs = ["bad allocation", "bad_alloc", "Failed to allocate memory", "out of memory"];
        matches!(self, Self::Run { reason, .. } if signs.iter().any(|sign| reason.contains(sign)))
    }

    /// The remedy, if one is known.
    pub fn hint(&self) -> Option<Hint> {
        match self {
            Self::NotFound(tried) => Some(Hint::InstallRuntime { tried: tried.clone() }),
            Self::Library { .. } => Some(Hint::ReplaceRuntime),
            Self::Install(error) => Some(error.hint()),
            Self::Taken(_) => Some(Hint::NewProcess),
            Self::NoProvider { engine, .. } if engine.starts_with(TRACT) => Some(Hint::UseOnnxRuntime),
            Self::NoProvider { provider, .. } => {
                Some(Hint::RuntimeWithProvider { package: provider.package() })
            }
            Self::Load { reason, .. } | Self::CustomOps { reason, .. } => load_hint(reason),
            Self::Unsupported { engine, .. } if engine == TRACT => Some(Hint::UseOnnxRuntime),
            Self::NotBuilt(_)
            | Self::Provider { .. }
            | Self::Run { .. }
            | Self::Input { .. }
            | Self::Unsupported { .. } => None,
        }
    }
}

fn load_hint(reason: &str) -> Option<Hint> {
    let contains = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if contains(&["takes no libraries"]) {
        Some(Hint::UseOnnxRuntime)
    } else if contains(&["is under development", "max supported", "Unsupported model IR version"]) {
        Some(Hint::NewerRuntime)
    } else if contains(&["undefined symbol: Py"]) {
        // The library inside Python's `onnxruntime_extensions` is one of these.
        Some(Hint::StandaloneCustomOps)
    } else if contains(&["is not a registered function/op", "domain_version", "No opset import for domain"]) {
        Some(Hint::LoadCustomOps)
    } else {
        None
    }
}

/// Why ONNX Runtime was not installed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// There is no wheel for this machine.
    #[error("there is no ONNX Runtime {VERSION} wheel for {0}")]
    Platform(String),
    /// Neither `PARE_CACHE` nor a home folder is set.
    #[error("no folder is known to keep the library in")]
    NoCache,
    /// Python cannot be started.
    #[error("python3 was not found")]
    NoPython,
    /// `pip` failed.
    #[error("pip could not fetch ONNX Runtime {VERSION}: {0}")]
    Pip(String),
    /// The wheel is not the expected one.
    #[error("the wheel `{file}` has SHA-256 {got}, not {wanted}")]
    Hash {
        /// Name of the wheel.
        file: String,
        /// The expected hash.
        wanted: String,
        /// Its hash.
        got: String,
    },
    /// The wheel cannot be read.
    #[error("the wheel cannot be read: {0}")]
    Archive(String),
    /// The unpacked library cannot be used on this machine.
    #[error("the library cannot be used: {0}")]
    Library(String),
    /// A file cannot be written.
    #[error("`{}` cannot be written: {error}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
}

impl InstallError {
    /// The remedy.
    pub fn hint(&self) -> Hint {
        match self {
            Self::Platform(_) | Self::Library(_) => Hint::RuntimeForPlatform,
            Self::NoCache | Self::Io { .. } => Hint::WritableCache,
            Self::NoPython => Hint::InstallPython,
            Self::Pip(reason) if reason.contains("No module named pip") => Hint::InstallPip,
            Self::Pip(_) => Hint::CheckNetwork,
            Self::Hash { .. } | Self::Archive(_) => Hint::RetryDownload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_the_providers_that_there_are() {
        let error = |engine: &str, provider: &str| EngineError::NoProvider {
            engine: engine.into(),
            provider: provider.parse().unwrap(),
            offered: vec!["cpu".into(), "AzureExecutionProvider".into()],
        };
        let missing = error("ONNX Runtime 1.32.0", "openvino,device_type=GPU");
        assert_eq!(
            missing.to_string(),
            "ONNX Runtime 1.32.0 has no execution provider `openvino,device_type=GPU`, only cpu, AzureExecutionProvider"
        );
        let package = Some("onnxruntime-openvino");
        assert_eq!(missing.hint(), Some(Hint::RuntimeWithProvider { package }));
        assert_eq!(error("ONNX Runtime", "dnnl").hint(), Some(Hint::RuntimeWithProvider { package: None }));
        assert_eq!(error("tract 0.23", "cuda").hint(), Some(Hint::UseOnnxRuntime));
    }

    #[test]
    fn derives_hints_from_load_errors() {
        let load = |reason: &str| EngineError::Load {
            engine: "ONNX Runtime".into(),
            model: "`a.onnx`".into(),
            reason: reason.into(),
        };
        let error = load("Fatal error: com.x:Foo(-1) is not a registered function/op");
        assert_eq!(error.hint(), Some(Hint::LoadCustomOps));
        assert_eq!(
            error.to_string(),
            "ONNX Runtime cannot load `a.onnx`: Fatal error: com.x:Foo(-1) is not a registered function/op"
        );
        let python =
            load("Failed to load library a.so with error: a.so: undefined symbol: PyInstanceMethod_Type");
        assert_eq!(python.hint(), Some(Hint::StandaloneCustomOps));
        assert_eq!(load("something else").hint(), None);
    }
}
