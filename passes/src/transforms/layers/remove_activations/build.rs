//! The model without some activations: lines in their place, layers composed, layers fitted.

use super::{Work, replace::replace};
use crate::{
    analysis::{
        linear::Linear,
        repair::{Refit, Repair, RepairOptions, dependents},
    },
    framework::PassError,
    transforms::fold::cropped,
};
use pare_graph::{Decline, Graph, Model, NodeId, Patch, ValueId, ValueRef};
use std::collections::{HashMap, HashSet};

/// A candidate.
pub struct Built {
    /// The model.
    pub model: Model,
    /// How often layers were composed.
    pub composed: u64,
    /// The ridge that its layers were fitted with, if they were.
    pub lambda: Option<f64>,
    /// How far it drifts on the samples that are held out.
    pub drift: Option<f64>,
}

/// Ridges that are tried; the drift on held-out samples decides. The first is for many samples, the last for few.
const LAMBDAS: [f64; 3] = [1e-3, 1e-2, 1e-1];
/// Samples that layers are fitted to: 20,000 rows for some hundred inputs of a layer.
const FITTED: usize = 640;
const FITTED_QUICKLY: usize = 192;

impl Work<'_, '_> {
    /// The original without these activations. A quick build does for looking on from there.
    pub fn build(&self, removed: &[usize], quick: bool) -> Result<Built, PassError> {
        let mut removed = removed.to_vec();
        removed.sort_unstable();
        let mut model = self.model.clone();
        // What values stand for that keep the names they had before an activation.
        let mut stands = HashMap::new();
        for &i in &removed {
            let found = self.find(&model.graph, i)?;
            let input = model.graph.value(found.input).name.clone();
            let patch = replace(&model.graph, &found, self.places[i].axis, &self.lines[i]);
            self.apply(&mut model.graph, patch, i)?;
            if model.graph.find(&self.places[i].output).is_none() {
                stands.insert(input, self.places[i].activation.output);
            }
        }
        let composed = self.fold(&mut model)?;
        let mut built = Built { model, composed, lambda: None, drift: None };
        let Some(trial) = &self.trial else { return Ok(built) };
        built.drift = Some(trial.drift(&built.model)?);
        if self.refit {
            built = self.fitted(built, &removed, &stands, quick)?;
        }
        if !quick {
            built.composed += self.collapse(&mut built.model)?;
            built.drift = Some(trial.drift(&built.model)?);
        }
        Ok(built)
    }

    /// The candidate with its layers fitted anew, if that is better on held-out samples.
    fn fitted(
        &self,
        mut built: Built,
        removed: &[usize],
        stands: &HashMap<String, ValueId>,
        quick: bool,
    ) -> Result<Built, PassError> {
        let Some(trial) = &self.trial else { return Ok(built) };
        let start = built.model.clone();
        let refits = &self.refits(&start.graph, removed, stands);
        // One round, with fewer samples, when a result is only to look on from.
        let (lambdas, samples) =
            if quick { (&LAMBDAS[1..2], FITTED_QUICKLY) } else { (&LAMBDAS[..], FITTED) };
        let samples = 0..self.split.fit.end.min(samples);
        let repair = Repair { tools: self.tools, original: &self.model, refits, samples };
        for &lambda in lambdas {
            let mut candidate = start.clone();
            let full = RepairOptions::new(lambda);
            let options = if quick { RepairOptions { rounds: 1, ..full } } else { full };
            repair.refit(&mut candidate, options)?;
            let drift = trial.drift(&candidate)?;
            // Nothing is better than what cannot be compared.
            if built.drift.is_none_or(|best| !(best <= drift)) {
                built = Built { model: candidate, lambda: Some(lambda), drift: Some(drift), ..built };
            }
        }
        Ok(built)
    }

    /// Apply the patch that takes out an activation.
    pub fn apply(
        &self,
        graph: &mut Graph,
        patch: Result<Patch, Decline>,
        place: usize,
    ) -> Result<(), PassError> {
        let name = &self.places[place].activation.name;
        let refused = |why: String| PassError::refused(format!("`{name}` cannot go: {why}"));
        let patch = patch.map_err(|decline| match decline {
            Decline::Because(why) => refused(why),
            Decline::Mismatch => refused("nothing can stand in its place".into()),
        })?;
        graph.apply(patch).map(drop).map_err(|e| refused(e.to_string()))
    }

    /// Lines into layers, and layers into layers; how often the latter.
    fn fold(&self, model: &mut Model) -> Result<u64, PassError> {
        model.infer()?;
        let by = self.pass.by;
        let folds = format!("fold-bn,fold-scale,fold-linear{{by={by}}}");
        let report = self.scratch.run(&folds, model)?;
        let mut composed: u64 =
            report.steps.iter().filter(|s| s.pass == "fold-linear").map(|s| s.patches).sum();
        if self.pass.crop {
            let mut cx = self.scratch.context();
            cx.rewrite(model, &["Conv"], cropped)?;
            composed += cx.report.patches;
        }
        self.scratch.run("drop-dead", model)?;
        model.infer()?;
        Ok(composed)
    }

    /// What to fit anew, in order: every layer that an activation was removed behind or anywhere before.
    fn refits(&self, changed: &Graph, removed: &[usize], stands: &HashMap<String, ValueId>) -> Vec<Refit> {
        let original = &self.model.graph;
        let gone: HashSet<NodeId> =
            removed.iter().flat_map(|&i| self.places[i].activation.nodes.iter().copied()).collect();
        let behind = dependents(original, &gone);
        // The value of the original that one of the candidate is meant to be, if anything changed for it.
        let meant = |v: ValueRef<'_>| {
            let value = stands.get(v.name()).copied().or_else(|| original.find(v.name()))?;
            (behind.contains(&value) && original.value_ref(value).shape() == v.shape()).then_some(value)
        };
        let refit = |&node: &NodeId| {
            let linear: Linear = Linear::owned(changed, node)?;
            let output = changed.value_ref(linear.output);
            let sum = output.sole_user().ok().filter(|at| at.is("Add")).and_then(|at| at.output().ok());
            let (target, sum) = (meant(output), sum.and_then(meant));
            // Without a bias the logits' mean is lost, and with it more than a fit gives.
            let last = output.value().is_output() && !linear.takes_bias();
            let target = target.or(sum).filter(|_| !last)?;
            Some(Refit { node, target, sum, kept: None, free: None, output_transform: false })
        };
        changed.nodes().iter().filter_map(refit).collect()
    }
}
