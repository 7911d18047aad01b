//! The words of hints.

use onnx_pare::{Hint, Reproducer, Written, engines::Hint as EngineHint, passes::Hint as PassHint};

/// A remedy as text.
pub fn text(hint: &Hint) -> String {
    match hint {
        Hint::NeedsSamples => "give samples with `--samples`".into(),
        Hint::NeedsLimit => "give one, such as `--max-accuracy-drop 0.01` or `--min-agreement 0.97`".into(),
        Hint::Families(names) => format!("the families are {}", names.join(", ")),
        Hint::NameModel => "write `{model}` where the path of the model belongs".into(),
        Hint::NeedsProof => "omit `--no-prove`".into(),
        Hint::NeedsStatistics => "`pare calibrate` writes such files".into(),
        Hint::NameFile => "give the name of a file in it".into(),
        Hint::CreateFolder(folder) => format!("`mkdir -p {}` creates it", folder.display()),
        Hint::Dimensions(names) => format!("the symbolic dimensions are {}", names.join(", ")),
        Hint::Outputs(names) => format!("the outputs are {}", names.join(", ")),
        Hint::Groups(names) => {
            let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
            format!("groups are named after layers, such as {}", names.join(", "))
        }
        Hint::Defect { .. } => format!("{}; omit the pass", defect(hint)),
        Hint::FreezeInitializers { overridable } => {
            let what = match overridable {
                1 => "an initializer is an input".into(),
                n => format!("{n} initializers are inputs"),
            };
            format!(
                "{what} that the caller can override; `--freeze-initializers` makes constants of such inputs"
            )
        }
        Hint::AlignChannels => {
            "`prune-channels{…,multiple=auto}` keeps channel counts that the engine runs faster".into()
        }
        Hint::OmitPass { pass } => format!("omit `{pass}`, or measure larger inputs with `--batch`"),
        Hint::KeepOriginal => {
            "keep the original; `--stop-after N` and `pare bench` find the change at fault".into()
        }
        Hint::KeepWeights => {
            "weights keep their names and shapes with `sparsify{…,cascade=false}`, and without `fold-bn`"
                .into()
        }
        Hint::Engine(hint) => engine(hint),
        Hint::Pass(hint) => pass(hint),
        Hint::Text(text) => text.clone(),
        _ => String::new(),
    }
}

/// The remedy of a result that was not proven.
pub const UNPROVEN: &str =
    "`--samples` compares on samples of your own, and `--allow-unproven` accepts the result";

/// The remedy of an engine, or of samples.
fn engine(hint: &EngineHint) -> String {
    let by_hand = "or point ORT_DYLIB_PATH at an ONNX Runtime library of 1.18 or later";
    let text = match hint {
        EngineHint::InstallRuntime { tried } => {
            let tried = tried.iter().map(|place| format!("\n  {}: {}", place.from, place.reason));
            let tried: String = tried.collect();
            return format!("`pare runtime install` fetches one, or set ORT_DYLIB_PATH{tried}");
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
            "ONNX Runtime 1.18 or later is needed; `pare runtime install` fetches one"
        }
        EngineHint::RuntimeForPlatform => {
            "point ORT_DYLIB_PATH at an ONNX Runtime library built for this machine"
        }
        EngineHint::UseOnnxRuntime => "use ONNX Runtime: `pare runtime install`",
        EngineHint::NewerRuntime => {
            "the model is newer than this engine; `pare runtime install` fetches a newer one"
        }
        EngineHint::NewProcess => "start another process for another library",
        EngineHint::LoadCustomOps => {
            "custom operators are implemented by a library of their own: `--custom-ops LIBRARY`"
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
fn pass(hint: &PassHint) -> String {
    match hint {
        PassHint::NeedsSamples { otherwise: None } => "give them with `--samples`".into(),
        PassHint::NeedsSamples { otherwise: Some(options) } => {
            format!("give them with `--samples`, or set `{options}`")
        }
        PassHint::MoreSamples(least) => format!("give {least} or more with `--samples`, better some hundred"),
        PassHint::NeedsEngine => "see `pare runtime`".into(),
        PassHint::ListPasses => "`pare passes` lists them all".into(),
        PassHint::ExplainPass(name) => format!("`pare passes {name}` shows its options"),
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
