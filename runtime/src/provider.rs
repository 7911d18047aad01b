//! Execution providers: the devices and libraries that ONNX Runtime runs models on.

#[cfg(feature = "ort")]
use ort::ep::{self, ArbitrarilyConfigurableExecutionProvider as Configurable, ExecutionProviderDispatch};
use std::{fmt, str::FromStr};

/// An execution provider with its options, such as `openvino,device_type=GPU`. The default is the CPU.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Provider {
    name: &'static str,
    options: Options,
}

/// Names and values, in the order given.
type Options = Vec<(String, String)>;

/// A known execution provider.
#[cfg_attr(not(feature = "ort"), allow(dead_code))]
struct Known {
    /// The short name, in lower case.
    name: &'static str,
    /// The name that ONNX Runtime lists.
    registered: &'static str,
    /// The Python package whose library contains it, if that is not `onnxruntime`.
    package: Option<&'static str>,
    /// The option that sets its number of threads.
    threads: Option<&'static str>,
    /// Returns what is added to a session; `None` adds nothing.
    #[cfg(feature = "ort")]
    build: fn(&Options) -> Result<Option<ExecutionProviderDispatch>, String>,
}

/// The table of execution providers, one a row: name, name in ONNX Runtime, package, option of threads, constructor.
macro_rules! known {
    ($($name:literal, $registered:literal, $package:expr, $threads:expr, $build:expr;)*) => {
        static KNOWN: &[Known] = &[$(Known {
            name: $name,
            registered: $registered,
            package: $package,
            threads: $threads,
            #[cfg(feature = "ort")]
            build: $build,
        }),*];
    };
}

known! {
    "cpu", "CPUExecutionProvider", None, None, plain;
    "cuda", "CUDAExecutionProvider", Some("onnxruntime-gpu"), None, with::<ep::CUDA>;
    "tensorrt", "TensorrtExecutionProvider", Some("onnxruntime-gpu"), None, with::<ep::TensorRT>;
    "openvino", "OpenVINOExecutionProvider", Some("onnxruntime-openvino"), Some("num_of_threads"), with::<ep::OpenVINO>;
    "dnnl", "DnnlExecutionProvider", None, None, with::<ep::OneDNN>;
    "coreml", "CoreMLExecutionProvider", None, None, with::<ep::CoreML>;
    "directml", "DmlExecutionProvider", Some("onnxruntime-directml"), None, directml;
    "rocm", "ROCMExecutionProvider", Some("onnxruntime-rocm"), None, with::<ep::ROCm>;
    "cann", "CANNExecutionProvider", Some("onnxruntime-cann"), None, with::<ep::CANN>;
    "qnn", "QNNExecutionProvider", Some("onnxruntime-qnn"), None, with::<ep::QNN>;
    "xnnpack", "XnnpackExecutionProvider", None, Some("intra_op_num_threads"), with::<ep::XNNPACK>;
    "webgpu", "WebGpuExecutionProvider", None, None, with::<ep::WebGPU>;
}

#[cfg(feature = "ort")]
fn plain(options: &Options) -> Result<Option<ExecutionProviderDispatch>, String> {
    options.first().map_or(Ok(None), |(key, _)| Err(format!("it has no option `{key}`")))
}

/// A provider that takes any options; ONNX Runtime checks them.
#[cfg(feature = "ort")]
#[allow(clippy::unnecessary_wraps, reason = "constructors have one type")]
fn with<E: Configurable + Default + Into<ExecutionProviderDispatch>>(
    options: &Options,
) -> Result<Option<ExecutionProviderDispatch>, String> {
    let configure = |provider: E, (key, value): &(String, String)| provider.with_arbitrary_config(key, value);
    let dispatch: ExecutionProviderDispatch = options.iter().fold(E::default(), configure).into();
    Ok(Some(dispatch.error_on_failure()))
}

#[cfg(feature = "ort")]
fn directml(options: &Options) -> Result<Option<ExecutionProviderDispatch>, String> {
    let mut provider = ep::DirectML::default();
    for (key, value) in options {
        if key != "device_id" {
            return Err(format!("it has no option `{key}`, only `device_id`"));
        }
        let device = value.parse().map_err(|_| format!("`{value}` is not the number of a device"))?;
        provider = provider.with_device_id(device);
    }
    Ok(Some(provider.build().error_on_failure()))
}

impl Default for Provider {
    fn default() -> Self {
        Self { name: "cpu", options: vec![] }
    }
}

