//! What models are run on: samples from files, or generated.
//!
//! * An `.npz` file holds an array for each input, named after it, and perhaps `labels`; an `.npy` file is
//!   the array of a model's only input. The first axis counts samples.
//! * A folder holds ONNX test data, `test_data_set_*/input_*.pb`; each set is one sample.
//! * [`Samples::generated`] makes samples from the types of the inputs.
//!
//! Files are read as hostile: sizes are checked before memory is taken.

mod array;
mod fit;
mod folder;
mod generate;
mod npy;
mod pb;
mod specs;

pub use folder::read_test_data;
pub use generate::{InputSpec, beyond_generation, generate, symbol_plans};
pub use specs::input_specs;

use crate::{Feed, Port, engine::describe};
use array::Array;
use fit::{Column, PerRun, both, check_names, column, read_labels};
use generate::KINDS;
use pare_graph::{Model, ops::Bindings};
use std::{
    collections::BTreeMap,
    io,
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Why samples cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SamplesError {
    /// A file or folder cannot be read.
    #[error("`{}` cannot be read: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The arrays take more memory than allowed.
    #[error("`{}` unpacks to {size} bytes, and {limit} are allowed", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Bytes of all arrays together.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// There is no test data in a folder.
    #[error("`{}` holds neither `input_0.pb` nor a folder `test_data_set_0`", .0.display())]
    EmptyFolder(PathBuf),
    /// The arrays' names are not those of the inputs.
    #[error("{0}")]
    Names(String),
    /// An array does not fit its input.
    #[error("input `{name}` {reason}")]
    Port {
        /// The input.
        name: String,
        /// What it takes and what was given.
        reason: String,
    },
    /// Arrays of different lengths, or inputs that want different numbers of samples at a time.
    #[error("{0}")]
    Counts(String),
    /// There is no sample.
    #[error("there are no samples in `{}`", .0.display())]
    Empty(PathBuf),
}

impl SamplesError {
    pub(crate) fn read(path: &Path, error: &io::Error) -> Self {
        let reason = crate::error::tidy(&error.to_string());
        Self::File { path: path.to_owned(), reason }
    }

    /// What the user can do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Names(_) => Some(
                "`numpy.savez(file, input=array, …)` names the arrays; the first axis counts samples".into(),
            ),
            Self::Port { reason, .. } if reason.contains("double[") && reason.contains("float[") => {
                Some("NumPy computes in double: `array.astype(numpy.float32)`".to_owned())
            }
            Self::TooLarge { .. } => Some("use fewer samples".to_owned()),
            _ => None,
        }
    }
}

/// How much samples may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of all arrays of a file together.
    pub total: u64,
    /// Bytes of one array that may be held in memory; larger ones are unpacked into a temporary file.
    pub memory: u64,
}

impl Default for Limits {
    /// 8 GiB in all, 2 GiB of an array in memory.
    fn default() -> Self {
        Self { total: 8 << 30, memory: 2 << 30 }
    }
}

/// Samples generated for each choice of sizes of the symbolic dimensions, at least: one of each kind.
const LEAST: usize = KINDS;
/// And at most: more show what only a few values meet.
const MOST: usize = 20 * KINDS;
/// Multiply-accumulates that more than the least may take; well under a second.
const WORK: u64 = 1_000_000_000;
/// Time after which the least is enough: what loops and transforms cost is not known before they run.
const PATIENCE: Duration = Duration::from_secs(10);

/// Samples for one model.
pub struct Samples {
    source: Source,
    count: usize,
    labels: Option<Vec<i64>>,
    /// How many samples a run takes.
    per_run: PerRun,
    limits: Limits,
}

enum Source {
    Arrays(Vec<Column>),
    Sets { folders: Vec<PathBuf>, inputs: Vec<Port> },
    Generated { inputs: Vec<InputSpec>, plans: Vec<BTreeMap<String, usize>>, seed: u64 },
}

/// What one run of a model takes.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The inputs.
    pub feed: Feed,
    /// Which samples these are.
    pub samples: Range<usize>,
    /// Their labels, if there are any.
    pub labels: Option<Vec<i64>>,
}

