//! The input that masks padding, and the axis of tokens of values.

use super::measures_of;
use crate::{analysis::attention::attentions, framework::Tools};
use pare_graph::{Dim, Edge, Graph, Tensor, ValueId, evaluate::quality::QualityMeasures};
use std::collections::HashSet;

/// Returns the input `[samples, tokens]` whose zeros switch tokens off: the only input that the masks of
/// attention are computed from, apart from shapes. Inputs whose name says that they mark padding may have the
/// opposite meaning, and are not chosen.
pub fn mask_input(graph: &Graph) -> Option<ValueId> {
    let masks = attentions(graph).into_iter().flatten().flat_map(|attention| attention.masks);
    let mut queue: Vec<_> = masks.filter_map(|mask| mask.value).collect();
    let (mut seen, mut found) = (HashSet::new(), vec![]);
    while let Some(value) = queue.pop() {
        if !seen.insert(value) {
            continue;
        }
        match graph.producer(value) {
            Some((node, _)) if !graph.at(node).is("Shape") && !graph.at(node).is("Size") => {
                queue.extend(graph.operands(node));
            }
            None if is_mask(graph, value) => found.push(value),
            _ => {}
        }
    }
    match found[..] {
        [mask] => Some(mask),
        _ => None,
    }
}

/// Returns whether a value is an input with one number for each token, other than an index into embeddings.
fn is_mask(graph: &Graph, value: ValueId) -> bool {
    let input = graph.value_ref(value);
    let is_index = input.users().iter().any(|(user, edge)| user.is("Gather") && *edge == Edge::Input(1));
    let is_open = input.value().is_input() && input.value().data.is_none();
    is_open && !is_index && input.rank() == Ok(2) && !input.name().to_lowercase().contains("pad")
}

/// Returns the axis of tokens of a value of this shape, for a mask `[samples, tokens]`: 0 where samples and tokens
/// share the first axis.
pub fn token_axis(mask: &[Dim], shape: &[Dim]) -> Option<usize> {
    let [samples, tokens] = mask else { return None };
    let first = shape.first().filter(|_| !tokens.is_unknown())?;
    if *first == samples * tokens && samples.size() != Some(1) {
        return Some(0);
    }
    // A fixed size may be equal by chance where no axis of channels follows.
    let least_rank = if tokens.size().is_some() { 3 } else { 2 };
    if first != samples || shape.len() < least_rank {
        return None;
    }
    (1..shape.len()).find(|&axis| shape[axis] == *tokens)
}

/// The padding of samples, as the input that masks it says.
pub(crate) struct Padding {
    quality: Option<QualityMeasures>,
}

impl Padding {
    /// The padding that the mask of a graph describes, if it has one.
    pub fn of(tools: Tools<'_>, graph: &Graph) -> Self {
        Self { quality: tools.samples.map(|_| measures_of(tools, graph)).filter(|q| q.mask.is_some()) }
    }

    /// True if no input masks padding.
    pub fn is_none(&self) -> bool {
        self.quality.is_none()
    }

    /// Replaces padding in the tensors of `values`, for samples `feeds`, by copies of other tokens of the same
    /// sample, so that statistics over all positions are those of tokens.
    pub fn fill(
        &self,
        graph: &Graph,
        feeds: &[(String, Tensor)],
        values: &[ValueId],
        tensors: &mut [Tensor],
    ) {
        let Some(quality) = &self.quality else { return };
        let tokens = quality.tokens(feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)));
        let mask = quality.mask.as_ref().and_then(|name| graph.value_ref(graph.find(name)?).shape());
        let Some((tokens, mask)) = tokens.zip(mask) else { return };
        for (&value, tensor) in values.iter().zip(tensors) {
            let axis = graph.value_ref(value).shape().and_then(|shape| token_axis(mask, shape));
            if let Some(filled) = axis.and_then(|axis| tokens.filled(tensor, axis)) {
                *tensor = filled;
            }
        }
    }
}
