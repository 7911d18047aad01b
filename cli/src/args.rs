//! Command-line arguments.

use crate::{
    failure::Failure,
    terminal::Terminal,
    values::{at_least_one, bytes, dim, limit, measure, metric, open_share, pair, share, tolerance},
};
use clap::{Args, Parser, Subcommand, ValueHint};
use onnx_pare::{
    DataFiles, EngineKind, Environment, ExternalData, Measure, OutputMeasure, Provider, QualityLimits,
    QualityOptions, Source,
};
use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

/// Make trained ONNX models smaller and faster, and prove it
///
/// Reads a model, runs a pipeline of passes over it, runs both models in ONNX Runtime, and writes the result
/// only if the proof holds.
///
/// Exit codes: 0 done, 1 a check failed, 2 could not run.
#[derive(Parser)]
#[command(name = "pare", version, max_term_width = 110)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: Common,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a pipeline over a model, prove the result, and write it
    Optimize(OptimizeArgs),
    /// Search for the fastest or smallest model within limits on quality, and write it
    Search(SearchArgs),
    /// Compare two models by running both: 0 they agree, 1 they differ, 2 could not run
    Verify(VerifyArgs),
    /// Compare structure and weights of two models without running them: 0 equal, 1 different
    Diff(DiffArgs),
    /// Find the smallest model on which a pipeline still fails: 1 if it fails, 0 if it does not
    Reduce(ReduceArgs),
    /// Show the structure and the cost of a model
    Inspect(InspectArgs),
    /// Measure the latency of one model, or of several against the first
    Bench(BenchArgs),
    /// Collect statistics of activations, for `optimize --statistics`
    Calibrate(CalibrateArgs),
    /// Run a pipeline, and write a mask of the zeros among the weights, for the pass `apply-mask`
    Mask(MaskArgs),
    /// List the passes, or explain one
    Passes(PassesArgs),
    /// Show the engines, or install ONNX Runtime
    Runtime(RuntimeArgs),
    /// Write a completion script for a shell
    Completions { shell: clap_complete::Shell },
}

