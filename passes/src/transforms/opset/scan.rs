//! `Scan`, which had a batch axis in operator set 8.

use super::form::Form;
use pare_graph::{Decline, Patch};

/// A batch of one sequence: its axis is removed before, and added again afterwards.
pub(super) fn scan_9(mut form: Form<'_>) -> Result<Patch, Decline> {
    let at = form.at;
    let because = |why: &str| Decline::because(format!("{} {why}", at.describe()));
    if at.optional(0).is_some() {
        return Err(because("has sequences of several lengths, which operator set 9 does not have"));
    }
    let values: Vec<_> = at.inputs().into_iter().skip(1).collect();
    for (slot, value) in values.iter().enumerate() {
        let value = value.ok_or_else(|| because("has an omitted input"))?;
        if value.shape().and_then(|shape| shape.first()?.known()) != Some(1) {
            return Err(because("has a batch of several sequences, which operator set 9 does not have"));
        }
        let squeezed = form.builder().squeeze(value.into(), &[0]);
        form.connect(slot, Some(squeezed));
    }
    form.connect(values.len(), None);
    if let Some(directions) = form.take("directions")? {
        form.set("scan_input_directions", directions);
    }
    let mut results = form.add();
    for result in results.iter_mut().flatten() {
        *result = form.builder().unsqueeze(*result, &[0]);
    }
    Ok(form.replace(&results))
}
