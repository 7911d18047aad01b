//! Statistics in files: shards of samples are run anywhere, and their sums added up.
//!
//! A file is in the safetensors format. For each linear operator, named after the value it makes, with `G` groups and
//! rows of `D` numbers (see `analysis::linear`):
//!
//! | tensor | shape | holds |
//! |---|---|---|
//! | `NAME/count` | `[1]`, u64 | rows seen |
//! | `NAME/mean` | `[G, D]`, f64 | their means |
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

/// Sums over what linear operators read, by the names of the values they make.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Statistics {
    of: BTreeMap<String, Vec<Sums>>,
}

/// Why statistics cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StatisticsError {
    /// A file cannot be read or written.
    #[error("`{}`: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The same operator has other inputs in another file.
    #[error("the statistics are of different models: `{0}` reads other rows")]
    Differs(String),
}

/// What marks a file as ours.
const FORMAT: (&str, &str) = ("format", "pare statistics 1");

impl FromIterator<(String, Vec<Sums>)> for Statistics {
    fn from_iter<I: IntoIterator<Item = (String, Vec<Sums>)>>(sums: I) -> Self {
        Self { of: sums.into_iter().collect() }
    }
}

impl Statistics {
    /// How many operators there are statistics of.
    pub fn len(&self) -> usize {
        self.of.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.of.is_empty()
    }

    /// The rows seen of the operator of which most were seen.
    pub fn rows(&self) -> u64 {
        self.of.values().flatten().map(|s| s.count).max().unwrap_or(0)
    }

    /// The sums over the inputs of the operator that produces `output`, one per group, if there are `groups` of them
    /// over rows of `width` numbers.
    pub fn find(&self, output: &str, groups: usize, width: usize) -> Option<&[Sums]> {
        let sums = self.of.get(output)?;
        let fits = sums.len() == groups && sums.iter().all(|s| s.x_mean.len() == width);
        fits.then_some(sums)
    }

    /// Add what was seen of other samples.
    pub fn merge(&mut self, other: Self) -> Result<(), StatisticsError> {
        for (name, theirs) in other.of {
            let Some(ours) = self.of.get_mut(&name) else {
                self.of.insert(name, theirs);
                continue;
            };
            let added = ours.len() == theirs.len() && ours.iter_mut().zip(&theirs).all(|(a, b)| a.merge(b));
            if !added {
                return Err(StatisticsError::Differs(name));
            }
        }
        Ok(())
    }

    /// Write a file, beside its place first.
    pub fn write(&self, path: &Path) -> Result<u64, StatisticsError> {
        let failed = |reason: String| StatisticsError::File { path: path.into(), reason };
        let mut tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)> = vec![];
        for (name, groups) in &self.of {
            let width = groups.first().map_or(0, |s| s.x_mean.len());
            let count = groups.first().map_or(0, |s| s.count);
            let means = groups.iter().flat_map(|s| &s.x_mean).flat_map(|v| v.to_le_bytes()).collect();
            let lower =
                |s: &Sums| (0..width).flat_map(|i| (0..=i).map(move |j| (i, j))).map(|at| s.xx[at]).collect();
            let scatter =
                groups.iter().flat_map(|s| -> Vec<f64> { lower(s) }).flat_map(f64::to_le_bytes).collect();
            tensors.push((format!("{name}/count"), Dtype::U64, vec![1], count.to_le_bytes().into()));
            tensors.push((format!("{name}/mean"), Dtype::F64, vec![groups.len(), width], means));
            let packed = width * (width + 1) / 2;
            tensors.push((format!("{name}/scatter"), Dtype::F64, vec![groups.len(), packed], scatter));
        }
        let mut views = vec![];
        for (name, dtype, shape, bytes) in &tensors {
            let view = TensorView::new(*dtype, shape.clone(), bytes).map_err(|e| failed(e.to_string()))?;
            views.push((name, view));
        }
        let about = HashMap::from([(FORMAT.0.to_owned(), FORMAT.1.to_owned())]);
        let bytes = safetensors::serialize(views, Some(about)).map_err(|e| failed(e.to_string()))?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".part");
        let written = fs::File::create(&beside).and_then(|mut file| {
            file.write_all(&bytes)?;
            fs::rename(&beside, path)
        });
        written.map_err(|e| {
            let _ = fs::remove_file(&beside);
            failed(e.to_string())
        })?;
        Ok(bytes.len() as u64)
    }

    /// Read a file.
    pub fn read(path: &Path) -> Result<Self, StatisticsError> {
        let failed = |reason: String| StatisticsError::File { path: path.into(), reason };
        let bytes = fs::read(path).map_err(|e| failed(e.to_string()))?;
        let odd = |_| failed("it is no file of statistics".into());
        let (_, about) = SafeTensors::read_metadata(&bytes).map_err(odd)?;
        let ours = about.metadata().as_ref().and_then(|m| m.get(FORMAT.0)).is_some_and(|f| f == FORMAT.1);
        if !ours {
            return Err(failed("it is no file of statistics".into()));
        }
        let file = SafeTensors::deserialize(&bytes).map_err(odd)?;
        let mut of = BTreeMap::new();
        for name in file.names().into_iter().filter_map(|n| n.strip_suffix("/count")) {
            let sums =
                sums(&file, name).ok_or_else(|| failed(format!("the statistics of `{name}` are damaged")))?;
            of.insert(name.to_owned(), sums);
        }
        Ok(Self { of })
    }
}

