//! What can be typed.

use crate::proof::{Limits, Measure};
use clap::{Args, Parser, Subcommand, ValueHint};
use pare_runtime::{EngineChoice, EngineKind};
use std::path::PathBuf;

/// Make trained ONNX models smaller and faster, and prove it
///
/// Reads a model, runs a pipeline of passes over it, runs both models in ONNX Runtime, and writes the result only
/// if the proof holds.
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
    /// Compare two models by running both: 0 they agree, 1 they differ, 2 could not run
    Verify(VerifyArgs),
    /// Find the smallest model on which a pipeline still fails: 1 if it fails, 0 if it does not
    Reduce(ReduceArgs),
    /// Show what a model consists of and what it costs
    Inspect(InspectArgs),
    /// Measure the latency of one model, or of several against the first
    Bench(BenchArgs),
    /// Write statistics of activations to a file, which `optimize --statistics` takes
    Calibrate(CalibrateArgs),
    /// Run a pipeline, and write where it leaves zeros among the weights, for `apply-mask`
    Mask(MaskArgs),
    /// List the passes, or explain one
    Passes(PassesArgs),
    /// Show which engines there are, or install ONNX Runtime
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
    /// Say nothing but errors and the report
    #[arg(long, short, global = true)]
    pub quiet: bool,
    /// The engine that runs models: auto, ort or tract
    #[arg(long, global = true, default_value = "auto", value_name = "ENGINE", env = "PARE_ENGINE")]
    pub engine: EngineKind,
    /// The ONNX Runtime library, or the folder it lies in
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub ort_library: Option<PathBuf>,
    /// Fetch nothing from the network; `PARE_OFFLINE=1` says the same
    #[arg(long, global = true)]
    pub offline: bool,
    /// A library of custom operators to load into ONNX Runtime; it runs with your rights
    #[arg(long, global = true, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub custom_ops: Vec<PathBuf>,
    /// Threads; 0 for as many as there are cores
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub threads: usize,
    /// Seeds every random choice
    #[arg(long, global = true, default_value_t = 0, value_name = "N")]
    pub seed: u64,
}

impl Common {
    pub fn choice(&self) -> EngineChoice {
        EngineChoice { engine: self.engine, library: self.ort_library.clone(), offline: self.offline }
    }
}

#[derive(Args)]
pub struct OptimizeArgs {
    /// The model; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath, required_unless_present = "config")]
    pub model: Option<PathBuf>,
    /// Where to write the result; `-` for stdout
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath, required_unless_present = "config")]
    pub output: Option<PathBuf>,
    /// The pipeline, such as 'safe,prune-channels{macs=0.5}'; `pare passes` lists what there is
    #[arg(long, value_name = "PIPELINE", default_value = "safe", conflicts_with = "config")]
    pub passes: String,
    /// A TOML file: a pipeline as a list `[[step]]`, or a project with a list `[[model]]`, all of which are made
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// Of a project: make nothing, fail if an output is not what it would be made to
    #[arg(long, requires = "config")]
    pub check: bool,
    /// Inputs to calibrate on and to compare on: a .npz or .npy file, or a folder of ONNX test data
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    /// Statistics that `pare calibrate` wrote; those of several files add up
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub statistics: Vec<PathBuf>,
    /// Further inputs, only to measure on, perhaps with `labels`; never used for calibration
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub test: Option<PathBuf>,
    /// Write without running both models
    #[arg(long)]
    pub no_prove: bool,
    /// What is compared: the result with the original, or also what each pass made of what it got
    #[arg(long, value_name = "WHAT", default_value = "whole", conflicts_with = "no_prove")]
    pub prove: Prove,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Treat initializers that are also inputs as constants: callers can no longer override them
    #[arg(long)]
    pub freeze_initializers: bool,
    /// Apply no more than this many patches (for finding the one at fault)
    #[arg(long, value_name = "N")]
    pub stop_after: Option<u64>,
    /// Print the graph to stderr after this pass (`all`: after every pass)
    #[arg(long, value_name = "PASS")]
    pub print_after: Option<String>,
    /// List everything that was left alone, not only the most frequent reasons
    #[arg(long)]
    pub verbose: bool,
    /// Memory for activations while calibrating, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
}

