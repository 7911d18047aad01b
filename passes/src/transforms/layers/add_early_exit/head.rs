//! The head of an exit: pooled features, a ridge regression to the logits, and the confidence threshold.

use crate::{
    analysis::{
        calibration::{NotFinite, floats},
        linear::AffineMap,
    },
    framework::PassError,
    statistics::{Rows, Sums, map_rows},
};
use faer::Mat;
use pare_graph::{EvaluateError, Tensor, evaluate::quality::top};
use std::ops::Range;

/// The number of folds of the cross-validation.
const FOLDS: usize = 4;
/// The ridge parameter of a head, as a share of the mean variance.
const LAMBDA: f64 = 1e-3;

/// The pooling of a tensor to one row of features per sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pool {
    /// `[N, C, ...]`: the mean over positions.
    Positions,
    /// `[N, T, C]`: the first token.
    FirstToken,
    /// `[N, T, C]`: the mean over tokens.
    Tokens,
    /// `[N, C]`: no pooling.
    None,
}

impl Pool {
    /// Appends the features of each sample to `rows`.
    pub fn append(self, tensor: &Tensor, rows: &mut Rows) -> Result<(), PassError> {
        let (shape, values) = (tensor.shape(), floats(tensor)?);
        let samples = shape.first().copied().unwrap_or(0);
        let size = values.len().checked_div(samples).unwrap_or(0);
        let unexpected = || EvaluateError::new("the shape of a tensor differs from the inferred one");
        let channels = match self {
            Self::Positions => shape.get(1),
            _ => shape.last(),
        };
        let channels = channels.copied().filter(|&c| c > 0).ok_or_else(unexpected)?;
        rows.width = channels;
        for sample in values.chunks_exact(size.max(1)) {
            let plane = size / channels;
            match self {
                Self::None | Self::FirstToken => rows.data.extend(&sample[..channels]),
                Self::Positions => {
                    let mean =
                        |c: &[f32]| (c.iter().map(|&v| f64::from(v)).sum::<f64>() / plane as f64) as f32;
                    rows.data.extend(sample.chunks_exact(plane.max(1)).map(mean));
                }
                Self::Tokens => {
                    let mean = |c: usize| {
                        let sum: f64 = (0..plane).map(|t| f64::from(sample[t * channels + c])).sum();
                        (sum / plane as f64) as f32
                    };
                    rows.data.extend((0..channels).map(mean));
                }
            }
        }
        Ok(())
    }
}

/// The decision rule of an exit, and its effect.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    /// Samples with a higher confidence exit.
    pub confidence: f32,
    /// The share of the samples that exit.
    pub exiting: f64,
    /// The share of the samples that keep their class.
    pub agreement: f64,
}

/// Fits a head to all samples. Its threshold is determined by cross-validation; `None` if no threshold
/// reaches `agreement`.
pub fn fit(x: &Rows, y: &Rows, agreement: f64) -> Result<(AffineMap, Option<Threshold>), NotFinite> {
    let n = x.count();
    let fold = |i: usize| -> Range<usize> { n * i / FOLDS..n * (i + 1) / FOLDS };
    let prior = Mat::zeros(y.width, x.width);
    let fit_without = |held_out: Option<usize>| {
        let mut sums = Sums::new(x.width, y.width);
        for i in (0..FOLDS).filter(|i| Some(*i) != held_out) {
            let r = fold(i);
            sums.add(x.all().some(r.start, r.len()), y.all().some(r.start, r.len()));
        }
        sums.ridge(prior.as_ref(), LAMBDA)
    };
    let mut predictions = vec![];
    for i in 0..FOLDS {
        let (r, head) = (fold(i), fit_without(Some(i))?);
        let scores = map_rows(x.all().some(r.start, r.len()), head.weight.as_ref(), &head.bias);
        for (k, scores) in scores.data.chunks_exact(y.width).enumerate() {
            let agrees = top(scores) == top(y.all().row(r.start + k));
            predictions.push(Prediction { confidence: confidence(scores), agrees });
        }
    }
    Ok((fit_without(None)?, threshold(predictions, agreement)))
}

/// The prediction of a head for one sample.
#[derive(Clone, Copy)]
pub struct Prediction {
    /// The highest probability.
    pub confidence: f32,
    /// True if the class is that of the model.
    pub agrees: bool,
}

/// The highest probability.
fn confidence(scores: &[f32]) -> f32 {
    let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    1.0 / scores.iter().map(|&s| (s - most).exp()).sum::<f32>()
}

/// The lowest threshold above which the number of wrong predictions is allowed (see [`allowed_errors`]).
pub fn threshold(mut predictions: Vec<Prediction>, agreement: f64) -> Option<Threshold> {
    predictions.sort_by(|a, b| b.confidence.total_cmp(&a.confidence));
    let n = predictions.len();
    let allowed = allowed_errors(n, 1.0 - agreement);
    let (mut wrong, mut found) = (0, None);
    for (i, &Prediction { confidence, agrees }) in predictions.iter().enumerate() {
        wrong += usize::from(!agrees);
        if wrong > allowed {
            break;
        }
        // Samples of equal confidence are not separated.
        let next = predictions.get(i + 1).map_or(0.0, |p| p.confidence);
        if next < confidence {
            let between = next + (confidence - next) / 2.0;
            found = Some(Threshold {
                confidence: if between < confidence { between } else { next },
                exiting: (i + 1) as f64 / n as f64,
                agreement: 1.0 - wrong as f64 / n as f64,
            });
        }
    }
    found
}

/// The largest number `k` of errors in `n` samples with `P(X ≤ k) ≤ 0.1` for a binomial `X` of error rate
/// `rate`, so that a rate below it is supported with a confidence of 0.9; 0 if `n` is too small.
pub fn allowed_errors(n: usize, rate: f64) -> usize {
    // P(X = 0), then term by term.
    let mut term = (n as f64 * (-rate).ln_1p()).exp();
    let (mut cumulative, mut count) = (term, 0);
    while count < n && rate < 1.0 {
        term *= (n - count) as f64 / (count + 1) as f64 * rate / (1.0 - rate);
        cumulative += term;
        if cumulative.is_nan() || cumulative > 0.1 {
            break;
        }
        count += 1;
    }
    count
}
