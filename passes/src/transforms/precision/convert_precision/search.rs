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
//!
//! ONNX Runtime's CPU rounds nothing between operators without kernels in the new type. Other engines do, so the
//! noise is that of the original with every value of the new type rounded, see `rounded`, or that of the converted
//! model if it is larger: kernels that also add up in the new type lose more.

use super::plan::Plan;
use crate::{
    analysis::evaluation::HeldOut,
    framework::{Context, PassError},
};
use pare_graph::{ConvertedGraph, DataType, Graph, Model, Node, Patch, Ref, Tensor, ValueId};
use std::collections::HashSet;

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
    /// Returns the nodes among `eligible` that have the new type, and their noise.
    pub fn run(&self, eligible: Vec<bool>, cx: &mut Context<'_>) -> Result<(Vec<bool>, f64), PassError> {
        let limit = 10_f64.powf(-self.min_snr / 10.0);
        let all: Vec<_> = (0..eligible.len()).filter(|&i| eligible[i]).collect();
        let first = self.noise(&all, eligible.len())?;
        if first <= limit {
            return Ok((eligible, first));
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
            let mut nodes: Vec<_> =
                segments[dropped..].iter().flat_map(|s| s.nodes.iter().copied()).collect();
            nodes.sort_unstable();
            let noise = self.noise(&nodes, eligible.len())?;
            if noise <= limit {
                return Ok((Self::flags(&nodes, eligible.len()), noise));
            }
            budget *= 0.5 * (limit / noise).min(1.0);
        }
        cx.decline(format!("no choice of nodes was found that keeps an SNR of {} dB", self.min_snr));
        let none = vec![false; eligible.len()];
        let noise = self.noise_of(&none)?;
        Ok((none, noise))
    }

    fn flags(nodes: &[usize], count: usize) -> Vec<bool> {
        let mut half = vec![false; count];
        nodes.iter().for_each(|&i| half[i] = true);
        half
    }

    fn noise(&self, nodes: &[usize], count: usize) -> Result<f64, PassError> {
        self.noise_of(&Self::flags(nodes, count))
    }

    /// The noise with these nodes in the new type: that of rounded values, or of the converted model if it is
    /// larger.
    pub fn noise_of(&self, half: &[bool]) -> Result<f64, PassError> {
        // Samples have the types of the original.
        let types = self.plan.types(&self.plain.graph, half, true);
        let mut converted = self.plain.clone();
        converted.convert_nodes(DataType::Float, self.dtype, &types);
        converted.infer()?;
        let rounding = self.held_out.noise(&rounded(self.plain, &types, self.dtype)?)?;
        Ok(self.held_out.noise(&converted)?.max(rounding))
    }
}

/// The original in float, with each value that has the new type in `types` rounded to it.
pub fn rounded(model: &Model, types: &ConvertedGraph, dtype: DataType) -> Result<Model, PassError> {
    let mut model = model.clone();
    round_graph(&mut model.graph, types, dtype, &HashSet::new())?;
    model.infer()?;
    Ok(model)
}

/// Rounds the values of a graph. `captured` are the names of rounded values of outer graphs.
fn round_graph(
    graph: &mut Graph,
    types: &ConvertedGraph,
    dtype: DataType,
    captured: &HashSet<String>,
) -> Result<(), PassError> {
    let refused = |e: String| PassError::refused(e);
    let round = |patch: &mut Patch, value: Ref| {
        let cast = |to: DataType| Node::new("Cast").with("to", i64::from(to.number()));
        let low = patch.node("rounded", cast(dtype), &[value]);
        patch.node("rounded", cast(DataType::Float), &[low])
    };
    let of_graph = |ids: &[ValueId], flags: &[bool]| -> Vec<ValueId> {
        ids.iter().zip(flags).filter(|(_, flag)| **flag).map(|(v, _)| *v).collect()
    };
    // Values that are rounded already: those of outer graphs, too.
    let mut done: HashSet<ValueId> = of_graph(graph.inputs(), &types.inputs).into_iter().collect();
    done.extend(graph.captures().into_iter().filter(|&v| captured.contains(&graph.value(v).name)));
    let nodes = graph.nodes();
    let Some(&first) = nodes.first() else { return Ok(()) };
    let mut constants = Patch::anchored(first);
    for &id in &types.constants {
        let Some(tensor) = graph.value(id).tensor() else { continue };
        let low = tensor.to_f64().and_then(|values| Tensor::from_f64(dtype, tensor.shape(), &values).ok());
        let values = low.and_then(|low| low.to_f64()).unwrap_or_default();
        let tensor = Tensor::from_f64(DataType::Float, tensor.shape(), &values);
        constants.set_data(id, tensor.map_err(|e| refused(e.to_string()))?);
        done.insert(id);
    }
    graph.apply(constants).map_err(|e| refused(e.to_string()))?;
    for &id in nodes.iter() {
        let Some(node) = types.nodes.get(&id) else { continue };
        if graph.node(id).subgraphs().next().is_some() {
            // Values that nothing reads any more were removed.
            let known = done.iter().filter(|&&v| graph.has_value(v));
            let names = known.map(|&v| graph.value(v).name.clone()).collect();
            graph.with_subgraphs(id, |bodies, _| {
                bodies
                    .iter_mut()
                    .zip(&node.bodies)
                    .try_for_each(|(body, types)| round_graph(body, types, dtype, &names))
            })?;
        }
        let mut patch = Patch::anchored(id);
        let inputs = graph.inputs_of(id).into_iter().zip(&node.inputs).enumerate();
        let border = inputs
            .filter_map(|(slot, (value, flag))| Some((slot, value.filter(|v| *flag && !done.contains(v))?)));
        for (slot, value) in border {
            let low = round(&mut patch, value.into());
            patch.set_input(id, slot, low);
        }
        let outputs = graph.outputs_of(id).into_iter().zip(&node.outputs);
        for value in outputs.filter_map(|(value, flag)| value.filter(|_| *flag)) {
            let low = round(&mut patch, value.into());
            patch.replace(graph.value_ref(value), low);
        }
        let applied = graph.apply(patch).map_err(|e| refused(e.to_string()))?;
        let added = applied.added.into_iter().filter_map(|node| graph.output(node, 0));
        done.extend(added.collect::<Vec<_>>());
    }
    Ok(())
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