/// The sums of an operator.
fn sums(file: &SafeTensors<'_>, name: &str) -> Option<Vec<Sums>> {
    let floats = |part: &str| {
        let tensor = file.tensor(&format!("{name}/{part}")).ok()?;
        let values = tensor.data().chunks_exact(8).map(|b| Some(f64::from_le_bytes(b.try_into().ok()?)));
        let (dtype, shape) = (tensor.dtype(), tensor.shape().to_vec());
        Some((shape, values.collect::<Option<Vec<_>>>()?)).filter(|_| dtype == Dtype::F64)
    };
    let count = u64::from_le_bytes(file.tensor(&format!("{name}/count")).ok()?.data().try_into().ok()?);
    let ((shape, means), (packed, scatter)) = (floats("mean")?, floats("scatter")?);
    let (&[groups, width], &[also, size]) = (&shape[..], &packed[..]) else { return None };
    if groups != also || width.checked_add(1)?.checked_mul(width)? / 2 != size || groups == 0 {
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

    fn of(rows: Range<usize>) -> Statistics {
        Statistics { of: [("conv".to_owned(), vec![sums(rows.clone()), sums(rows)])].into() }
    }

    #[test]
    fn files_of_shards_add_up_to_the_whole() {
        let folder = std::env::temp_dir().join(format!("pare-statistics-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (a, b) = (folder.join("a.safetensors"), folder.join("b.safetensors"));
        of(0..300).write(&a).unwrap();
        of(300..1000).write(&b).unwrap();
        let mut both = Statistics::read(&a).unwrap();
        assert_eq!(both, of(0..300), "what is read is what was written, to the bit");
        both.merge(Statistics::read(&b).unwrap()).unwrap();
        let whole = of(0..1000);
        for (got, wanted) in both.of["conv"].iter().zip(&whole.of["conv"]) {
            assert_eq!(got.count, wanted.count);
            // Products are added up in f32 within each lot of rows: `√2048 · 2⁻²⁴` of the standard deviations each time.
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
        let other = Statistics { of: [("conv".to_owned(), vec![Sums::new(4, 0); 2])].into() };
        assert!(matches!(both.merge(other), Err(StatisticsError::Differs(name)) if name == "conv"));
        fs::write(&a, b"garbage").unwrap();
        let why = Statistics::read(&a).unwrap_err().to_string();
        assert!(why.ends_with("it is no file of statistics"), "{why}");
        fs::remove_dir_all(folder).unwrap();
    }
}