#[derive(Args)]
pub struct VerifyArgs {
    /// The model to compare with
    #[arg(value_hint = ValueHint::FilePath)]
    pub reference: PathBuf,
    /// The model to compare
    #[arg(value_hint = ValueHint::FilePath)]
    pub candidate: PathBuf,
    /// Inputs to compare on; generated from the types of the inputs if not given
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    #[command(flatten)]
    pub limits: LimitArgs,
    /// Accept differences up to this in an output, or in all: `logits=1e-3`, `1e-3`
    #[arg(long, value_name = "[OUTPUT=]DIFFERENCE", value_parser = tolerance)]
    pub tolerance: Vec<(String, f64)>,
    /// Judge every output by this measure instead of rounding: `cosine=0.999`. At most: max-abs, max-rel, rmse, kl.
    /// At least: cosine, snr (dB), agreement
    #[arg(long, value_name = "MEASURE=LIMIT", value_parser = metric)]
    pub metric: Vec<(Measure, f64)>,
    /// Run each sample this many times, each time with the state that the last one left
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    pub steps: usize,
    /// An input that takes up what an output left; found by names and types if not given
    #[arg(long, value_name = "INPUT=OUTPUT", value_parser = pair, requires = "steps")]
    pub state: Vec<(String, String)>,
}

/// What a difference is held to.
#[derive(Args, Clone)]
pub struct LimitArgs {
    /// Largest drift of an output that is allowed, relative to its largest value
    #[arg(long, value_name = "SHARE", value_parser = limit, allow_negative_numbers = true)]
    pub max_drift: Option<f64>,
    /// Least share of samples that must keep their class
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub min_agreement: Option<f64>,
    /// Largest drop of accuracy on labelled samples that is allowed
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub max_accuracy_drop: Option<f64>,
    /// Largest share of all inputs that may change class, as far as the samples tell with 95 % confidence
    #[arg(long, value_name = "SHARE", value_parser = share, allow_negative_numbers = true)]
    pub max_disagreement: Option<f64>,
}

impl LimitArgs {
    pub fn limits(&self) -> Limits {
        Limits {
            drift: self.max_drift,
            agreement: self.min_agreement,
            accuracy_drop: self.max_accuracy_drop,
            disagreement: self.max_disagreement,
            ..Limits::default()
        }
    }
}

/// What a proof compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Prove {
    /// The result with the original.
    Whole,
    /// That, and each pass by itself.
    Each,
    /// Nothing.
    #[value(skip)]
    No,
}

#[derive(Args)]
pub struct ReduceArgs {
    /// The model on which the pipeline fails; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// Where to write the smallest model that fails
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// The pipeline that fails
    #[arg(long, value_name = "PIPELINE", default_value = "safe")]
    pub passes: String,
    /// Apply no more than this many patches
    #[arg(long, value_name = "N")]
    pub stop_after: Option<u64>,
    /// Memory for activations while calibrating, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
}

#[derive(Args)]
pub struct InspectArgs {
    /// The model; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// A line for every node
    #[arg(long)]
    pub layers: bool,
    /// The tokens of each block of a transformer, and whether they can be merged
    #[arg(long)]
    pub tokens: bool,
    /// Groups of channels that can only be removed together; with a pattern, the members of those that match
    #[arg(long, value_name = "NAME", num_args = 0..=1, default_missing_value = "")]
    pub groups: Option<String>,
    /// The graph in ONNX textual syntax, long tensors cut short
    #[arg(long)]
    pub text: bool,
    /// Residual blocks, each with its share of weights, multiply-accumulates and measured time
    #[arg(long)]
    pub blocks: bool,
    /// Size of a symbolic dimension, such as N=8; 1 if not given
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
    /// Samples in a run, where the model leaves that open
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = at_least_one)]
    pub batch: usize,
    /// Size of a symbolic dimension for generated inputs, such as N=8
    #[arg(long = "dim", value_name = "NAME=SIZE", value_parser = dim)]
    pub dims: Vec<(String, i64)>,
    /// Rounds at least
    #[arg(long, default_value_t = 30, value_name = "N", value_parser = at_least_one)]
    pub rounds: usize,
    /// Seconds to measure at least
    #[arg(long, default_value_t = 3.0, value_name = "SECONDS")]
    pub time: f64,
    /// How much ONNX Runtime may transform the models: off, basic, extended, all
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
    /// Where to write the statistics, in the safetensors format
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// What runs before: the passes that stand before the pruning
    #[arg(long, value_name = "PIPELINE", default_value = "safe")]
    pub passes: String,
    /// Add the statistics of this file, such as of another shard of the samples
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub add: Vec<PathBuf>,
    /// Places of each sample that are looked at
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = at_least_one)]
    pub places: usize,
    /// Memory for activations and sums, such as 2G
    #[arg(long, value_name = "BYTES", default_value = "2G", value_parser = bytes)]
    pub memory: u64,
}