impl Samples {
    /// Samples from `path` for a model with these `inputs`.
    pub fn open(path: &Path, inputs: &[Port], limits: Limits) -> Result<Self, SamplesError> {
        if path.is_dir() {
            let folders = folder::sets(path)?;
            let count = folders.len();
            let source = Source::Sets { folders, inputs: inputs.to_vec() };
            return Ok(Self { source, count, labels: None, per_run: PerRun::Exactly(1), limits });
        }
        let mut arrays = Array::open_all(path, &limits)?;
        if let ([array], [input], Some("npy")) = (&mut arrays[..], inputs, extension(path)) {
            array.name.clone_from(&input.name);
        }
        Self::from_arrays(path, arrays, inputs, limits)
    }

    /// Generated samples: `per_plan` for each choice of sizes for the symbolic dimensions
    /// ([`symbol_plans`]), the same for the same seed.
    pub fn generated(inputs: Vec<InputSpec>, seed: u64, per_plan: usize) -> Self {
        let plans = symbol_plans(&inputs);
        let count = plans.len() * per_plan;
        let source = Source::Generated { inputs, plans, seed };
        Self { source, count, labels: None, per_run: PerRun::Exactly(1), limits: Limits::default() }
    }

    /// What models are compared on where no samples are given, made from the inputs of `model`.
    pub fn for_model(model: &Model, seed: u64) -> Self {
        let specs = input_specs(model);
        let plan = symbol_plans(&specs).into_iter().next().unwrap_or_default();
        let sizes = plan.into_iter().map(|(name, size)| (name, size as i64)).collect();
        // Files tell little about the sizes inside; where they cannot be inferred, what they tell must do.
        let mut sized = model.clone();
        let _ = sized.infer();
        let macs = sized.cost(&Bindings { sizes, ..Bindings::default() }).macs;
        let each = (WORK / macs.max(1)).clamp(LEAST as u64, MOST as u64) as usize;
        Self::generated(specs, seed, each)
    }

    fn from_arrays(
        path: &Path,
        arrays: Vec<Array>,
        inputs: &[Port],
        limits: Limits,
    ) -> Result<Self, SamplesError> {
        let (mut columns, mut labels, mut per_run) = (Vec::new(), None, PerRun::Any);
        check_names(path, &arrays, inputs)?;
        let count = arrays.first().map_or(0, Array::rows);
        for mut array in arrays {
            if array.rows() != count {
                let (name, rows) = (&array.name, array.rows());
                let text =
                    format!("array `{name}` holds {rows} samples, where the first array holds {count}");
                return Err(SamplesError::Counts(text));
            }
            let Some(port) = inputs.iter().find(|port| port.name == array.name) else {
                labels = Some(read_labels(path, &mut array, &limits)?);
                continue;
            };
            let (column, wants) = column(array, port)?;
            per_run = both(per_run, wants, &port.name)?;
            columns.push(column);
        }
        if count == 0 {
            return Err(SamplesError::Empty(path.to_owned()));
        }
        Ok(Self { source: Source::Arrays(columns), count, labels, per_run, limits })
    }

    /// Whether they were made up: then shares of them say nothing about inputs to come.
    pub fn is_generated(&self) -> bool {
        matches!(self.source, Source::Generated { .. })
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Their labels, if the file holds any.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref().map(|labels| &labels[..self.count])
    }

    /// Keep the first `count` samples only.
    pub fn truncate(&mut self, count: usize) {
        self.count = self.count.min(count);
    }

    /// How many samples a run takes, where the model leaves it open and `wanted` are asked for.
    pub fn batch_size(&self, wanted: usize) -> usize {
        match self.per_run {
            PerRun::Any => wanted.clamp(1, self.count.max(1)),
            PerRun::Exactly(count) => count,
        }
    }

    /// Samples at the end that no batch takes: a model with a fixed batch size runs on full batches only.
    pub fn left_over(&self) -> usize {
        match self.per_run {
            PerRun::Any => 0,
            PerRun::Exactly(count) => self.count % count,
        }
    }

