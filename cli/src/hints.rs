//! The words of hints.

use onnx_pare::{Hint, Reproducer, Written, engines::Hint as EngineHint, passes::Hint as PassHint};

/// The interface whose names hints use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interface {
    /// `--max-drift 0.1`, `pare calibrate`.
    Command,
    /// `max_drift=0.1`, `onnx_pare.calibrate`.
    Python,
}

impl Interface {
    /// An option.
    pub(crate) fn option(self, name: &str) -> String {
        match self {
            Self::Command => format!("`--{name}`"),
            Self::Python => format!("`{}=`", name.replace('-', "_")),
        }
    }

    /// An option with its value.
    fn set(self, name: &str, value: &str) -> String {
        match self {
            Self::Command => format!("`--{name} {value}`"),
            Self::Python => format!("`{}={value}`", name.replace('-', "_")),
        }
    }

    /// An option that is switched on.
    fn switch(self, name: &str) -> String {
        match self {
            Self::Command => self.option(name),
            Self::Python => self.set(name, "True"),
        }
    }

    /// A command or function.
    fn function(self, name: &str) -> String {
        match self {
            Self::Command => format!("`pare {name}`"),
            Self::Python => format!("`onnx_pare.{name}`"),
        }
    }

    /// The remedy of a missing ONNX Runtime: a clause.
    fn fetch_runtime(self) -> &'static str {
        match self {
            Self::Command => "`pare runtime install` fetches one",
            Self::Python => "`pip install onnxruntime` installs one",
        }
    }
}

/// A remedy as text, in the names of an interface.
pub fn text(hint: &Hint, names: Interface) -> String {
    match hint {
        Hint::NeedsSamples => format!("give samples with {}", names.option("samples")),
        Hint::NeedsLimit => format!(
            "give one, such as {} or {}",
            names.set("max-accuracy-drop", "0.01"),
            names.set("min-agreement", "0.97")
        ),
        Hint::Families(known) => format!("the families are {}", known.join(", ")),
        Hint::NameModel => "write `{model}` where the path of the model belongs".into(),
        Hint::NeedsProof => match names {
            Interface::Command => "omit `--no-prove`".into(),
            Interface::Python => "omit `prove=False`".into(),
        },
        Hint::NeedsStatistics => format!("{} writes such files", names.function("calibrate")),
        Hint::NameFile => "give the name of a file in it".into(),
        Hint::CreateFolder(folder) => format!("`mkdir -p {}` creates it", folder.display()),
        Hint::Dimensions(known) => format!("the symbolic dimensions are {}", known.join(", ")),
        Hint::Outputs(known) => format!("the outputs are {}", known.join(", ")),
        Hint::Groups(known) => {
            let known: Vec<_> = known.iter().map(|name| format!("`{name}`")).collect();
            format!("groups are named after layers, such as {}", known.join(", "))
        }
        Hint::Defect { .. } => format!("{}; omit the pass", defect(hint)),
        Hint::FreezeInitializers { overridable } => {
            let what = match overridable {
                1 => "an initializer is an input".into(),
                n => format!("{n} initializers are inputs"),
            };
            let freeze = names.switch("freeze-initializers");
            format!("{what} that the caller can override; {freeze} makes constants of such inputs")
        }
        Hint::AlignChannels => {
            "`prune-channels{…,multiple=auto}` keeps channel counts that the engine runs faster".into()
        }
        Hint::OmitPass { pass } => {
            format!("omit `{pass}`, or measure larger inputs with {}", names.option("batch"))
        }
        Hint::KeepOriginal => {
            let (stop, bench) = (names.set("stop-after", "N"), names.function("bench"));
            format!("keep the original; {stop} and {bench} find the change at fault")
        }
        Hint::KeepWeights => {
            "weights keep their names and shapes with `sparsify{…,cascade=false}`, and without `fold-bn`"
                .into()
        }
        Hint::Engine(hint) => engine(hint, names),
        Hint::Pass(hint) => pass(hint, names),
        Hint::Text(text) => text.clone(),
        _ => String::new(),
    }
}

/// The remedy of a result that was not proven.
pub const UNPROVEN: &str =
    "`--samples` compares on samples of your own, and `--allow-unproven` accepts the result";