impl Provider {
    /// Its short name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Returns true for the CPU, which every engine runs models on.
    pub fn is_cpu(&self) -> bool {
        self.name == "cpu"
    }

    /// The Python package whose library contains it, if that is not `onnxruntime`.
    pub fn package(&self) -> Option<&'static str> {
        self.known().package
    }

    fn known(&self) -> &'static Known {
        KNOWN.iter().find(|known| known.name == self.name).unwrap_or(&KNOWN[0])
    }

    /// The provider as sessions take it, with this number of threads unless its options set one; 0 is its own choice.
    ///
    /// # Errors
    /// Why its options cannot be used.
    #[cfg(feature = "ort")]
    pub(crate) fn build(&self, threads: usize) -> Result<Option<ExecutionProviderDispatch>, String> {
        let known = self.known();
        let mut options = self.options.clone();
        if let Some(key) = known.threads.filter(|key| threads > 0 && options.iter().all(|(k, _)| k != key)) {
            options.push((key.to_owned(), threads.to_string()));
        }
        (known.build)(&options)
    }
}

/// The short name of a provider that ONNX Runtime lists; its own name if it is not known here.
#[cfg(feature = "ort")]
pub(crate) fn short_name(registered: &str) -> String {
    let known = KNOWN.iter().find(|known| known.registered == registered);
    known.map_or(registered, |known| known.name).to_owned()
}

impl fmt::Display for Provider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)?;
        self.options.iter().try_for_each(|(key, value)| write!(f, ",{key}={value}"))
    }
}

impl FromStr for Provider {
    type Err = String;

    /// Parses `NAME[,KEY=VALUE…]`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let Some(known) = KNOWN.iter().find(|known| known.name == name) else {
            let names: Vec<_> = KNOWN.iter().map(|known| known.name).collect();
            return Err(format!("no execution provider is named `{name}`: {}", names.join(", ")));
        };
        let mut options: Options = vec![];
        for part in parts {
            let pair = part.split_once('=').filter(|(key, _)| !key.is_empty() && !part.contains('\0'));
            let (key, value) =
                pair.ok_or_else(|| format!("`{part}` is not an option of the form `key=value`"))?;
            if options.iter().any(|(known, _)| known == key) {
                return Err(format!("the option `{key}` is given twice"));
            }
            options.push((key.to_owned(), value.to_owned()));
        }
        Ok(Self { name: known.name, options })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_names_and_options() {
        let provider: Provider = "openvino, device_type=HETERO:GPU=0,precision=FP16".parse().unwrap();
        assert_eq!(provider.to_string(), "openvino,device_type=HETERO:GPU=0,precision=FP16");
        assert_eq!((provider.name(), provider.is_cpu()), ("openvino", false));
        assert_eq!("cpu".parse(), Ok(Provider::default()));
        let empty: Provider = "openvino,cache_dir=".parse().unwrap();
        assert_eq!(empty.to_string(), "openvino,cache_dir=");
    }

    #[test]
    fn rejects_what_is_no_provider() {
        let error = |text: &str| text.parse::<Provider>().unwrap_err();
        let unknown = error("opnvino");
        assert!(
            unknown.starts_with("no execution provider is named `opnvino`: cpu, cuda, tensorrt, openvino"),
            "{unknown}"
        );
        assert!(error("").starts_with("no execution provider is named ``"));
        assert_eq!(error("cuda,device_id"), "`device_id` is not an option of the form `key=value`");
        assert_eq!(error("cuda,=1"), "`=1` is not an option of the form `key=value`");
        assert_eq!(error("cuda,"), "`` is not an option of the form `key=value`");
        assert_eq!(error("cuda,a=1,a=2"), "the option `a` is given twice");
        assert!(error("cuda,a=\0").contains("is not an option"));
    }

    #[test]
    fn names_are_unique() {
        for (i, known) in KNOWN.iter().enumerate() {
            assert!(KNOWN[..i].iter().all(|k| k.name != known.name && k.registered != known.registered));
        }
    }

    #[test]
    #[cfg(feature = "ort")]
    fn checks_options_of_providers_that_have_few() {
        let build = |text: &str| text.parse::<Provider>().unwrap().build(1).map(|built| built.is_some());
        assert_eq!(build("cpu"), Ok(false));
        assert_eq!(build("openvino,device_type=CPU"), Ok(true));
        assert_eq!(build("directml,device_id=1"), Ok(true));
        assert_eq!(build("cpu,threads=2").unwrap_err(), "it has no option `threads`");
        assert_eq!(build("directml,device_id=x").unwrap_err(), "`x` is not the number of a device");
    }
}
