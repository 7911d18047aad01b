//! How a command ends.

use pare_graph::onnx::{ReadError, WriteError};
use pare_passes::{Hint, PipelineError, RunError};
use pare_runtime::{EngineError, SamplesError};

/// A command that ran to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Everything held.
    Well,
    /// A check failed: exit code 1.
    CheckFailed,
}

/// A command that could not run: exit code 2.
#[derive(Debug)]
pub struct Failure {
    /// One sentence.
    pub message: String,
    /// The place it is about, underlined.
    pub detail: Option<String>,
    /// What may help.
    pub hint: Option<String>,
}

impl Failure {
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), detail: None, hint: None }
    }

    pub fn hint(self, hint: impl Into<String>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// The same failure, said of something.
    pub fn of(self, what: impl std::fmt::Display) -> Self {
        Self { message: format!("{what}: {}", self.message), ..self }
    }

    /// Why the model `what` cannot be read.
    pub fn read(error: &ReadError, what: &str) -> Self {
        let failure = Self { hint: error.hint().map(Into::into), ..Self::new(error.to_string()) };
        // These name the file themselves.
        if matches!(error, ReadError::Io { .. } | ReadError::NotAFile(_)) {
            failure
        } else {
            failure.of(what)
        }
    }

    pub fn pipeline(error: &PipelineError, source: &str) -> Self {
        let (message, hint) = (error.message.clone(), error.hint.as_ref().map(worded));
        Self { message, detail: Some(error.underline(source)), hint }
    }
}

impl From<WriteError> for Failure {
    fn from(error: WriteError) -> Self {
        Self { message: error.to_string(), detail: None, hint: error.hint().map(Into::into) }
    }
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self { message: error.to_string(), detail: None, hint: error.hint().map(worded) }
    }
}

/// A remedy in terms of the command line.
pub fn worded(hint: &Hint) -> String {
    match hint {
        Hint::NeedsSamples { otherwise: None } => "give them with `--samples`".into(),
        Hint::NeedsSamples { otherwise: Some(options) } => {
            format!("give them with `--samples`, or set `{options}`")
        }
        Hint::MoreSamples(least) => format!("give {least} or more with `--samples`, better some hundred"),
        Hint::NeedsEngine => "see `pare runtime`".into(),
        Hint::ListPasses => "`pare passes` lists them all".into(),
        Hint::ExplainPass(name) => format!("`pare passes {name}` shows its options"),
        other => other.to_string(),
    }
}

/// A hint of the runtime in words.
pub fn worded(hint: Hint) -> String {
    let by_hand = "or point ORT_DYLIB_PATH at an ONNX Runtime library of 1.18 or later";
    let text = match hint {
        Hint::InstallRuntime { tried } => {
            let places = tried.iter().map(|place| format!("\n  {}: {}", place.from, place.reason));
            let places: String = places.collect();
            return format!("`pare runtime install` fetches one, or set ORT_DYLIB_PATH{places}");
        }
        Hint::InstallPython => return format!("install Python with pip, {by_hand}"),
        Hint::InstallPip => return format!("install pip (`python3 -m ensurepip`), {by_hand}"),
        Hint::CheckNetwork => return format!("check the network, {by_hand}"),
        Hint::RetryDownload => {
            return format!("the index or mirror that pip asks gave another file; try again, {by_hand}");
        }
        Hint::ReplaceRuntime => "ONNX Runtime 1.18 or later is needed; `pare runtime install` fetches one",
        Hint::RuntimeForPlatform => "point ORT_DYLIB_PATH at an ONNX Runtime library built for this machine",
        Hint::UseOnnxRuntime => "use ONNX Runtime: `pare runtime install`",
        Hint::NewerRuntime => {
            "the model is newer than this engine; `pare runtime install` fetches a newer one"
        }
        Hint::NewProcess => "start another process for another library",
        Hint::LoadCustomOps => "custom operators come with a library of their own: `--custom-ops LIBRARY`",
        Hint::StandaloneCustomOps => {
            "this library only works inside Python; build onnxruntime-extensions as a shared library"
        }
        Hint::WritableCache => "set PARE_CACHE to a folder that can be written",
        Hint::NameArrays => {
            "`numpy.savez(file, input=array, …)` names the arrays; the first axis counts samples"
        }
        Hint::ConvertToFloat => "NumPy computes in double: `array.astype(numpy.float32)`",
        Hint::FewerSamples => "use fewer samples",
        _ => "",
    };
    text.to_owned()
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        Self { message: error.to_string(), detail: None, hint: error.hint().map(worded) }
    }
}

impl From<SamplesError> for Failure {
    fn from(error: SamplesError) -> Self {
        Self { message: error.to_string(), detail: None, hint: error.hint().map(worded) }
    }
}