/// Options of every command.
#[derive(Args, Clone)]
#[command(next_help_heading = "Common options")]
pub struct Common {
    /// Report as JSON on stdout
    #[arg(long, global = true)]
    pub json: bool,
    /// Print errors and the report only
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// The engine that runs models: auto, ort or tract
    #[arg(long, global = true, default_value = "auto", value_name = "ENGINE", env = "PARE_ENGINE")]
    pub engine: EngineKind,
    /// The ONNX Runtime library, or its folder
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub ort_library: Option<PathBuf>,
    /// Never use the network; also set by `PARE_OFFLINE=1`
    #[arg(long, global = true)]
    pub offline: bool,
    /// A library of custom operators to load into ONNX Runtime; it runs with your rights
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub custom_ops: Vec<PathBuf>,
    /// The execution provider that latencies and outputs of deployed models are measured on, such as cuda or
    /// openvino, with its options: NAME[,KEY=VALUE...]
    #[arg(long, global = true, default_value = "cpu", value_name = "NAME", hide_default_value = true)]
    pub provider: Provider,
    /// Threads; 0 means one per core
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Seed of every random choice
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

impl Common {
    pub fn environment(&self, terminal: &Arc<Terminal>) -> Environment {
        let mut environment = Environment::default()
            .engine(self.engine)
            .offline(self.offline)
            .custom_ops(self.custom_ops.clone())
            .provider(self.provider.clone())
            .threads(self.threads)
            .seed(self.seed);
        environment.library.clone_from(&self.ort_library);
        environment.progress = terminal.clone();
        environment
    }
}

/// The model of an argument; `-` means stdin.
pub fn source(path: &Path) -> Result<Source, Failure> {
    if path != Path::new("-") {
        return Ok(path.into());
    }
    let mut bytes = Vec::new();
    std::io::stdin().read_to_end(&mut bytes).map_err(|e| Failure::new(format!("cannot read stdin: {e}")))?;
    Ok(Source::from(bytes).named("stdin"))
}

#[derive(Args)]
pub struct OptimizeArgs {
    /// The model; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "config")]
    pub model: Option<PathBuf>,
    /// The output; `-` for stdout
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath, required_unless_present = "config")]
    pub output: Option<PathBuf>,
    /// The pipeline, such as 'safe,prune-channels{macs=0.5}'; `pare passes` lists the passes
    #[arg(long, value_name = "PIPELINE", default_value = "safe", conflicts_with = "config")]
    pub passes: String,
    /// A TOML file: a pipeline as a list `[[step]]`, or a project as a list `[[model]]`
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Build nothing, and fail if an output of the project is out of date
    #[arg(long, requires = "config")]
    pub check: bool,
    /// Samples for calibration and comparison: a .npz or .npy file, or a folder of ONNX test data
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    /// Statistics written by `pare calibrate`; those of several files are added
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub statistics: Vec<PathBuf>,
    /// For `distill`: the model whose outputs training aims at, if it is not the model itself
    #[arg(long, value_name = "MODEL", value_hint = ValueHint::FilePath)]
    pub teacher: Option<PathBuf>,
    /// Samples for the comparison only, optionally with `labels`; never used for calibration
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub test: Option<PathBuf>,
    /// Share of the samples, those at their end, that is used for the comparison and not for calibration
    #[arg(long, value_name = "SHARE", value_parser = open_share, requires = "samples", conflicts_with = "test")]
    pub hold_out: Option<f64>,
    /// Write without running both models
    #[arg(long)]
    pub no_prove: bool,
    /// Exit with 0 instead of 3 if the output was written but could not be proven
    #[arg(long)]
    pub allow_unproven: bool,
    /// The comparisons: the result with the original, or also the models before and after each pass
    #[arg(long, value_name = "COMPARISONS", default_value = "result", conflicts_with = "no_prove")]
    pub prove: ProveArg,
    /// Time after which a comparison on `--samples` ends. With limits, and on `--test`, all samples are compared
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "20s", conflicts_with = "no_prove")]
    pub prove_time: Duration,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub quality: QualityArgs,
    /// Do not measure the latency of both models
    #[arg(long)]
    pub no_time: bool,
    /// Samples per run that is measured, where the model leaves it open
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    pub batch: usize,
    /// Treat initializers that are also inputs as constants, so that callers cannot override them
    #[arg(long)]
    pub freeze_initializers: bool,
    /// Apply this many patches at most, to find the one at fault
    #[arg(long, value_name = "N")]
    pub stop_after: Option<u64>,
    /// Print the graph to stderr after this pass (`all`: after every pass)
    #[arg(long, value_name = "PASS")]
    pub print_after: Option<String>,
    /// Write the report as an HTML file, too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,
    /// Show why passes skipped something, and the details of searches
    #[arg(long)]
    pub verbose: bool,
    /// Memory for activations of samples, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
    #[command(flatten)]
    pub external: ExternalArgs,
}

