//! What makes an activation dispensable.
//!
//! | criterion | score | from |
//! |---|---|---|
//! | `slope` | mean of `abs(1 − a)` over the slopes `a` of `PRelu`, `LeakyRelu`, `Relu` | Dror et al., *Layer Folding*, 2021 |
//! | `entropy` | mean over channels of `H(p)`, `p` the share of `z ≥ 0` | Quétu et al., *EASIER*, 2024 |
//! | `tlc` | the same with `p = Φ(μ/σ)`, `μ/σ = β/abs(γ)` of a batch norm, else of `z` | Liao et al., *Till the Layers Collapse*, 2025 |
//! | `tlc-ablation` | drift when units with `μ ≤ 0` are switched off and the others are the identity | the same authors' code |
//! | `loss` | drift when the nearest lines take its place | |
//!
//! with the binary entropy `H(p) = −p·log₂ p − (1−p)·log₂(1−p)`. The authors of TLC rank by the loss on labels, which may
//! fall; then their code takes several layers at once. The drift from the original needs no labels and never falls
//! below zero, so here one goes at a time.

use super::{Criterion, Work, replace::replace};
use crate::{
    analysis::calibration::{
        ChannelMoments,
        entropy::{above_zero, entropy},
    },
    framework::{Context, PassError},
};
use pare_graph::{Graph, Model, ValueRef};
use std::collections::HashMap;

/// `β/|γ|` of each batch norm's channels, by the name of its output.
pub fn batch_norms(graph: &Graph) -> HashMap<String, Vec<f64>> {
    let of = |&id: &_| {
        let at = graph.at(id);
        let output = at.is("BatchNormalization").then(|| at.output().ok()).flatten()?;
        let read = |slot| at.input(slot).and_then(ValueRef::constant_f64).ok();
        let (gamma, beta) = (read(1)?, read(2)?);
        let ratio = |(beta, gamma): (&f64, &f64)| match gamma.abs() {
            // Always on, or always off.
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

impl Work<'_, '_> {
    /// The scores of these activations in a model that still has them; those that have none are left out.
    pub fn scores(
        &self,
        model: &Model,
        left: &[usize],
        cx: &mut Context<'_>,
    ) -> Result<HashMap<usize, f64>, PassError> {
        let mut scores = HashMap::new();
        if self.criterion == Criterion::Slope {
            for &i in left {
                match self.find(&model.graph, i)?.slopes(&model.graph) {
                    Some(slopes) => drop(scores.insert(i, mean(slopes.iter().map(|a| (1.0 - a).abs())))),
                    None => cx.decline(format!(
                        "`{}` stays: it has no slopes to go by",
                        self.places[i].activation.name
                    )),
                }
            }
            return Ok(scores);
        }
        for (pairs, &i) in self.pairs(model, left)?.iter().zip(left) {
            let channels = &pairs.channels;
            let score = match self.criterion {
                Criterion::Slope | Criterion::Entropy => mean(channels.iter().map(|p| entropy(p.positive()))),
                Criterion::Tlc => {
                    // A batch norm tells about the original alone.
                    let input = &self.model.graph.value(self.places[i].activation.input).name;
                    let norm = self.norms.get(input).filter(|n| n.len() == channels.len());
                    let ratio = |c: usize| match norm {
                        Some(norm) => norm[c],
                        None => channels[c].x_mean / channels[c].deviation().max(f64::MIN_POSITIVE),
                    };
                    mean((0..channels.len()).map(|c| entropy(above_zero(ratio(c)))))
                }
                Criterion::TlcAblation => {
                    let switched = |p: &ChannelMoments| (if p.x_mean > 0.0 { 1.0 } else { 0.0 }, 0.0);
                    self.drift_without(model, i, &channels.iter().map(switched).collect::<Vec<_>>())?
                }
                Criterion::Loss => self.drift_without(
                    model,
                    i,
                    &channels.iter().map(ChannelMoments::line).collect::<Vec<_>>(),
                )?,
            };
            scores.insert(i, score);
            cx.tools.progress.step("scores", scores.len() as u64, left.len() as u64);
        }
        Ok(scores)
    }

    /// How far the outputs lie from the original's when these lines take the place of an activation.
    fn drift_without(&self, model: &Model, place: usize, lines: &[(f64, f64)]) -> Result<f64, PassError> {
        let Some(trial) = &self.trial else { return Ok(0.0) };
        let graph = &model.graph;
        let found = self.find(graph, place)?;
        // A sum before the activation may be written anew.
        let sum = graph.producer(found.input).map(|(node, _)| node);
        let start = trial.prefix(model, &found.nodes.iter().copied().chain(sum).collect())?;
        let mut changed = model.clone();
        self.apply(&mut changed.graph, replace(graph, &found, self.places[place].axis, lines), place)?;
        trial.drift_from(&start, &changed)
    }
}
