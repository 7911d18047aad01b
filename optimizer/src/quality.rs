//! The measures of the outputs of a model.

use crate::{Error, Hint};
use pare_graph::{
    Model,
    evaluate::quality::{OutputMeasure, QualityMeasures},
};
use pare_passes::analysis::quality::{mask_input, measures_with};
use std::fmt;

/// The measures of outputs that are set rather than chosen by what the model shows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct QualityOptions {
    /// Measures by output.
    pub measures: Vec<(String, OutputMeasure)>,
    /// The input `[samples, tokens]` whose zeros switch tokens off; found by its way into attention without.
    pub mask: Option<String>,
}

/// The canonical form in a lock file.
impl fmt::Display for QualityOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, measure) in &self.measures {
            write!(f, "{name}={measure} ")?;
        }
        write!(f, "mask {:?}", self.mask)
    }
}

impl QualityOptions {
    /// Options with these measures by output.
    pub fn new(measures: Vec<(String, OutputMeasure)>, mask: Option<String>) -> Self {
        Self { measures, mask }
    }

    /// Chooses the measures of the outputs of a model; `labelled` if the samples have labels.
    ///
    /// # Errors
    ///
    /// [`Error::Invalid`] if there is no such output or mask.
    pub fn choose(&self, model: &Model, labelled: bool) -> Result<QualityMeasures, Error> {
        let mut model = model.clone();
        // Without shapes less is known about the outputs; engines may run the model nevertheless.
        let _ = model.infer();
        let graph = &model.graph;
        let mask = match &self.mask {
            None => mask_input(graph),
            Some(name) => {
                let found = graph.find(name).filter(|&v| graph.inputs().contains(&v));
                let found = found.ok_or_else(|| Error::invalid(format!("there is no input `{name}`")))?;
                if graph.value_ref(found).rank().is_ok_and(|rank| rank != 2) {
                    let ty = &graph.value(found).fact;
                    let message = format!("`{name}` masks no tokens: it takes {ty}, not [samples, tokens]");
                    return Err(Error::invalid(message));
                }
                Some(found)
            }
        };
        let mut chosen = measures_with(graph, labelled, mask);
        for (name, measure) in &self.measures {
            let Some(output) = chosen.outputs.iter_mut().find(|output| output.name == *name) else {
                let names = chosen.outputs.into_iter().map(|output| output.name).collect();
                return Err(Error::invalid_with(
                    format!("there is no output `{name}`"),
                    Hint::Outputs(names),
                ));
            };
            // The axis of classes is that of the evidence.
            if output.measure.name() != measure.name() {
                output.measure = *measure;
            }
            if let (OutputMeasure::Classes { axis }, Some(4..)) =
                (&mut output.measure, graph.find(name).and_then(|v| graph.value_ref(v).rank().ok()))
                && *axis < 0
            {
                // Maps have the layout of images: the second axis holds the channels.
                *axis = 1;
            }
            output.why = "it was set".into();
        }
        Ok(chosen)
    }
}