    /// The inputs for the samples in `range`, which is clipped to what there is. Generated samples and
    /// test data are given one at a time: the first of the range.
    pub fn batch(&mut self, range: Range<usize>) -> Result<Feed, SamplesError> {
        let range = range.start.min(self.count)..range.end.min(self.count);
        match &mut self.source {
            Source::Arrays(columns) => {
                let limits = self.limits;
                let one = |column: &mut Column| {
                    let rows = if column.strip {
                        range.start..range.end.min(range.start + 1)
                    } else {
                        range.clone()
                    };
                    let tensor = column.array.rows_as(rows, column.dtype, column.strip, &limits)?;
                    Ok((column.array.name.clone(), tensor.into()))
                };
                columns.iter_mut().map(one).collect()
            }
            Source::Sets { folders, inputs } => match folders.get(range.start) {
                Some(folder) => read_test_data(folder, "input", inputs),
                None => Ok(Feed::new()),
            },
            Source::Generated { inputs, plans, seed } => {
                // Every plan gets its turn early, so that few samples already cover all sizes.
                let plan = &plans[range.start % plans.len()];
                Ok(generate(inputs, plan, *seed, range.start / plans.len()))
            }
        }
    }

    /// All samples, `wanted` a run where the model leaves that open. Where going through generated ones takes long, it ends
    /// when each kind was there in all sizes.
    pub fn batches(&mut self, wanted: usize) -> impl Iterator<Item = Result<Batch, SamplesError>> + '_ {
        let size = self.batch_size(wanted);
        let end = self.count - self.left_over();
        let least = match &self.source {
            Source::Generated { plans, .. } => LEAST * plans.len(),
            _ => end,
        };
        let began = Instant::now();
        let starts = (0..end).step_by(size).take_while(move |&i| i < least || began.elapsed() < PATIENCE);
        starts.map(move |start| {
            let samples = start..(start + size).min(end);
            let labels = self.labels.as_ref().map(|labels| labels[samples.clone()].to_vec());
            Ok(Batch { feed: self.batch(samples.clone())?, samples, labels })
        })
    }
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|extension| extension.to_str())
}

