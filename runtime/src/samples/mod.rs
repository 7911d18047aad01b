//! Samples: the inputs that models run on, read from files or generated.
//!
//! * An `.npz` file contains one array per input, with the input's name, and optionally `labels`; an `.npy`
//!   file is the array of a model's only input. Samples run along the first axis.
//! * A folder contains ONNX test data, `test_data_set_*/input_*.pb`; each set is one sample.
//! * [`SampleSet::generated`] generates samples from the types of the inputs.
//!
//! Files are not trusted: sizes are checked before memory is allocated.

mod adapt;
mod array;
mod error;
mod fit;
mod folder;
mod generate;
mod npy;
mod plan;
mod specs;

pub use array::SampleLimits;
pub use error::SamplesError;
pub use folder::read_test_data;
pub use generate::{beyond_generation, generate};
pub use plan::symbol_plans;
pub(crate) use specs::declared_kind;
pub use specs::{InputSpec, input_specs};

use crate::{Feed, Port};
use array::Array;
use fit::{Column, PerRun, check_names, column, read_labels};
use generate::DISTRIBUTIONS;
use pare_graph::{
    Model,
    ops::{Bindings, Cost},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Fewest samples generated per plan of symbolic sizes: one of each distribution.
const MIN_PER_PLAN: usize = DISTRIBUTIONS;
/// Most samples generated per plan: errors that few values show need many.
const MAX_PER_PLAN: usize = 20 * DISTRIBUTIONS;
/// Budget of multiply-accumulates for more than the fewest samples; well under a second.
const MAC_BUDGET: u64 = 1_000_000_000;
/// Time after which the fewest samples suffice: the cost of loops and transforms is not known in advance.
const TIME_BUDGET: Duration = Duration::from_secs(10);

/// Bytes of activations of generated samples: several sessions hold them at once. Attention over the positions of
/// an image grows with the fourth power of its side.
const MAX_ACTIVATIONS: u64 = 512 << 20;

/// Samples for one model.
pub struct SampleSet {
    source: Source,
    /// Samples of the source that are left out at its beginning.
    skipped: usize,
    count: usize,
    labels: Option<Vec<i64>>,
    /// Samples per run.
    per_run: PerRun,
    /// Most samples per run, where the model leaves it open.
    most_per_run: usize,
    limits: SampleLimits,
}

enum Source {
    Arrays(Vec<Column>),
    Sets { folders: Vec<PathBuf>, inputs: Vec<Port> },
    Generated(Generated),
}

struct Generated {
    inputs: Vec<InputSpec>,
    plans: Vec<BTreeMap<String, usize>>,
    seed: u64,
    /// Sizes of the model's weights, which its inputs may have to match.
    weight_sizes: Vec<usize>,
}

/// Inputs for one run of a model.
#[derive(Clone, Debug)]
pub struct Batch {
    /// The inputs.
    pub feed: Feed,
    /// Their indices.
    pub samples: Range<usize>,
    /// Their classes, if the samples have labels.
    pub labels: Option<Vec<i64>>,
}

impl SampleSet {
    /// Opens the samples in `path` for a model with these `inputs`.
    ///
    /// # Errors
    /// A file that cannot be read, or arrays that do not fit the inputs.
    pub fn open(path: &Path, inputs: &[Port], limits: SampleLimits) -> Result<Self, SamplesError> {
        if path.is_dir() {
            let folders = folder::data_sets(path)?;
            let count = folders.len();
            let source = Source::Sets { folders, inputs: inputs.to_vec() };
            return Ok(Self {
                source,
                skipped: 0,
                count,
                labels: None,
                per_run: PerRun::Exactly(1),
                most_per_run: 1,
                limits,
            });
        }
        let mut arrays = Array::open_all(path, &limits)?;
        if let ([array], [input], Some("npy")) = (&mut arrays[..], inputs, extension(path)) {
            array.name.clone_from(&input.name);
        }
        Self::from_arrays(path, arrays, inputs, limits)
    }

    /// Generated samples: `per_plan` for each plan of symbolic sizes ([`symbol_plans`]), determined by the
    /// seed.
    pub fn generated(inputs: Vec<InputSpec>, seed: u64, per_plan: usize) -> Self {
        let plans = symbol_plans(&inputs);
        Self::planned(Generated { inputs, plans, seed, weight_sizes: vec![] }, per_plan)
    }

    fn planned(generated: Generated, per_plan: usize) -> Self {
        let count = generated.plans.len() * per_plan;
        let source = Source::Generated(generated);
        let limits = SampleLimits::default();
        Self { source, skipped: 0, count, labels: None, per_run: PerRun::Exactly(1), most_per_run: 1, limits }
    }

    /// Generated samples to compare `model` with others: as many as its multiply-accumulates allow, and of sizes
    /// whose activations fit into memory.
    pub fn for_model(model: &Model, seed: u64) -> Self {
        let specs = input_specs(model);
        // Without inference few sizes are known; if it fails, the cost of those has to do.
        let mut sized = model.clone();
        let _ = sized.infer();
        let plans: Vec<_> = symbol_plans(&specs).into_iter().map(|plan| fit_memory(&sized, plan)).collect();
        let macs = plans.first().map_or(1, |plan| cost(&sized, plan).macs);
        let each = (MAC_BUDGET / macs.max(1)).clamp(MIN_PER_PLAN as u64, MAX_PER_PLAN as u64) as usize;
        let weight_sizes = weight_sizes(model);
        Self::planned(Generated { inputs: specs, plans, seed, weight_sizes }, each)
    }

    /// With further generated samples of this size of a symbol.
    #[must_use]
    pub fn with_size(mut self, symbol: &str, size: usize) -> Self {
        if let Source::Generated(Generated { plans, .. }) = &mut self.source
            && plans.iter().all(|plan| plan.get(symbol).is_some_and(|&n| n != size))
        {
            let per_plan = self.count / plans.len();
            let mut plan = plans[0].clone();
            plan.insert(symbol.to_owned(), size);
            plans.push(plan);
            self.count = per_plan * plans.len();
        }
        self
    }

    fn from_arrays(
        path: &Path,
        arrays: Vec<Array>,
        inputs: &[Port],
        limits: SampleLimits,
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
            let (column, column_per_run) = column(array, port)?;
            per_run = per_run.and(column_per_run, &port.name)?;
            columns.push(column);
        }
        if count == 0 {
            return Err(SamplesError::Empty(path.to_owned()));
        }
        let source = Source::Arrays(columns);
        Ok(Self { source, skipped: 0, count, labels, per_run, most_per_run: usize::MAX, limits })
    }

    /// Returns true if they are generated: then a share of them does not estimate a share of real inputs.
    pub fn is_generated(&self) -> bool {
        matches!(self.source, Source::Generated(_))
    }

    /// The number of samples.
    pub fn len(&self) -> usize {
        self.count
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The class of each sample, if the file contains `labels`.
    pub fn labels(&self) -> Option<&[i64]> {
        self.labels.as_deref().map(|labels| &labels[self.skipped..self.skipped + self.count])
    }

    /// Keeps only the first `count` samples.
    pub fn truncate(&mut self, count: usize) {
        self.count = self.count.min(count);
    }

    /// Removes the first `count` samples.
    pub fn skip(&mut self, count: usize) {
        let count = count.min(self.count);
        self.skipped += count;
        self.count -= count;
    }

    /// Returns true if the model leaves the number of samples per run open. That of generated samples is 1.
    pub fn has_open_batches(&self) -> bool {
        matches!(self.per_run, PerRun::Any)
    }

    /// Keeps runs to `most` samples, where the model leaves it open.
    pub fn limit_batches(&mut self, most: usize) {
        self.most_per_run = most;
    }

    /// Samples per run: the model's fixed batch size, or else `requested`, clipped to the limit and to the number of
    /// samples.
    pub fn batch_size(&self, requested: usize) -> usize {
        match self.per_run {
            PerRun::Any => requested.min(self.most_per_run).clamp(1, self.count.max(1)),
            PerRun::Exactly(count) => count,
        }
    }

    /// Samples at the end that fill no batch: a model with a fixed batch size only runs full batches.
    pub fn left_over(&self) -> usize {
        match self.per_run {
            PerRun::Any => 0,
            PerRun::Exactly(count) => self.count % count,
        }
    }

    /// Returns the inputs for the samples in `range`, clipped to the existing ones. Generated samples and test
    /// data sets are returned one at a time: the first of the range.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn batch(&mut self, range: Range<usize>) -> Result<Feed, SamplesError> {
        let from = |index: usize| self.skipped + index.min(self.count);
        let range = from(range.start)..from(range.end);
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
            Source::Generated(Generated { inputs, plans, seed, .. }) => {
                // Plans alternate: the first few samples cover all sizes.
                let plan = &plans[range.start % plans.len()];
                Ok(generate(inputs, plan, *seed, range.start / plans.len()))
            }
        }
    }

    /// Iterates over all samples, in batches of [`Self::batch_size`]. Generated samples end early when they take long,
    /// after each distribution in all sizes.
    pub fn batches(&mut self, requested: usize) -> impl Iterator<Item = Result<Batch, SamplesError>> + '_ {
        let size = self.batch_size(requested);
        let end = self.count - self.left_over();
        let least = match &self.source {
            Source::Generated(Generated { plans, .. }) => MIN_PER_PLAN * plans.len(),
            _ => end,
        };
        let start_time = Instant::now();
        let starts =
            (0..end).step_by(size).take_while(move |&i| i < least || start_time.elapsed() < TIME_BUDGET);
        starts.map(move |start| {
            let samples = start..(start + size).min(end);
            let labels = self.labels().map(|labels| labels[samples.clone()].to_vec());
            Ok(Batch { feed: self.batch(samples.clone())?, samples, labels })
        })
    }
}