#[derive(Args)]
pub struct MaskArgs {
    /// The model, such as a trained one; `-` for stdin
    #[arg(value_hint = ValueHint::FilePath)]
    pub model: PathBuf,
    /// Where to write the mask, a safetensors file of booleans named after the weights
    #[arg(short, long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub output: PathBuf,
    /// The pipeline, such as 'sparsify{ratio=0.8,cascade=false}'
    #[arg(long, value_name = "PIPELINE")]
    pub passes: String,
    /// Inputs to calibrate on: a .npz or .npy file, or a folder of ONNX test data
    #[arg(long, value_name = "PATH", value_hint = ValueHint::AnyPath)]
    pub samples: Option<PathBuf>,
    /// Memory for activations while calibrating, such as 2G
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

/// A number of bytes, perhaps with K, M or G (powers of 1024).
fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.trim_end_matches(['b', 'B']).char_indices().last() {
        Some((i, 'k' | 'K')) => (&text[..i], 1 << 10),
        Some((i, 'm' | 'M')) => (&text[..i], 1 << 20),
        Some((i, 'g' | 'G')) => (&text[..i], 1 << 30),
        _ => (text, 1),
    };
    let number: f64 =
        digits.trim().parse().map_err(|_| "expected a number, perhaps with K, M or G".to_owned())?;
    if number > 0.0 { Ok((number * f64::from(unit)) as u64) } else { Err("expected more than 0".into()) }
}

/// A number from 0 to 1.
fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x| (0.0..=1.0).contains(x));
    number.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// A number of at least 0.
fn limit(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x >= 0.0).ok_or_else(|| "expected a number, at least 0".into())
}

fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite());
    number.ok_or_else(|| format!("`{text}` is no number"))
}

fn tolerance(text: &str) -> Result<(String, f64), String> {
    // Names may hold `=`; numbers do not.
    let (name, limit) = text.rsplit_once('=').unwrap_or(("", text));
    let limit = number(limit)?;
    if limit >= 0.0 { Ok((name.into(), limit)) } else { Err("a difference is at least 0".into()) }
}

fn metric(text: &str) -> Result<(Measure, f64), String> {
    let (name, limit) = text.split_once('=').ok_or_else(|| "expected MEASURE=LIMIT".to_owned())?;
    Ok((name.parse()?, number(limit)?))
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (a, b) = text.split_once('=').ok_or_else(|| "expected INPUT=OUTPUT".to_owned())?;
    Ok((a.into(), b.into()))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number, at least 1".into())
}

fn dim(text: &str) -> Result<(String, i64), String> {
    let expected = || "expected NAME=SIZE".to_owned();
    let (name, size) = text.split_once('=').ok_or_else(expected)?;
    let size: i64 = size.parse().map_err(|_| expected())?;
    if size > 0 { Ok((name.into(), size)) } else { Err("a size is at least 1".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn bytes_take_units() {
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert_eq!(bytes("1.5k"), Ok(1536));
        assert_eq!(bytes("300"), Ok(300));
        assert!(bytes("x").is_err() && bytes("-1").is_err());
        assert_eq!(dim("N=8"), Ok(("N".into(), 8)));
        assert_eq!(tolerance("a=b=1e-3"), Ok(("a=b".into(), 1e-3)));
        assert_eq!(tolerance("0.5"), Ok((String::new(), 0.5)));
        assert!(tolerance("a=x").is_err() && tolerance("-1").is_err());
        assert_eq!(metric("cosine=0.9"), Ok((Measure::Cosine, 0.9)));
        assert!(metric("cosinus=0.9").is_err());
        assert!(dim("N").is_err() && dim("N=0").is_err());
        assert_eq!((share("0.5"), limit("2")), (Ok(0.5), Ok(2.0)));
        assert!(["nan", "-0.1", "1.1", "x"].iter().all(|text| share(text).is_err()));
        assert!(["nan", "-0.1", "x"].iter().all(|text| limit(text).is_err()));
    }
}
