//! The search for the nodes that stay in float so that the outputs keep their signal.
//!
//! The noise of a set of nodes is `Σ(x − y)² / Σx²` of the output where it is largest, with these nodes in the
//! new type. Rounding errors of different nodes are independent, so their noise adds up:
//!
//! ```text
//! segments ← { all nodes }
//! repeat
//!     drop the segments with the most noise per node until the sum of the others is within the limit
//!     stop if each dropped segment is a single node
//!     split the dropped segment with the most noise, and measure both halves
//! ```
//!
//! The remaining nodes are measured together, with a lower limit again if they exceed it.

use super::plan::Plan;
use crate::{
    analysis::evaluation::HeldOut,
    framework::{Context, PassError},
};
use pare_graph::{DataType, Model};

/// Measurements of segments, each of which loads and runs the model.
const MEASUREMENTS: usize = 64;
/// Measurements of the remaining nodes.
const ROUNDS: usize = 8;

pub struct Search<'s> {
    pub plain: &'s Model,
    pub plan: &'s Plan,
    pub held_out: &'s HeldOut<'s>,
    pub dtype: DataType,
    pub min_snr: f64,
}

/// Adjacent nodes, by position, with their noise.
#[derive(Clone, Debug)]
struct Segment {
    nodes: Vec<usize>,
    noise: f64,
}

impl Search<'_> {
    /// Returns the nodes among `eligible` that have the new type.
    pub fn run(&self, eligible: Vec<bool>, cx: &mut Context<'_>) -> Result<Vec<bool>, PassError> {
        let limit = 10_f64.powf(-self.min_snr / 10.0);
        let all: Vec<_> = (0..eligible.len()).filter(|&i| eligible[i]).collect();
        let first = self.noise(&all, eligible.len())?;
        if first <= limit {
            cx.figure("SNR in dB", -10.0 * first.log10());
            return Ok(eligible);
        }
        cx.detail("SNR in dB without nodes in float", -10.0 * first.log10());
        let (mut segments, mut measured) = (vec![Segment { nodes: all, noise: first }], 0);
        let mut budget = limit;
        for _ in 0..ROUNDS {
            let dropped = loop {
                let dropped = dropped(&mut segments, budget);
                let worst = (0..dropped).filter(|&i| segments[i].nodes.len() > 1);
                let worst = worst.max_by(|&a, &b| segments[a].noise.total_cmp(&segments[b].noise));
                let Some(worst) = worst.filter(|_| measured < MEASUREMENTS) else { break dropped };
                let mut low = segments.swap_remove(worst).nodes;
                let high = low.split_off(low.len() / 2);
                for nodes in [low, high] {
                    let noise = self.noise(&nodes, eligible.len())?;
                    segments.push(Segment { nodes, noise });
                    measured += 1;
                    cx.tools.progress.step("precision", measured as u64, MEASUREMENTS as u64);
                }
            };
            let mut nodes: Vec<_> = segments[dropped..].iter().flat_map(|s| s.nodes.iter().copied()).collect();
            nodes.sort_unstable();
            let noise = self.noise(&nodes, eligible.len())?;
            if noise <= limit {
                cx.figure("SNR in dB", -10.0 * noise.log10());
                return Ok(self.flags(&nodes, eligible.len()));
            }
            budget *= 0.5 * (limit / noise).min(1.0);
        }
        cx.decline(format!("no choice of nodes was found that keeps an SNR of {} dB", self.min_snr));
        Ok(vec![false; eligible.len()])
    }

    fn flags(&self, nodes: &[usize], count: usize) -> Vec<bool> {
        let mut half = vec![false; count];
        nodes.iter().for_each(|&i| half[i] = true);
        half
    }

    /// The noise with these nodes in the new type.
    fn noise(&self, nodes: &[usize], count: usize) -> Result<f64, PassError> {
        let types = self.plan.types(&self.plain.graph, &self.flags(nodes, count), true);
        let mut candidate = self.plain.clone();
        candidate.convert_nodes(DataType::Float, self.dtype, &types);
        candidate.infer()?;
        self.held_out.noise(&candidate)
    }
}

/// Sorts the segments by their noise per node, and returns the number of the first ones without which the noise
/// is within the budget.
fn dropped(segments: &mut [Segment], budget: f64) -> usize {
    let density = |s: &Segment| s.noise / s.nodes.len().max(1) as f64;
    segments.sort_by(|a, b| density(b).total_cmp(&density(a)));
    (0..segments.len())
        .find(|&n| segments[n..].iter().map(|s| s.noise).sum::<f64>() <= budget)
        .unwrap_or(segments.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drops_the_segments_with_the_most_noise_per_node() {
        let segment = |nodes: usize, noise| Segment { nodes: vec![0; nodes], noise };
        let mut segments = [segment(8, 4.0), segment(1, 2.0), segment(1, f64::INFINITY), segment(4, 0.5)];
        assert_eq!(dropped(&mut segments, 5.0), 2);
        assert_eq!(segments[1].noise, 2.0);
        assert_eq!(dropped(&mut segments, 0.0), 4);
        assert_eq!(dropped(&mut segments, f64::INFINITY), 0);
    }
}