/// The sizes of the weights' dimensions, without repetition.
fn weight_sizes(model: &Model) -> Vec<usize> {
    let graph = &model.graph;
    let shapes = graph.initializers().into_iter().filter_map(|id| Some(graph.value(id).tensor()?.shape()));
    shapes.flatten().copied().filter(|&size| size > 1).collect::<BTreeSet<_>>().into_iter().collect()
}

fn cost(model: &Model, plan: &BTreeMap<String, usize>) -> Cost {
    let sizes = plan.iter().map(|(name, &size)| (name.clone(), size as i64)).collect();
    model.cost(&Bindings { sizes, ..Bindings::default() })
}

/// The plan with its largest sizes halved until activations fit into [`MAX_ACTIVATIONS`].
fn fit_memory(model: &Model, mut plan: BTreeMap<String, usize>) -> BTreeMap<String, usize> {
    while cost(model, &plan).activation_peak > MAX_ACTIVATIONS
        && let Some(largest) = plan.values_mut().max().filter(|size| **size > 1)
    {
        *largest /= 2;
    }
    plan
}

fn extension(path: &Path) -> Option<&str> {
    path.extension().and_then(|extension| extension.to_str())
}

#[cfg(test)]
mod tests {
    use super::{array::write_npz, npy::tests::npy, *};
    use crate::{PortDim, Value};
    use pare_graph::{DataType, Tensor, text::parse_graph};
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

