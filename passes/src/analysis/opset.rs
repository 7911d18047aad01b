//! Raising the operator set of a model for passes that need a newer one.

use crate::framework::{Context, Hint, PassError, Report};
use pare_graph::Model;
use serde::{Deserialize, Serialize};

/// The choice of a pass that needs a newer operator set than the model has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OpsetPolicy {
    /// Keep the operator set.
    Keep,
    /// Raise it to the version that is needed, by `upgrade-opset`.
    Raise,
}

/// Returns true if the model has operator set `needed` or a newer one.
pub(crate) fn has_opset(model: &Model, needed: i64) -> bool {
    model.graph.opset("").is_none_or(|version| version >= needed)
}

fn upgrade(needed: i64) -> String {
    format!("upgrade-opset{{to={needed}}}")
}

/// A copy of the model with operator set `needed`, or the first reason why there is none.
pub(crate) fn raised(
    model: &Model,
    needed: i64,
    cx: &Context<'_>,
) -> Result<Result<Model, String>, PassError> {
    let mut candidate = model.clone();
    let report = cx.scratch().run(&upgrade(needed), &mut candidate)?;
    let reason = || report.steps.iter().flat_map(|step| step.declined.keys()).next().cloned();
    Ok(if has_opset(&candidate, needed) { Ok(candidate) } else { Err(reason().unwrap_or_default()) })
}

/// Raises the operator set of the model as a nested step of the running pass.
pub(crate) fn raise(model: &mut Model, needed: i64, cx: &mut Context<'_>) -> Result<(), PassError> {
    cx.run_nested(&upgrade(needed), model)
}

impl OpsetPolicy {
    /// Raises the operator set of the model to `needed` if it is older.
    ///
    /// # Errors
    /// Refuses an older set that is kept or cannot be raised, since it has no `what`; with the remedy.
    pub(crate) fn ensure(
        self,
        needed: i64,
        what: &str,
        remedy: impl Into<Hint>,
        model: &mut Model,
        cx: &mut Context<'_>,
    ) -> Result<(), PassError> {
        if has_opset(model, needed) {
            return Ok(());
        }
        let why = match self {
            Self::Keep => String::new(),
            Self::Raise => match raised(model, needed, cx)? {
                Ok(_) => return raise(model, needed, cx),
                Err(why) => format!(", and cannot be raised: {why}"),
            },
        };
        let version = model.graph.opset("").unwrap_or(1);
        Err(PassError::refused_with(format!("operator set {version} has no {what}{why}"), remedy))
    }

    /// Raises the operator set of the model if it is older than `needed` and the pass `name` then changes more
    /// than it does now.
    pub(crate) fn raise_for(
        self,
        name: &str,
        needed: i64,
        model: &mut Model,
        cx: &mut Context<'_>,
    ) -> Result<(), PassError> {
        if self == Self::Keep || has_opset(model, needed) || cx.stopped() {
            return Ok(());
        }
        let Ok(mut candidate) = raised(model, needed, cx)? else { return Ok(()) };
        let patches =
            |model: &mut Model| cx.scratch().run(name, model).map(|report: Report| report.patches());
        if patches(&mut candidate)? > patches(&mut model.clone())? {
            raise(model, needed, cx)?;
        }
        Ok(())
    }
}