/// A feed in one line, for messages.
pub fn summary(feed: &Feed) -> String {
    let one = |(name, value): &(String, crate::Value)| format!("{name}: {}", describe(value));
    feed.iter().map(one).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::{array::write_npz, npy::tests::npy, *};
    use crate::{PortDim, Value};
    use pare_graph::{DataType, text::parse_graph};
    use zip::CompressionMethod::Deflated;

    fn port(dtype: DataType, dims: &[PortDim]) -> Port {
        Port::tensor("x", dtype, dims)
    }

    fn file(folder: &tempfile::TempDir, arrays: &[(&str, Vec<u8>)]) -> PathBuf {
        let path = folder.path().join("data.npz");
        write_npz(&path, arrays, Deflated);
        path
    }

    fn x() -> Vec<u8> {
        npy("|u1", false, "(5, 2)", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    }

    fn shapes(samples: &mut Samples, wanted: usize) -> Vec<Vec<usize>> {
        let batches = samples.batches(wanted).map(Result::unwrap);
        batches.map(|batch| batch.feed[0].1.as_tensor().unwrap().shape().to_vec()).collect()
    }

    #[test]
    fn what_runs_cost_at_the_sizes_of_samples_decides_how_many_there_are() {
        let count = |text: &str| Samples::for_model(&Model::of(parse_graph(text, 17).unwrap()), 0).len();
        assert_eq!(count("g (float[N] x) => (float[N] y) { y = Relu(x) }"), 3 * MOST);
        let products = |channels: usize| {
            count(&format!(
                "g (float[N,{channels},H,W] x) => (float y) {{
                    t = Transpose<perm = [0,1,3,2]>(x) p = MatMul(x, t) y = ReduceMax<keepdims = 0>(p) }}"
            ))
        };
        // 64³ multiply-accumulates for each channel of an image of 64 by 64.
        assert_eq!((products(64), products(128), products(1024)), (3 * 59, 3 * 29, 3 * LEAST));
    }

    #[test]
    fn the_batch_axis_follows_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, &[("x", x()), ("labels", npy("|i1", false, "(5,)", &[4, 3, 2, 1, 0]))]);
        let (two, any) = (PortDim::Fixed(2), PortDim::Symbol("n".into()));
        let open = |dims: &[PortDim]| {
            Samples::open(&path, &[port(DataType::Uint8, dims)], Limits::default()).unwrap()
        };
        let mut symbolic = open(&[any, two.clone()]);
        assert_eq!(shapes(&mut symbolic, 2), [[2, 2], [2, 2], [1, 2]]);
        assert_eq!((symbolic.len(), symbolic.left_over()), (5, 0));
        let last = symbolic.batches(2).last().unwrap().unwrap();
        assert_eq!((last.samples, last.labels), (4..5, Some(vec![0])));
        assert_eq!(shapes(&mut open(&[PortDim::Fixed(1), two.clone()]), 3), [[1, 2]; 5]);
        let mut pairs = open(&[two.clone(), two.clone()]);
        assert_eq!((shapes(&mut pairs, 3), pairs.left_over()), (vec![vec![2, 2]; 2], 1));
        // Without an axis for samples, a run takes one of them.
        let mut single = open(&[two]);
        assert_eq!(shapes(&mut single, 3), [[2]; 5]);
        assert_eq!(single.batch(3..4).unwrap()[0].1.as_tensor().unwrap().to_i64().unwrap(), [6, 7]);
        single.truncate(2);
        assert_eq!((single.len(), single.labels().unwrap().len()), (2, 2));
    }

    #[test]
    fn what_does_not_fit_is_told_in_one_sentence() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, &[("x", x())]);
        let open = |ports: &[Port]| Samples::open(&path, ports, Limits::default()).err().unwrap();
        let (one, three) = (PortDim::Fixed(1), PortDim::Fixed(3));
        let error = open(&[port(DataType::Uint8, &[one.clone(), three])]);
        assert_eq!(error.to_string(), "input `x` takes uint8[1, 3], not rows of uint8[5, 2]");
        let error = open(&[port(DataType::Float, &[one.clone(), PortDim::Unknown])]);
        assert_eq!(error.to_string(), "input `x` takes float[1, ?], not rows of uint8[5, 2]");
        let other = Port { name: "y".into(), ..port(DataType::Uint8, &[one]) };
        let error = open(std::slice::from_ref(&other));
        let text = format!("`{}` has no array for input `y`; it holds `x`", path.display());
        assert_eq!(error.to_string(), text);
        assert!(error.hint().unwrap().contains("savez"));
        let path = file(&folder, &[("x", x()), ("y", npy("|u1", false, "(2, 1)", &[0; 2]))]);
        let ports = [port(DataType::Uint8, &[PortDim::Unknown, PortDim::Unknown]), other];
        let error = Samples::open(&path, &ports[..1], Limits::default()).err().unwrap();
        assert!(error.to_string().ends_with("holds an array `y`; the inputs are `x`"), "{error}");
        let error = Samples::open(&path, &ports, Limits::default()).err().unwrap();
        assert!(error.to_string().contains("holds 2 samples, where the first array holds 5"), "{error}");
    }

    #[test]
    fn an_npy_file_needs_no_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anything.npy");
        std::fs::write(&path, x()).unwrap();
        let ports = [port(DataType::Uint8, &[PortDim::Unknown, PortDim::Fixed(2)])];
        let mut samples = Samples::open(&path, &ports, Limits::default()).unwrap();
        let feed = samples.batch(0..9).unwrap();
        assert_eq!(summary(&feed), "x: uint8[5, 2]");
        assert!(matches!(&feed[0].1, Value::Tensor(_)));
        let error = Samples::open(folder.path(), &ports, Limits::default()).err().unwrap();
        assert!(matches!(error, SamplesError::EmptyFolder(_)));
    }
}