    fn shapes(samples: &mut SampleSet, requested: usize) -> Vec<Vec<usize>> {
        let batches = samples.batches(requested).map(Result::unwrap);
        batches.map(|batch| batch.feed[0].1.as_tensor().unwrap().shape().to_vec()).collect()
    }

    #[test]
    fn generates_as_many_samples_as_the_cost_allows() {
        let count = |text: &str| SampleSet::for_model(&Model::of(parse_graph(text, 17).unwrap()), 0).len();
        assert_eq!(count("g (float[N] x) => (float[N] y) { y = Relu(x) }"), 3 * MAX_PER_PLAN);
        let products = |channels: usize| {
            count(&format!(
                "g (float[N,{channels},H,W] x) => (float y) {{
                    t = Transpose<perm = [0,1,3,2]>(x) p = MatMul(x, t) y = ReduceMax<keepdims = 0>(p) }}"
            ))
        };
        // 64³ multiply-accumulates for each channel of an image of 64 by 64.
        assert_eq!((products(64), products(128), products(1024)), (3 * 59, 3 * 29, 3 * MIN_PER_PLAN));
    }

    #[test]
    fn batches_follow_the_batch_size_of_the_model() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, &[("x", x()), ("labels", npy("|i1", false, "(5,)", &[4, 3, 2, 1, 0]))]);
        let (two, any) = (PortDim::Fixed(2), PortDim::Symbol("n".into()));
        let open = |dims: &[PortDim]| {
            SampleSet::open(&path, &[port(DataType::Uint8, dims)], SampleLimits::default()).unwrap()
        };
        let mut symbolic = open(&[any, two.clone()]);
        assert_eq!(shapes(&mut symbolic, 2), [[2, 2], [2, 2], [1, 2]]);
        assert_eq!((symbolic.len(), symbolic.left_over()), (5, 0));
        symbolic.limit_batches(1);
        assert_eq!(shapes(&mut symbolic, 2), [[1, 2]; 5]);
        symbolic.limit_batches(2);
        assert_eq!(shapes(&mut symbolic, 9), [[2, 2], [2, 2], [1, 2]]);
        let last = symbolic.batches(2).last().unwrap().unwrap();
        assert_eq!((last.samples, last.labels), (4..5, Some(vec![0])));
        assert_eq!(shapes(&mut open(&[PortDim::Fixed(1), two.clone()]), 3), [[1, 2]; 5]);
        let mut pairs = open(&[two.clone(), two.clone()]);
        assert_eq!((shapes(&mut pairs, 3), pairs.left_over()), (vec![vec![2, 2]; 2], 1));
        // Without a batch axis, a run takes one sample.
        let mut single = open(&[two]);
        assert_eq!(shapes(&mut single, 3), [[2]; 5]);
        assert_eq!(single.batch(3..4).unwrap()[0].1.as_tensor().unwrap().to_i64().unwrap(), [6, 7]);
        single.truncate(2);
        assert_eq!((single.len(), single.labels().unwrap().len()), (2, 2));
    }

    #[test]
    fn reports_arrays_that_do_not_fit() {
        let folder = tempfile::tempdir().unwrap();
        let path = file(&folder, &[("x", x())]);
        let open = |ports: &[Port]| SampleSet::open(&path, ports, SampleLimits::default()).err().unwrap();
        let (one, three) = (PortDim::Fixed(1), PortDim::Fixed(3));
        let error = open(&[port(DataType::Uint8, &[one.clone(), three])]);
        assert_eq!(error.to_string(), "input `x` takes uint8[1, 3], not rows of uint8[5, 2]");
        let error = open(&[port(DataType::Float, &[one.clone(), PortDim::Unknown])]);
        assert_eq!(error.to_string(), "input `x` takes float[1, ?], not rows of uint8[5, 2]");
        let other = Port { name: "y".into(), ..port(DataType::Uint8, &[one]) };
        let error = open(std::slice::from_ref(&other));
        let text = format!("`{}` has no array for input `y`; it holds `x`", path.display());
        assert_eq!(error.to_string(), text);
        assert_eq!(error.hint(), Some(crate::Hint::NameArrays { input: "y".into() }));
        let path = file(&folder, &[("x", x()), ("y", npy("|u1", false, "(2, 1)", &[0; 2]))]);
        let ports = [port(DataType::Uint8, &[PortDim::Unknown, PortDim::Unknown]), other];
        let error = SampleSet::open(&path, &ports[..1], SampleLimits::default()).err().unwrap();
        assert!(error.to_string().ends_with("holds an array `y`; the inputs are `x`"), "{error}");
        let error = SampleSet::open(&path, &ports, SampleLimits::default()).err().unwrap();
        assert!(error.to_string().contains("holds 2 samples, where the first array holds 5"), "{error}");
    }

    #[test]
    fn reads_npy_files_of_any_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("anything.npy");
        std::fs::write(&path, x()).unwrap();
        let ports = [port(DataType::Uint8, &[PortDim::Unknown, PortDim::Fixed(2)])];
        let mut samples = SampleSet::open(&path, &ports, SampleLimits::default()).unwrap();
        let feed = samples.batch(0..9).unwrap();
        assert_eq!((feed.len(), feed[0].0.as_str()), (1, "x"));
        let expected = Tensor::from_slice(&[5, 2], &[0_u8, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
        assert_eq!(feed[0].1, Value::Tensor(expected));
        let error = SampleSet::open(folder.path(), &ports, SampleLimits::default()).err().unwrap();
        assert!(matches!(error, SamplesError::EmptyFolder(_)));
    }
}
