//! Remedies for errors, for the program to put into words.

/// A remedy for an error.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// Install ONNX Runtime or name a library.
    InstallRuntime {
        /// The places that were searched.
        tried: Vec<Tried>,
    },
    /// Use ONNX Runtime 1.18 or later instead of the library given.
    ReplaceRuntime,
    /// Use a library of ONNX Runtime that is built for this machine.
    RuntimeForPlatform,
    /// Use a library of ONNX Runtime that contains the execution provider.
    RuntimeWithProvider {
        /// The Python package that has one.
        package: Option<&'static str>,
    },
    /// Use ONNX Runtime instead of the embedded engine.
    UseOnnxRuntime,
    /// Use a newer ONNX Runtime: the model is newer than the engine.
    NewerRuntime,
    /// Start another process: each can load one library.
    NewProcess,
    /// Load the library of the model's custom operators.
    LoadCustomOps,
    /// Build the library of custom operators as a shared library: this one only works inside Python.
    StandaloneCustomOps,
    /// Set the cache folder to a writable one.
    WritableCache,
    /// Install Python with pip.
    InstallPython,
    /// Install pip.
    InstallPip,
    /// Check the network.
    CheckNetwork,
    /// Try again: pip's index or mirror returned another file.
    RetryDownload,
    /// Name the arrays after the model's inputs, with samples along the first axis.
    NameArrays {
        /// An input of the model.
        input: String,
    },
    /// Convert the samples from double to single precision.
    ConvertToFloat,
    /// Use fewer samples.
    FewerSamples,
}

/// A place without a usable library.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tried {
    /// The place: its role or path.
    pub from: String,
    /// Why no library there can be used.
    pub reason: String,
}