#[derive(Args)]
pub struct SearchArgs {
    /// The model; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// The output
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// The quantity that is minimised
    #[arg(long, value_name = "GOAL", default_value = "latency")]
    pub goal: GoalArg,
    /// Samples for calibration: a .npz or .npy file, or a folder of ONNX test data
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: PathBuf,
    /// Samples that candidates are judged on, optionally with `labels`; never used for calibration
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub test: Option<PathBuf>,
    /// Share of the samples, those at their end, that candidates are judged on if there is no `--test`
    #[arg(long, value_name = "SHARE", value_parser = open_share, default_value_t = 0.25, conflicts_with = "test")]
    pub hold_out: f64,
    /// Largest drop of accuracy on labelled samples
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub max_accuracy_drop: Option<f64>,
    /// Smallest share of samples that keep their class; of embeddings, smallest rank correlation of cosines
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub min_agreement: Option<f64>,
    /// Largest drift: of other outputs the squared error over the variance, 0.01 for 20 dB
    #[arg(long, value_name = "DRIFT", visible_alias = "max-error", value_parser = limit, allow_negative_numbers = true)]
    pub max_drift: Option<f64>,
    /// A command whose last line is the quality of `{model}` as a number, the higher the better
    #[arg(long, value_name = "COMMAND", requires = "max_metric_drop")]
    pub evaluate: Option<String>,
    /// Largest drop of the number that `--evaluate` prints
    #[arg(long, value_name = "DROP", value_parser = limit, requires = "evaluate", allow_negative_numbers = true)]
    pub max_metric_drop: Option<f64>,
    /// Time after which the command of `--evaluate` is ended
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "10m")]
    pub evaluate_timeout: Duration,
    /// Least probability that the limits hold for other samples
    #[arg(long, value_name = "SHARE", value_parser = share, default_value_t = 0.5)]
    pub confidence: f64,
    /// Time for the search and its result
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "20m")]
    pub budget: Duration,
    /// The families of passes: blocks, activations, heads, hidden, channels, streams, tokens, training,
    /// precision
    #[arg(long, value_name = "FAMILIES", value_delimiter = ',')]
    pub passes: Vec<String>,
    /// Samples per run when latency is measured, where the model leaves it open
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    pub batch: usize,
    /// A folder for all models of the Pareto front, with their pipelines
    #[arg(long, value_name = "FOLDER", value_hint = ValueHint::DirPath)]
    pub front: Option<PathBuf>,
    /// Write the report as an HTML file, too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,
    /// Try every candidate again instead of those only that earlier searches did not try
    #[arg(long)]
    pub restart: bool,
    #[command(flatten)]
    pub quality: QualityArgs,
    /// Treat initializers that are also inputs as constants, so that callers cannot override them
    #[arg(long)]
    pub freeze_initializers: bool,
    /// Memory for activations of samples, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
}

/// The quantity that a search minimises.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum GoalArg {
    /// Latency in the engine.
    Latency,
    /// Bytes of the file.
    Bytes,
    /// Multiply-accumulates.
    Macs,
}

impl From<GoalArg> for onnx_pare::Goal {
    fn from(arg: GoalArg) -> Self {
        match arg {
            GoalArg::Latency => Self::Latency,
            GoalArg::Bytes => Self::Bytes,
            GoalArg::Macs => Self::Macs,
        }
    }
}

/// The storage of weights.
#[derive(Args)]
pub struct ExternalArgs {
    /// Weights of the output: as in the input, embedded, in one file beside it, or each in a file of its own
    #[arg(long = "external-data", value_name = "FILES", default_value = "keep", conflicts_with = "config")]
    pub data: ExternalArg,
    /// Name of the data file, or the start of the names of several
    #[arg(long = "external-name", value_name = "NAME", requires = "data")]
    pub name: Option<String>,
    /// Size of the smallest weight that is stored in a data file
    #[arg(long = "external-threshold", value_name = "BYTES", default_value = "1024", value_parser = bytes)]
    pub threshold: u64,
    /// Alignment of weights in a data file
    #[arg(long = "external-align", value_name = "BYTES", default_value = "4096", value_parser = bytes)]
    pub align: u64,
}

/// The files of weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ExternalArg {
    /// As in the input.
    Keep,
    /// In the model file.
    Embed,
    /// In one data file.
    One,
    /// Each in a data file of its own.
    Each,
}

impl ExternalArgs {
    pub fn external_data(&self) -> ExternalData {
        let layout = DataFiles {
            name: self.name.clone(),
            threshold: usize::try_from(self.threshold).unwrap_or(usize::MAX),
            align: self.align,
        };
        match self.data {
            ExternalArg::Keep => ExternalData::Keep,
            ExternalArg::Embed => ExternalData::Embed,
            ExternalArg::One => ExternalData::One(layout),
            ExternalArg::Each => ExternalData::Each(layout),
        }
    }
}