/// The remedy of an engine, or of samples.
fn engine(hint: &EngineHint, names: Interface) -> String {
    let by_hand = "or point ORT_DYLIB_PATH at an ONNX Runtime library of 1.18 or later";
    let text = match hint {
        EngineHint::InstallRuntime { tried } => {
            let tried = tried.iter().map(|place| format!("\n  {}: {}", place.from, place.reason));
            let tried: String = tried.collect();
            return format!("{}, or set ORT_DYLIB_PATH{tried}", names.fetch_runtime());
        }
        EngineHint::InstallPython => return format!("install Python with pip, {by_hand}"),
        EngineHint::InstallPip => return format!("install pip (`python3 -m ensurepip`), {by_hand}"),
        EngineHint::CheckNetwork => return format!("check the network, {by_hand}"),
        EngineHint::NameArrays { input } => {
            let named = savez(input);
            return format!("`{named}` names the arrays; the first axis counts samples");
        }
        EngineHint::RetryDownload => {
            return format!("the package index or mirror of pip returned another file; try again, {by_hand}");
        }
        EngineHint::ReplaceRuntime => {
            return format!("ONNX Runtime 1.18 or later is needed; {}", names.fetch_runtime());
        }
        EngineHint::RuntimeForPlatform => {
            "point ORT_DYLIB_PATH at an ONNX Runtime library built for this machine"
        }
        EngineHint::RuntimeWithProvider { package } => {
            let library = match names {
                Interface::Command => "`--ort-library`",
                Interface::Python => "`library=`",
            };
            return match (package, names) {
                (Some(package), Interface::Command) => format!(
                    "`pip install {package}` in a virtual environment installs a library that has it; activate the \
                     environment, or name the library with {library}"
                ),
                (Some(package), Interface::Python) => format!(
                    "`pip install {package}`, instead of onnxruntime, installs one that has it; or name a library with \
                     {library}"
                ),
                (None, _) => format!("name a library that has it with {library}"),
            };
        }
        EngineHint::UseOnnxRuntime => return format!("use ONNX Runtime: {}", names.fetch_runtime()),
        EngineHint::NewerRuntime => {
            return format!("the model is newer than this engine; {}", names.fetch_runtime());
        }
        EngineHint::NewProcess => "start another process for another library",
        EngineHint::LoadCustomOps => {
            let library = names.set("custom-ops", "LIBRARY");
            return format!("custom operators are implemented by a library of their own: {library}");
        }
        EngineHint::StandaloneCustomOps => {
            "this library only works inside Python; build onnxruntime-extensions as a shared library"
        }
        EngineHint::WritableCache => "set PARE_CACHE to a writable folder",
        EngineHint::ConvertToFloat => "NumPy computes in double: `array.astype(numpy.float32)`",
        EngineHint::FewerSamples => "use fewer samples",
        _ => "",
    };
    text.to_owned()
}

/// The call that stores an array for an input.
fn savez(input: &str) -> String {
    let is_word = input.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
        && !input.starts_with(|c: char| c.is_ascii_digit());
    if is_word && !input.is_empty() {
        format!("numpy.savez(file, {input}=array, …)")
    } else {
        format!("numpy.savez(file, **{{'{input}': array, …}})")
    }
}

/// The remedy of a pass.
fn pass(hint: &PassHint, names: Interface) -> String {
    match hint {
        PassHint::NeedsSamples { otherwise: None } => format!("give them with {}", names.option("samples")),
        PassHint::NeedsSamples { otherwise: Some(options) } => {
            format!("give them with {}, or set `{options}`", names.option("samples"))
        }
        PassHint::MoreSamples(least) => {
            format!("give {least} or more with {}, better some hundred", names.option("samples"))
        }
        PassHint::NeedsEngine => match names {
            Interface::Command => "see `pare runtime`".into(),
            Interface::Python => names.fetch_runtime().into(),
        },
        PassHint::ListPasses => format!("{} lists them all", names.function("passes")),
        PassHint::ExplainPass(name) => match names {
            Interface::Command => format!("`pare passes {name}` shows its options"),
            Interface::Python => format!("`onnx_pare.passes()[\"{name}\"]` shows its options"),
        },
        other => other.to_string(),
    }
}

/// The defective part: the pass, or the model.
fn defect(hint: &Hint) -> String {
    match hint {
        Hint::Defect { model_error: Some(why) } => {
            format!("this is a defect of the pass, or of the model, which does not load either: {why}")
        }
        _ => "this is a defect of the pass".into(),
    }
}

/// The hint of a defect with a reproducer.
pub fn defect_with(hint: &Hint, reproducer: &str) -> String {
    format!("{}; {reproducer}", defect(hint))
}

/// The hint of a reproducer that was written.
pub fn reproducer(reproducer: &Reproducer, written: &Written) -> String {
    let nodes = reproducer.model.node_count();
    format!("`{}` fails in the same way with {nodes} nodes", written.path.display())
}
