//! What can go wrong with engines.

use crate::{install::InstallError, locate::Tried};
use std::path::PathBuf;

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// No library was found, or none that can be used.
    #[error("no usable ONNX Runtime library among {} places", .0.len())]
    NotFound(Vec<Tried>),
    /// A library was asked for by name and cannot be used.
    #[error("the ONNX Runtime library `{}` ({from}) cannot be used: {reason}", path.display())]
    Library {
        /// The library.
        path: PathBuf,
        /// Who named it.
        from: String,
        /// Why not.
        reason: String,
    },
    /// No library was found, and none could be fetched.
    #[error("no ONNX Runtime library was found, and installing one failed: {0}")]
    Install(#[from] InstallError),
    /// Another library is in use already; a process can hold one.
    #[error("ONNX Runtime is already loaded from `{}`", .0.display())]
    Taken(PathBuf),
    /// A library of custom operators was asked for and cannot be used.
    #[error("the library of custom operators `{}` cannot be used: {reason}", library.display())]
    CustomOps {
        /// The library.
        library: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The engine refused the model.
    #[error("{engine} cannot load {model}: {reason}")]
    Load {
        /// Name of the engine.
        engine: String,
        /// The model.
        model: String,
        /// The engine's words.
        reason: String,
    },
    /// The engine failed while it ran.
    #[error("{engine} cannot run the model: {reason}")]
    Run {
        /// Name of the engine.
        engine: String,
        /// The engine's words.
        reason: String,
    },
    /// A value does not fit its input, or is missing.
    #[error("input `{input}` {reason}")]
    Input {
        /// Name of the input.
        input: String,
        /// What is wrong.
        reason: String,
    },
    /// The engine cannot pass values of this type in or out.
    #[error("{engine} takes no {what}")]
    Unsupported {
        /// Name of the engine.
        engine: String,
        /// The type.
        what: String,
    },
}

impl EngineError {
    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NotFound(tried) => Some(not_found_hint(tried)),
            Self::Library { .. } => {
                Some("ONNX Runtime 1.18 or later is needed; `pare runtime install` fetches one".to_owned())
            }
            Self::Install(error) => error.hint(),
            Self::Taken(_) => Some("start another process for another library".to_owned()),
            Self::Load { reason, .. } | Self::CustomOps { reason, .. } => load_hint(reason),
            Self::Unsupported { engine, .. } if engine == crate::tract::NAME => {
                Some("use ONNX Runtime: `pare runtime install`".to_owned())
            }
            Self::Run { .. } | Self::Input { .. } | Self::Unsupported { .. } => None,
        }
    }
}

fn not_found_hint(tried: &[Tried]) -> String {
    let hint = "`pare runtime install` fetches one, or set ORT_DYLIB_PATH".to_owned();
    let places = tried.iter().map(|place| format!("  {}: {}", place.from, place.reason));
    std::iter::once(hint).chain(places).collect::<Vec<_>>().join("\n")
}

fn load_hint(reason: &str) -> Option<String> {
    let says = |words: &[&str]| words.iter().any(|word| reason.contains(word));
    if says(&["takes no libraries"]) {
        Some("use ONNX Runtime: `pare runtime install`".to_owned())
    } else if says(&["is under development", "max supported", "Unsupported model IR version"]) {
        Some("the model is newer than this engine; `pare runtime install` fetches a newer one".to_owned())
    } else if says(&["undefined symbol: Py"]) {
        // So it is with the one inside Python's `onnxruntime_extensions`.
        Some(
            "this library only works inside Python; build onnxruntime-extensions as a shared library"
                .to_owned(),
        )
    } else if says(&["is not a registered function/op", "domain_version", "No opset import for domain"]) {
        Some("custom operators come with a library of their own: `--custom-ops LIBRARY`".to_owned())
    } else {
        None
    }
}

/// An engine's message as one line without a final period.
pub(crate) fn tidy(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches(['.', ' ']);
    if line.is_empty() { "no reason given".to_owned() } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_one_line() {
        assert_eq!(tidy("Load failed:\n  bad node.\n"), "Load failed: bad node");
        assert_eq!(tidy(" .\n"), "no reason given");
    }

    #[test]
    fn hints_name_the_remedy() {
        let load = |reason: &str| EngineError::Load {
            engine: "ONNX Runtime".into(),
            model: "`a.onnx`".into(),
            reason: reason.into(),
        };
        let error = load("Fatal error: com.x:Foo(-1) is not a registered function/op");
        assert!(error.hint().unwrap().contains("--custom-ops"));
        assert_eq!(
            error.to_string(),
            "ONNX Runtime cannot load `a.onnx`: Fatal error: com.x:Foo(-1) is not a registered function/op"
        );
        let python =
            load("Failed to load library a.so with error: a.so: undefined symbol: PyInstanceMethod_Type");
        assert!(python.hint().unwrap().contains("only works inside Python"));
        assert_eq!(load("something else").hint(), None);
    }
}
