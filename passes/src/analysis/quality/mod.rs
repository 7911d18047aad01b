//! The choice of the measure by which each output of a model is compared.
//!
//! | evidence | measure |
//! |---|---|
//! | it holds integers, booleans or strings | exact |
//! | its rows are divided by their lengths | cosine |
//! | a softmax computes it; a softmax, `ArgMax` or `TopK` reads it | classes |
//! | it is a row of four coordinates beside such scores | error, and so are the scores: a detector |
//! | a sigmoid computes it, element by element | error |
//! | its name says so: `logits`, `scores`, `embedding` … | classes, cosine |
//! | the samples have labels, and no other output holds class scores | classes |
//! | none | error |

mod evidence;
mod mask;
#[cfg(test)]
mod tests;

pub(crate) use mask::Padding;
pub use mask::{mask_input, token_axis};

use crate::framework::Tools;
use evidence::{Evidence, evidence};
use pare_graph::{
    DataType, Dim, Graph, Samples, ValueId, ValueRef,
    evaluate::quality::{MeasuredOutput, OutputMeasure, QualityMeasures},
};

/// The coordinates of a box.
const COORDINATES: usize = 4;

/// Chooses the measures of the outputs of a graph with inferred types. With `labelled` samples, outputs that have
/// the shape of class scores are class scores, if no output is otherwise.
pub fn measures(graph: &Graph, labelled: bool) -> QualityMeasures {
    measures_with(graph, labelled, mask_input(graph))
}

/// [`measures`] with this input as the mask of padding.
pub fn measures_with(graph: &Graph, labelled: bool, mask: Option<ValueId>) -> QualityMeasures {
    let mut found: Vec<_> = graph.outputs().iter().map(|&v| (graph.value_ref(v), None)).collect();
    for (output, choice) in &mut found {
        *choice = of_structure(*output).or_else(|| of_name(*output));
    }
    let is_classes = |choice: &Option<Choice>| {
        choice.as_ref().is_some_and(|choice| matches!(choice.measure, OutputMeasure::Classes { .. }))
    };
    if labelled && !found.iter().any(|(_, choice)| is_classes(choice)) {
        for (output, choice) in &mut found {
            let overrides = choice.as_ref().is_none_or(|choice| choice.measure == OutputMeasure::Error);
            if overrides && has_classes(*output, -1) && output.rank() == Ok(2) {
                *choice = Some(Choice::new(OutputMeasure::CLASSES, "the samples have labels"));
            }
        }
    }
    let boxes: Vec<_> = found.iter().map(|(output, _)| *output).filter(|output| is_boxes(*output)).collect();
    for (output, choice) in &mut found {
        let beside = boxes.iter().find(|boxes| boxes.id != output.id && share_rows(**boxes, *output));
        if let Some(boxes) = beside.filter(|_| is_classes(choice)) {
            let why = format!("its rows are the positions of a detector, as those of `{}`", boxes.name());
            *choice = Some(Choice { measure: OutputMeasure::Error, why });
        }
    }
    let tokens = mask.and_then(|id| graph.value_ref(id).shape()).map(<[Dim]>::to_vec);
    let outputs = found.into_iter().map(|(output, choice)| {
        let choice = choice.unwrap_or_else(|| Choice::without_evidence(output));
        let per_token = tokens
            .as_deref()
            .zip(output.shape())
            .is_some_and(|(mask, shape)| token_axis(mask, shape) == Some(1));
        let name = output.name().to_owned();
        MeasuredOutput { name, measure: choice.measure, why: choice.why, per_token }
    });
    QualityMeasures { outputs: outputs.collect(), mask: mask.map(|id| graph.value(id).name.clone()) }
}

/// The measures that the caller chose, or those that [`measures`] chooses.
pub(crate) fn measures_of(tools: Tools<'_>, graph: &Graph) -> QualityMeasures {
    let labelled = || tools.samples.and_then(Samples::labels).is_some();
    tools.quality.cloned().unwrap_or_else(|| measures(graph, labelled()))
}

/// A measure and the evidence for it.
struct Choice {
    measure: OutputMeasure,
    why: String,
}

impl Choice {
    fn new(measure: OutputMeasure, why: &str) -> Self {
        Self { measure, why: why.to_owned() }
    }

    fn without_evidence(output: ValueRef<'_>) -> Self {
        match output.dtype() {
            Some(dtype) if !dtype.is_float() => {
                Self { measure: OutputMeasure::Exact, why: format!("it holds {dtype}") }
            }
            _ => Self::new(OutputMeasure::Error, "nothing shows that it holds class scores or embeddings"),
        }
    }
}

fn is_float(output: ValueRef<'_>) -> bool {
    output.dtype().is_none_or(DataType::is_float)
}

/// The measure that the nodes around an output show.
fn of_structure(output: ValueRef<'_>) -> Option<Choice> {
    if !is_float(output) {
        return Some(Choice::without_evidence(output));
    }
    Some(match evidence(output)? {
        Evidence::Normalized => Choice::new(OutputMeasure::Cosine, "its rows have length 1"),
        Evidence::Scores { axis, why } if has_classes(output, axis) => {
            Choice { measure: OutputMeasure::Classes { axis }, why }
        }
        Evidence::Scores { .. } => return None,
        Evidence::Sigmoid => Choice::new(OutputMeasure::Error, "a sigmoid scores each element by itself"),
    })
}

/// The measure that the name of an output shows.
fn of_name(output: ValueRef<'_>) -> Option<Choice> {
    const SCORES: [&str; 9] =
        ["logit", "logits", "score", "scores", "prob", "probs", "probability", "probabilities", "softmax"];
    let name = output.name().to_lowercase();
    let rank = output.rank().ok();
    if rank.is_some_and(|rank| rank < 2) {
        return None;
    }
    let find = |is: &dyn Fn(&str) -> bool| name.split(|c: char| !c.is_alphanumeric()).any(is);
    // Maps have the layout of images: the second axis holds the channels.
    let axis = if rank.is_some_and(|rank| rank > 3) { 1 } else { -1 };
    if find(&|word| SCORES.contains(&word)) && has_classes(output, axis) {
        return Some(Choice::new(OutputMeasure::Classes { axis }, "its name says so"));
    }
    let embeds = find(&|word| word.starts_with("embed")) && has_classes(output, -1);
    embeds.then(|| Choice::new(OutputMeasure::Cosine, "its name says so"))
}

/// Returns whether an axis may have more than one index.
fn has_classes(output: ValueRef<'_>, axis: i64) -> bool {
    let Some(shape) = output.shape() else { return true };
    let axis = if axis < 0 { axis + shape.len() as i64 } else { axis };
    let dim = usize::try_from(axis).ok().and_then(|axis| shape.get(axis));
    dim.is_some_and(|dim| dim.size().is_none_or(|size| size > 1))
}

/// Returns whether an output has the shape of boxes: four coordinates at each of many positions.
fn is_boxes(output: ValueRef<'_>) -> bool {
    let Some([_, positions, coordinates]) = output.shape() else { return false };
    is_float(output) && coordinates.size() == Some(COORDINATES) && positions.size() != Some(1)
}

/// Returns whether two outputs of rank 3 have the same first two axes.
fn share_rows(a: ValueRef<'_>, b: ValueRef<'_>) -> bool {
    match (a.shape(), b.shape()) {
        (Some([n, m, _]), Some([x, y, _])) => (n, m) == (x, y) && !m.is_unknown(),
        _ => false,
    }
}
