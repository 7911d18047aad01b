//! Choosing the engine.

use crate::{Engine, EngineError, Located, OrtEngine, TractEngine, install, locate};
use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

/// Which engine is wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EngineKind {
    /// ONNX Runtime if it can be had, else tract.
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

/// What the user asked for.
#[derive(Clone, Debug, Default)]
pub struct EngineChoice {
    /// The engine.
    pub engine: EngineKind,
    /// The ONNX Runtime library, or a folder that holds it.
    pub library: Option<PathBuf>,
    /// Fetch nothing. `PARE_OFFLINE=1` says the same.
    pub offline: bool,
}

/// The engine that was chosen.
pub struct Resolved {
    /// The engine.
    pub engine: Arc<dyn Engine>,
    /// Which one it is and why, in one line.
    pub note: String,
    /// Whether it stands in for ONNX Runtime, which the user should know.
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

/// Find the engine that `choice` asks for; fetch ONNX Runtime if there is none and that is allowed.
/// `progress` hears one line before anything is fetched.
pub fn resolve(choice: &EngineChoice, progress: &mut dyn FnMut(&str)) -> Result<Resolved, EngineError> {
    if choice.engine == EngineKind::Tract {
        let note = format!("{} {}, as asked", crate::tract::NAME, crate::tract::VERSION);
        return Ok(Resolved { engine: Arc::new(TractEngine::new()), note, fallback: false });
    }
    let reason = match find_ort(choice, progress) {
        Ok((engine, from)) => {
            let note = format!("{} {} ({from})", engine.name(), engine.version());
            return Ok(Resolved { engine: Arc::new(engine), note, fallback: false });
        }
        // A library that was named and fails is the user's to know about, not to work around.
        Err(error @ (EngineError::NotFound(_) | EngineError::Install(_))) => error,
        Err(error) => return Err(error),
    };
    if choice.engine == EngineKind::Ort {
        return Err(reason);
    }
    let note = format!("{} {}, because {reason}", crate::tract::NAME, crate::tract::VERSION);
    Ok(Resolved { engine: Arc::new(TractEngine::new()), note, fallback: true })
}

fn find_ort(
    choice: &EngineChoice,
    progress: &mut dyn FnMut(&str),
) -> Result<(OrtEngine, String), EngineError> {
    let located = match locate(choice.library.as_deref()) {
        Err(EngineError::NotFound(_)) if !offline(choice) => {
            let path = install::install(progress)?;
            Located { path, version: install::VERSION.to_owned(), from: "installed now".to_owned() }
        }
        result => result?,
    };
    Ok((OrtEngine::new(&located)?, located.from))
}

fn offline(choice: &EngineChoice) -> bool {
    let variable = std::env::var_os("PARE_OFFLINE");
    choice.offline || variable.is_some_and(|value| !value.is_empty() && value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tract_is_there_without_looking() {
        let choice = EngineChoice { engine: EngineKind::Tract, ..EngineChoice::default() };
        let resolved = resolve(&choice, &mut |_| unreachable!()).unwrap();
        assert_eq!((resolved.engine.name(), resolved.fallback), ("tract", false));
        assert!(resolved.note.ends_with(", as asked"));
    }

    #[test]
    fn a_bad_library_is_not_worked_around() {
        let library = Some(PathBuf::from("/nonexistent/libonnxruntime.so"));
        let choice = EngineChoice { library, offline: true, ..EngineChoice::default() };
        let error = resolve(&choice, &mut |_| unreachable!()).unwrap_err();
        assert!(matches!(error, EngineError::Library { .. }), "{error}");
    }

    #[test]
    fn engines_have_names() {
        assert_eq!("ort".parse(), Ok(EngineKind::Ort));
        assert_eq!("onnx".parse::<EngineKind>().unwrap_err(), "no engine is named `onnx`: auto, ort, tract");
    }
}
