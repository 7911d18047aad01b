//! The words of events.

use crate::{format::bytes, hints::Interface, search};
use onnx_pare::Event;

/// An event as text, in the names of an interface; `None` if it needs no words.
pub fn text(event: &Event<'_>, names: Interface) -> Option<String> {
    Some(match *event {
        Event::Fetching(line) => line.to_owned(),
        Event::Fallback { engine } => format!("running models in {engine}"),
        Event::Calibrating { samples, bytes_per_sample, memory } => format!(
            "calibrating on {samples} samples of {} of activations each, within {} ({})",
            bytes(bytes_per_sample),
            bytes(memory),
            names.option("memory")
        ),
        Event::Bisecting => "looking for the patch at fault".into(),
        Event::Reducing => "looking for the smallest part that fails".into(),
        Event::MeasuringOriginal => "measuring the original".into(),
        Event::MakingSafe => "making `safe`, the result if nothing better is found".into(),
        Event::Tried { trial, number, best } => search::progress(trial, number, best),
        Event::Finishing => "making the result".into(),
        _ => return None,
    })
}