#[derive(Args)]
pub struct VerifyArgs {
    /// The model to compare with
    #[arg(value_hint = ValueHint::FilePath)]
    pub reference: PathBuf,
    /// The model to compare
    #[arg(value_hint = ValueHint::FilePath)]
    pub candidate: PathBuf,
    /// Samples to compare on; generated from the types of the inputs if not given
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    #[command(flatten)]
    pub limits: LimitArgs,
    #[command(flatten)]
    pub quality: QualityArgs,
    /// Absolute difference accepted in an output, or in all: `logits=1e-3`, `1e-3`
    #[arg(long, value_name = "[OUTPUT=]DIFFERENCE", value_parser = tolerance)]
    pub tolerance: Vec<(String, f64)>,
    /// Limit of a measure for every output, which replaces equality up to rounding: `cosine=0.999`. Upper
    /// limits: max-abs, max-rel, rmse, kl. Lower limits: cosine, snr (dB), agreement
    #[arg(long, value_name = "MEASURE=LIMIT", value_parser = metric)]
    pub metric: Vec<(Measure, f64)>,
    /// Write the report as an HTML file, too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,
    /// Show the drift of every tensor that both models compute under the same name
    #[arg(long)]
    pub layers: bool,
    /// Memory for activations, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
    /// Runs of each sample, each with the state that the previous one computed
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub steps: usize,
    /// An input that receives the state, and the output that computes it; found by names and types if not
    /// given
    #[arg(long, value_name = "INPUT=OUTPUT", value_parser = pair, requires = "steps")]
    pub state: Vec<(String, String)>,
}

/// The measures of the outputs.
#[derive(Args, Clone)]
pub struct QualityArgs {
    /// Measure of an output: classes, cosine, error, exact or ignore; chosen by what the model shows if not given
    #[arg(long, value_name = "OUTPUT=MEASURE", value_parser = measure)]
    pub quality: Vec<(String, OutputMeasure)>,
    /// The input [samples, tokens] whose zeros mark padding; found by its way into attention if not given
    #[arg(long, value_name = "INPUT")]
    pub mask: Option<String>,
}

impl QualityArgs {
    pub fn options(&self) -> QualityOptions {
        QualityOptions::new(self.quality.clone(), self.mask.clone())
    }
}

#[derive(Args)]
pub struct DiffArgs {
    /// The first model
    #[arg(value_hint = ValueHint::FilePath)]
    pub before: PathBuf,
    /// The second model
    #[arg(value_hint = ValueHint::FilePath)]
    pub after: PathBuf,
    /// Show long lists entirely
    #[arg(long)]
    pub verbose: bool,
}

/// Limits on the loss of quality.
#[derive(Args, Clone)]
pub struct LimitArgs {
    /// Largest difference of an output, relative to its largest value
    #[arg(long, value_name = "SHARE", value_parser = limit, allow_negative_numbers = true)]
    pub max_deviation: Option<f64>,
    /// Smallest share of samples that keep their class; of embeddings, smallest rank correlation of cosines
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub min_agreement: Option<f64>,
    /// Largest drop of accuracy on labelled samples
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub max_accuracy_drop: Option<f64>,
    /// Largest share of all inputs that change class, with 95 % confidence
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub max_disagreement: Option<f64>,
}

impl LimitArgs {
    pub fn limits(&self) -> QualityLimits {
        let mut limits = QualityLimits::default();
        limits.deviation = self.max_deviation;
        limits.agreement = self.min_agreement;
        limits.accuracy_drop = self.max_accuracy_drop;
        limits.disagreement = self.max_disagreement;
        limits
    }
}

/// The comparisons of a proof.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum ProveArg {
    /// The result with the original.
    Result,
    /// In addition, the models before and after each pass.
    Each,
}

impl From<ProveArg> for onnx_pare::Prove {
    fn from(arg: ProveArg) -> Self {
        match arg {
            ProveArg::Result => Self::Result,
            ProveArg::Each => Self::EachPass,
        }
    }
}

