//! Files of statistics. Shards of samples can be run separately and their sums merged.
//!
//! A file is in the safetensors format. For each linear operator, named after its output, with `G` groups and
//! rows of `D` numbers (see `analysis::linear`):
//!
//! | tensor | shape | content |
//! |---|---|---|
//! | `NAME/count` | `[1]`, u64 | number of rows |
//! | `NAME/mean` | `[G, D]`, f64 | means |
//! | `NAME/scatter` | `[G, D(D+1)/2]`, f64 | `Σ (x-μ)(x-μ)ᵀ`, the lower triangle row by row |

use super::Sums;
use faer::Mat;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
    io::Write as _,
    path::{Path, PathBuf},
};

/// Sums over the inputs of linear operators, by the names of their outputs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    by_output: BTreeMap<String, Vec<Sums>>,
}

/// An error in reading, writing or merging statistics.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatisticsError {
    /// A file cannot be read or written.
    #[error("`{}`: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// An operator has inputs of another width or another number of groups in another file.
    #[error("the statistics are of different models: the inputs of `{0}` differ")]
    Differs(String),
}

/// The metadata entry that identifies a file of statistics.
const FORMAT: (&str, &str) = ("format", "pare statistics 1");

impl FromIterator<(String, Vec<Sums>)> for Statistics {
    fn from_iter<I: IntoIterator<Item = (String, Vec<Sums>)>>(sums: I) -> Self {
        Self { by_output: sums.into_iter().collect() }
    }
}

impl Statistics {
    /// The number of operators.
    pub fn len(&self) -> usize {
        self.by_output.len()
    }

    /// Returns true if there are no operators.
    pub fn is_empty(&self) -> bool {
        self.by_output.is_empty()
    }

    /// The largest number of rows of an operator.
    pub fn rows(&self) -> u64 {
        self.by_output.values().flatten().map(|s| s.count).max().unwrap_or(0)
    }

    /// The sums over the inputs of the operator that produces `output`, one per group, if their number is
    /// `groups` and their width is `width`.
    pub fn find(&self, output: &str, groups: usize, width: usize) -> Option<&[Sums]> {
        let sums = self.by_output.get(output)?;
        let fits = sums.len() == groups && sums.iter().all(|s| s.x_mean.len() == width);
        fits.then_some(sums)
    }

    /// Adds the statistics of other samples of the same model.
    ///
    /// # Errors
    ///
    /// [`StatisticsError::Differs`].
    pub fn merge(&mut self, other: Self) -> Result<(), StatisticsError> {
        for (name, theirs) in other.by_output {
            let Some(ours) = self.by_output.get_mut(&name) else {
                self.by_output.insert(name, theirs);
                continue;
            };
            let merged = ours.len() == theirs.len() && ours.iter_mut().zip(&theirs).all(|(a, b)| a.merge(b));
            if !merged {
                return Err(StatisticsError::Differs(name));
            }
        }
        Ok(())
    }

    /// Writes a file atomically. Returns its size in bytes.
    ///
    /// # Errors
    ///
    /// [`StatisticsError::File`].
    pub fn write(&self, path: &Path) -> Result<u64, StatisticsError> {
        let failed = |reason: String| StatisticsError::File { path: path.into(), reason };
        let mut tensors: Vec<NamedTensor> = vec![];
        for (name, groups) in &self.by_output {
            let width = groups.first().map_or(0, |s| s.x_mean.len());
            let count = groups.first().map_or(0, |s| s.count);
            let means = groups.iter().flat_map(|s| &s.x_mean).flat_map(|v| v.to_le_bytes()).collect();
            let lower = || (0..width).flat_map(|i| (0..=i).map(move |j| (i, j)));
            let scatter = groups
                .iter()
                .flat_map(|s| lower().map(move |at| s.xx[at]))
                .flat_map(f64::to_le_bytes)
                .collect();
            tensors.push((format!("{name}/count"), Dtype::U64, vec![1], count.to_le_bytes().into()));
            tensors.push((format!("{name}/mean"), Dtype::F64, vec![groups.len(), width], means));
            let packed = width * (width + 1) / 2;
            tensors.push((format!("{name}/scatter"), Dtype::F64, vec![groups.len(), packed], scatter));
        }
        write_tensors(path, &tensors, (FORMAT.0, FORMAT.1.to_owned())).map_err(failed)
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// [`StatisticsError::File`].
    pub fn read(path: &Path) -> Result<Self, StatisticsError> {
        let failed = |reason: String| StatisticsError::File { path: path.into(), reason };
        let bytes = fs::read(path).map_err(|e| failed(e.to_string()))?;
        let not_statistics = || failed("it is not a file of statistics".into());
        let (_, about) = SafeTensors::read_metadata(&bytes).map_err(|_| not_statistics())?;
        let valid = about.metadata().as_ref().and_then(|m| m.get(FORMAT.0)).is_some_and(|f| f == FORMAT.1);
        if !valid {
            return Err(not_statistics());
        }
        let file = SafeTensors::deserialize(&bytes).map_err(|_| not_statistics())?;
        let mut by_output = BTreeMap::new();
        for name in file.names().into_iter().filter_map(|n| n.strip_suffix("/count")) {
            let sums =
                sums(&file, name).ok_or_else(|| failed(format!("the statistics of `{name}` are damaged")))?;
            by_output.insert(name.to_owned(), sums);
        }
        Ok(Self { by_output })
    }
}

/// A tensor in a file: its name, type, shape and little-endian bytes.
pub(crate) type NamedTensor = (String, Dtype, Vec<usize>, Vec<u8>);

/// Writes tensors with an entry of metadata atomically. Returns the size of the file, or a reason.
pub(crate) fn write_tensors(
    path: &Path,
    tensors: &[NamedTensor],
    (key, value): (&str, String),
) -> Result<u64, String> {
    let mut views = vec![];
    for (name, dtype, shape, bytes) in tensors {
        let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| e.to_string())?;
        views.push((name, view));
    }
    let about = HashMap::from([(key.to_owned(), value)]);
    let bytes = safetensors::serialize(views, Some(about)).map_err(|e| e.to_string())?;
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let written = fs::File::create(&part).and_then(|mut file| {
        file.write_all(&bytes)?;
        fs::rename(&part, path)
    });
    written.map_err(|e| {
        let _ = fs::remove_file(&part);
        e.to_string()
    })?;
    Ok(bytes.len() as u64)
}

