//! Scores of activations; the lowest is removed first.
//!
//! | criterion | score | from |
//! |---|---|---|
//! | `slope` | mean of `abs(1 − a)` over the slopes `a` of `PRelu`, `LeakyRelu`, `Relu` | Dror et al., *Layer Folding*, 2021 |
//! | `entropy` | mean over channels of `H(p)`, `p` the share of `z ≥ 0` | Quétu et al., *EASIER*, 2024 |
//! | `tlc` | the same with `p = Φ(μ/σ)`, `μ/σ = β/abs(γ)` of a batch norm, else of `z` | Liao et al., *Till the Layers Collapse*, 2025 |
//! | `tlc-ablation` | drift when units with `μ ≤ 0` become 0 and the others the identity | the same authors' code |
//! | `loss` | drift with the least-squares lines in its place | |
//!
//! with the binary entropy `H(p) = −p·log₂ p − (1−p)·log₂(1−p)`. The authors of TLC rank by the loss on
//! labels, which may decrease; their code then removes several layers at once. The drift from the original
//! needs no labels and is never negative, so here activations are removed one at a time.

use super::{
    ActivationCriterion, ActivationSearch,
    replace::{Line, replace},
};
use crate::{
    analysis::calibration::{
        ChannelMoments,
        entropy::{above_zero, entropy},
    },
    framework::{Context, PassError},
};
use pare_graph::{Graph, Model, ValueRef};
use std::collections::HashMap;

/// The ratios `β/|γ|` of the channels of each batch norm, by the name of its output.
pub fn batch_norm_ratios(graph: &Graph) -> HashMap<String, Vec<f64>> {
    let of = |&id: &_| {
        let at = graph.at(id);
        let output = at.is("BatchNormalization").then(|| at.output().ok()).flatten()?;
        let read = |slot| at.input(slot).and_then(ValueRef::constant_f64).ok();
        let (gamma, beta) = (read(1)?, read(2)?);
        let ratio = |(beta, gamma): (&f64, &f64)| match gamma.abs() {
            // Always positive, or never.
            0.0 => f64::INFINITY * if *beta > 0.0 { 1.0 } else { -1.0 },
            gamma => beta / gamma,
        };
        Some((output.name().to_owned(), beta.iter().zip(&gamma).map(ratio).collect()))
    };
    graph.nodes().iter().filter_map(of).collect()
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}

impl ActivationSearch<'_, '_> {
    /// The scores of these activations in `model`, without those that have none.
    pub fn scores(
        &self,
        model: &Model,
        remaining: &[usize],
        cx: &mut Context<'_>,
    ) -> Result<HashMap<usize, f64>, PassError> {
        let mut scores = HashMap::new();
        if self.criterion == ActivationCriterion::Slope {
            for &i in remaining {
                match self.find(&model.graph, i)?.slopes(&model.graph) {
                    Some(slopes) => drop(scores.insert(i, mean(slopes.iter().map(|a| (1.0 - a).abs())))),
                    None => cx.decline(format!("`{}` has no slopes", self.sites[i].activation.name)),
                }
            }
            return Ok(scores);
        }
        for (pairs, &i) in self.moments(model, remaining)?.iter().zip(remaining) {
            let channels = &pairs.channels;
            let score = match self.criterion {
                ActivationCriterion::Slope | ActivationCriterion::Entropy => {
                    mean(channels.iter().map(|p| entropy(p.positive())))
                }
                ActivationCriterion::Tlc => {
                    // Batch norms describe the original only, so its names apply.
                    let input = &self.model.graph.value(self.sites[i].activation.input).name;
                    let norm = self.norm_ratios.get(input).filter(|n| n.len() == channels.len());
                    let ratio = |c: usize| match norm {
                        Some(norm) => norm[c],
                        None => channels[c].x_mean / channels[c].deviation().max(f64::MIN_POSITIVE),
                    };
                    mean((0..channels.len()).map(|c| entropy(above_zero(ratio(c)))))
                }
                ActivationCriterion::TlcAblation => {
                    let switched = |p: &ChannelMoments| Line {
                        slope: if p.x_mean > 0.0 { 1.0 } else { 0.0 },
                        intercept: 0.0,
                    };
                    self.drift_without(model, i, &channels.iter().map(switched).collect::<Vec<_>>())?
                }
                ActivationCriterion::Loss => {
                    self.drift_without(model, i, &channels.iter().map(Line::fit).collect::<Vec<_>>())?
                }
            };
            scores.insert(i, score);
            cx.tools.progress.step("scores", scores.len() as u64, remaining.len() as u64);
        }
        Ok(scores)
    }

    /// The drift of the outputs with these lines in place of an activation.
    fn drift_without(&self, model: &Model, site: usize, lines: &[Line]) -> Result<f64, PassError> {
        let Some(held_out) = &self.held_out else { return Ok(0.0) };
        let graph = &model.graph;
        let found = self.find(graph, site)?;
        // The replacement may also rewrite the `Add` before the activation.
        let sum = graph.producer(found.input).map(|(node, _)| node);
        let start = held_out.prefix(model, &found.nodes.iter().copied().chain(sum).collect())?;
        let mut changed = model.clone();
        self.apply(&mut changed.graph, replace(graph, &found, self.sites[site].axis, lines), site)?;
        held_out.drift_from(&start, &changed)
    }
}