#[derive(Args)]
pub struct ReduceArgs {
    /// The model on which the pipeline fails; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// The output: the smallest model that fails
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// The pipeline that fails
    #[arg(long, value_name = "PIPELINE", default_value = "safe")]
    pub passes: String,
    /// Apply this many patches at most
    #[arg(long, value_name = "N")]
    pub stop_after: Option<u64>,
    /// Memory for activations of samples, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
}

#[derive(Args)]
pub struct InspectArgs {
    /// The model; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// Show every node
    #[arg(long)]
    pub layers: bool,
    /// Show the tokens of each block of a transformer, and whether they can be merged
    #[arg(long)]
    pub tokens: bool,
    /// Show groups of channels that can only be removed together; with `=NAME`, a pattern, the members of
    /// those that match
    #[arg(long, value_name = "NAME", num_args = 0..=1, require_equals = true, default_missing_value = "")]
    pub groups: Option<String>,
    /// Show which weights get a gradient, and the nodes that stop it
    #[arg(long)]
    pub gradients: bool,
    /// Print the graph in ONNX textual syntax; long tensors are abbreviated
    #[arg(long)]
    pub text: bool,
    /// Show residual blocks with their shares of weights, multiply-accumulates and measured time
    #[arg(long)]
    pub blocks: bool,
    /// Show the layers by what their rounding to eight bits costs, in drift of the outputs and in measured time;
    /// needs samples
    #[arg(long)]
    pub quantization: bool,
    /// Samples whose sizes symbolic dimensions have
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    /// Size of a symbolic dimension, such as N=8; 1 if neither this nor samples set it
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
}

#[derive(Args)]
pub struct BenchArgs {
    /// The models; ratios are to the first
    #[arg(required = true, value_hint = ValueHint::FilePath)]
    pub models: Vec<PathBuf>,
    /// Inputs to run on; generated if not given
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    /// Samples per run, where the model leaves it open
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    pub batch: usize,
    /// Size of a symbolic dimension for generated inputs, such as N=8
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
    /// Number of rounds at least
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = at_least_one)]
    pub rounds: usize,
    /// Seconds to measure at least
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    pub time: f64,
    /// Write the report as an HTML file, too
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub report: Option<PathBuf>,
    /// Graph optimizations of ONNX Runtime: off, basic, extended, all
    #[arg(long, default_value = "all", value_parser = ["off", "basic", "extended", "all"])]
    pub optimize: String,
}

#[derive(Args)]
pub struct CalibrateArgs {
    /// The model; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// Inputs to run: a .npz or .npy file, or a folder of ONNX test data
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: PathBuf,
    /// The output: statistics in the safetensors format
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// The pipeline that runs first: the passes before the one that uses the statistics
    #[arg(long, value_name = "PIPELINE", default_value = "safe")]
    pub passes: String,
    /// A file of statistics to add, such as that of another part of the samples
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub add: Vec<PathBuf>,
    /// Positions of each sample that are used
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub places: usize,
    /// Memory for activations and sums, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
}

#[derive(Args)]
pub struct MaskArgs {
    /// The model; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// The output: a safetensors file of booleans named after the weights
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// The pipeline, such as 'sparsify{ratio=0.8,cascade=false}'
    #[arg(long, value_name = "PIPELINE")]
    pub passes: String,
    /// Samples for calibration: a .npz or .npy file, or a folder of ONNX test data
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    /// Memory for activations of samples, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
}

#[derive(Args)]
pub struct PassesArgs {
    /// The pass or preset to explain
    pub name: Option<String>,
}

#[derive(Args)]
pub struct RuntimeArgs {
    #[command(subcommand)]
    pub action: Option<RuntimeAction>,
}

#[derive(Subcommand)]
pub enum RuntimeAction {
    /// Fetch ONNX Runtime into the cache folder
    Install,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_consistent() {
        Cli::command().debug_assert();
    }
}