/// Reads the sums of an operator; `None` if they are missing or inconsistent.
fn sums(file: &SafeTensors<'_>, name: &str) -> Option<Vec<Sums>> {
    let floats = |part: &str| {
        let tensor = file.tensor(&format!("{name}/{part}")).ok()?;
        let values = tensor.data().chunks_exact(8).map(|b| Some(f64::from_le_bytes(b.try_into().ok()?)));
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        Some((shape, values.collect::<Option<Vec<_>>>()?)).filter(|_| dtype == Dtype::F64)
    };
    let count = u64::from_le_bytes(file.tensor(&format!("{name}/count")).ok()?.data().try_into().ok()?);
    let ((shape, means), (packed, scatter)) = (floats("mean")?, floats("scatter")?);
    let (&[groups, width], &[scatters, size]) = (&shape[..], &packed[..]) else { return None };
    if groups != scatters || width.checked_add(1)?.checked_mul(width)? / 2 != size || groups == 0 {
        return None;
    }
    let group = |q: usize| {
        let (mean, lower) = (&means[q * width..][..width], &scatter[q * size..][..size]);
        let at = |i: usize, j: usize| lower[i.max(j) * (i.max(j) + 1) / 2 + i.min(j)];
        let sums =
            Sums { count, x_mean: mean.to_vec(), xx: Mat::from_fn(width, width, at), ..Sums::new(width, 0) };
        sums.is_finite().then_some(sums)
    };
    (0..groups).map(group).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::statistics::Rows;
    use std::ops::Range;

    fn sums(rows: Range<usize>) -> Sums {
        let value = |k: usize| ((k * 7919) % 101) as f32 / 50.0 + 3.0;
        let data = rows.clone().flat_map(|r| (0..5).map(move |j| value(r * 5 + j))).collect();
        let mut sums = Sums::new(5, 0);
        sums.add_inputs(Rows { width: 5, data }.all());
        sums
    }

    fn statistics(rows: Range<usize>) -> Statistics {
        Statistics { by_output: [("conv".to_owned(), vec![sums(rows.clone()), sums(rows)])].into() }
    }

    #[test]
    fn merges_files_of_shards() {
        let folder = std::env::temp_dir().join(format!("pare-statistics-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (a, b) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
        statistics(0..300).write(&a).unwrap();
        statistics(300..1000).write(&b).unwrap();
        let mut both = Statistics::read(&a).unwrap();
        assert_eq!(both, statistics(0..300), "reading returns what was written, bitwise");
        both.merge(Statistics::read(&b).unwrap()).unwrap();
        let all = statistics(0..1000);
        for (got, wanted) in both.by_output["conv"].iter().zip(&all.by_output["conv"]) {
            assert_eq!(got.count, wanted.count);
            // Products are summed in f32 within each chunk of rows: an error of `√2048 · 2⁻²⁴` of the
            // standard deviations.
            let close = |a: f64, b: f64, scale: f64| (a - b).abs() <= 1e-5 * scale;
            let deviation = |i: usize| wanted.xx[(i, i)].sqrt();
            for i in 0..5 {
                assert!(close(got.x_mean[i], wanted.x_mean[i], wanted.x_mean[i]));
                for j in 0..5 {
                    let scale = deviation(i) * deviation(j);
                    assert!(close(got.xx[(i, j)], wanted.xx[(i, j)], scale), "{got:?}");
                }
            }
        }
        let other = Statistics { by_output: [("conv".to_owned(), vec![Sums::new(4, 0); 2])].into() };
        assert!(matches!(both.merge(other), Err(StatisticsError::Differs(name)) if name == "conv"));
        fs::write(&a, b"garbage").unwrap();
        let why = Statistics::read(&a).unwrap_err().to_string();
        assert!(why.ends_with("it is not a file of statistics"), "{why}");
        fs::remove_dir_all(folder).unwrap();
    }
}
