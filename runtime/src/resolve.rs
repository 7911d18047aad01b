//! Choice of the engine.

use crate::{Engine, EngineError, Provider};
use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

/// An engine that can be requested.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// ONNX Runtime if it is available, else tract.
    #[default]
    Auto,
    /// ONNX Runtime.
    Ort,
    /// The embedded engine.
    Tract,
}

impl FromStr for EngineKind {
    type Err = String;
    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "auto" => Ok(Self::Auto),
            "ort" => Ok(Self::Ort),
            "tract" => Ok(Self::Tract),
            _ => Err(format!("no engine is named `{name}`: auto, ort, tract")),
        }
    }
}

/// A request for an engine.
#[derive(Clone, Debug, Default)]
pub struct EngineChoice {
    /// The engine.
    pub engine: EngineKind,
    /// The ONNX Runtime library, or a folder that contains it.
    pub library: Option<PathBuf>,
    /// Download nothing; `PARE_OFFLINE=1` has the same effect.
    pub offline: bool,
    /// The execution provider: a library that has it is preferred.
    pub provider: Provider,
}

/// The engine that was chosen.
#[non_exhaustive]
pub struct Resolved {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Its name, version and the reason for the choice, in one line.
    pub note: String,
    /// True if it replaces an ONNX Runtime that is not available, which the user should know.
    pub fallback: bool,
}

impl fmt::Debug for Resolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolved")
            .field("note", &self.note)
            .field("fallback", &self.fallback)
            .finish_non_exhaustive()
    }
}

/// Returns the engine that `choice` requests. Installs ONNX Runtime if there is none and `choice` allows it;
/// `progress` receives one line before the download.
///
/// # Errors
/// The requested engine is not available; without a request, neither engine is.
pub fn resolve(choice: &EngineChoice, progress: &mut dyn FnMut(&str)) -> Result<Resolved, EngineError> {
    if choice.engine == EngineKind::Tract {
        return tract("as requested", false);
    }
    let reason = match find_ort(choice, progress) {
        Ok((engine, from)) => {
            let on =
                if choice.provider.is_cpu() { String::new() } else { format!(", on {}", choice.provider) };
            let note = format!("{} {} ({from}){on}", engine.name(), engine.version());
            return Ok(Resolved { engine, note, fallback: false });
        }
        Err(error @ (EngineError::NotFound(_) | EngineError::Install(_) | EngineError::NotBuilt(_))) => error,
        // A requested library that cannot be used is an error, whatever else is available.
        Err(error) => return Err(error),
    };
    if choice.engine == EngineKind::Ort {
        return Err(reason);
    }
    tract(&format!("because {reason}"), true).map_err(|_| reason)
}

#[cfg(feature = "tract")]
#[allow(clippy::unnecessary_wraps, reason = "without the feature there is none")]
fn tract(why: &str, fallback: bool) -> Result<Resolved, EngineError> {
    let engine = Arc::new(crate::TractEngine::new());
    let note = format!("{} {}, {why}", engine.name(), engine.version());
    Ok(Resolved { engine, note, fallback })
}

#[cfg(not(feature = "tract"))]
fn tract(_: &str, _: bool) -> Result<Resolved, EngineError> {
    Err(EngineError::NotBuilt(crate::error::TRACT))
}

#[cfg(feature = "ort")]
#[cfg_attr(not(feature = "install"), allow(unused_variables))]
fn find_ort(
    choice: &EngineChoice,
    progress: &mut dyn FnMut(&str),
) -> Result<(Arc<dyn Engine>, String), EngineError> {
    if let Some((engine, owner)) = crate::OrtEngine::adopted().filter(|_| choice.library.is_none()) {
        return Ok((Arc::new(engine), owner));
    }
    let located = match crate::locate(choice.library.as_deref(), &choice.provider) {
        #[cfg(feature = "install")]
        Err(EngineError::NotFound(_)) if !is_offline(choice) => {
            let path = crate::install::install(progress)?;
            let version = crate::install::VERSION.to_owned();
            crate::Located { path, version, from: "installed now".to_owned(), providers: vec![] }
        }
        result => result?,
    };
    Ok((Arc::new(crate::OrtEngine::new(&located)?), located.from))
}

#[cfg(not(feature = "ort"))]
fn find_ort(_: &EngineChoice, _: &mut dyn FnMut(&str)) -> Result<(Arc<dyn Engine>, String), EngineError> {
    Err(EngineError::NotBuilt("ONNX Runtime"))
}

#[cfg(feature = "install")]
fn is_offline(choice: &EngineChoice) -> bool {
    let variable = std::env::var_os("PARE_OFFLINE");
    choice.offline || variable.is_some_and(|value| !value.is_empty() && value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(feature = "tract")]
    fn resolves_tract_without_a_search() {
        let choice = EngineChoice { engine: EngineKind::Tract, ..EngineChoice::default() };
        let resolved = resolve(&choice, &mut |_| unreachable!()).unwrap();
        assert_eq!((resolved.engine.name(), resolved.fallback), ("tract", false));
        assert!(resolved.note.ends_with(", as requested"));
    }

    #[test]
    #[cfg(feature = "ort")]
    fn rejects_unusable_libraries_without_a_fallback() {
        let library = Some(PathBuf::from("/nonexistent/libonnxruntime.so"));
        let choice = EngineChoice { library, offline: true, ..EngineChoice::default() };
        let error = resolve(&choice, &mut |_| unreachable!()).unwrap_err();
        assert!(matches!(error, EngineError::Library { .. }), "{error}");
    }

    #[test]
    #[cfg(not(any(feature = "ort", feature = "tract")))]
    fn reports_that_no_engine_is_built_in() {
        let error = resolve(&EngineChoice::default(), &mut |_| unreachable!()).unwrap_err();
        assert_eq!(error.to_string(), "this program is built without ONNX Runtime");
    }

    #[test]
    fn parses_names_of_engines() {
        assert_eq!("ort".parse(), Ok(EngineKind::Ort));
        assert_eq!("onnx".parse::<EngineKind>().unwrap_err(), "no engine is named `onnx`: auto, ort, tract");
    }
}
