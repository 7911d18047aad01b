//! Construction of a candidate: activations replaced by lines, layers composed and refitted.

use super::{ActivationSearch, replace::replace};
use crate::{
    analysis::{
        linear::Linear,
        repair::{Refit, Repair, RepairOptions, dependents},
    },
    framework::PassError,
};
use pare_graph::{Decline, Graph, Model, NodeId, Patch, ValueId, ValueRef};
use std::collections::{HashMap, HashSet};

/// A model without some activations.
pub struct CandidateModel {
    pub model: Model,
    /// The number of compositions of layers.
    pub composed: u64,
    /// The number of linear ends that were replaced by matrices.
    pub collapsed: u64,
    /// The ridge parameter of the refit, if that reduced the drift.
    pub lambda: Option<f64>,
    /// The drift on the held-out samples.
    pub drift: Option<f64>,
}

/// Ridge parameters to choose from by the drift on held-out samples. The first suits many samples, the last
/// few.
const LAMBDAS: [f64; 3] = [1e-3, 1e-2, 1e-1];
/// Samples for a refit: 20,000 rows for a layer with some hundred inputs.
const REFIT_SAMPLES: usize = 640;
/// Samples for a quick refit.
const QUICK_REFIT_SAMPLES: usize = 192;

impl ActivationSearch<'_, '_> {
    /// The original without these activations. A quick build suffices for scoring further removals.
    pub fn build(&self, removed: &[usize], quick: bool) -> Result<CandidateModel, PassError> {
        let mut removed = removed.to_vec();
        removed.sort_unstable();
        let mut model = self.model.clone();
        // The original values that inputs of removed activations correspond to, by name.
        let mut corresponding = HashMap::new();
        for &i in &removed {
            let found = self.find(&model.graph, i)?;
            let input = model.graph.value(found.input).name.clone();
            let patch = replace(&model.graph, &found, self.sites[i].axis, &self.lines[i]);
            self.apply(&mut model.graph, patch, i)?;
            if model.graph.find(&self.sites[i].output).is_none() {
                corresponding.insert(input, self.sites[i].activation.output);
            }
        }
        let composed = self.compose(&mut model)?;
        let mut candidate = CandidateModel { model, composed, collapsed: 0, lambda: None, drift: None };
        let Some(held_out) = &self.held_out else { return Ok(candidate) };
        candidate.drift = Some(held_out.drift(&candidate.model)?);
        if self.refit {
            candidate = self.refitted(candidate, &removed, &corresponding, quick)?;
        }
        if !quick {
            candidate.collapsed = self.collapse_linear_ends(&mut candidate.model)?;
            candidate.drift = Some(held_out.drift(&candidate.model)?);
        }
        Ok(candidate)
    }

    /// The candidate with refitted layers, if that reduces the drift on held-out samples.
    fn refitted(
        &self,
        mut best: CandidateModel,
        removed: &[usize],
        corresponding: &HashMap<String, ValueId>,
        quick: bool,
    ) -> Result<CandidateModel, PassError> {
        let Some(held_out) = &self.held_out else { return Ok(best) };
        let start = best.model.clone();
        let refits = self.refits(&start.graph, removed, corresponding);
        let (lambdas, samples) =
            if quick { (&LAMBDAS[1..2], QUICK_REFIT_SAMPLES) } else { (&LAMBDAS[..], REFIT_SAMPLES) };
        let samples = 0..self.split.fit.end.min(samples);
        let repair = Repair { tools: self.tools, original: &self.model, refits: &refits, samples };
        for &lambda in lambdas {
            let mut model = start.clone();
            let full = RepairOptions::new(lambda);
            let options = if quick { RepairOptions { rounds: 1, ..full } } else { full };
            repair.refit(&mut model, options)?;
            let drift = held_out.drift(&model)?;
            // A NaN drift of the candidate before is replaced.
            if best.drift.is_none_or(|best| !(best <= drift)) {
                best = CandidateModel { model, lambda: Some(lambda), drift: Some(drift), ..best };
            }
        }
        Ok(best)
    }

    /// Applies the patch that removes an activation.
    pub fn apply(
        &self,
        graph: &mut Graph,
        patch: Result<Patch, Decline>,
        site: usize,
    ) -> Result<(), PassError> {
        let name = &self.sites[site].activation.name;
        let refused = |why: String| PassError::refused(format!("`{name}` cannot be removed: {why}"));
        let patch = patch.map_err(|decline| match decline {
            Decline::Because(why) => refused(why),
            Decline::Mismatch => refused("it has no replacement".into()),
        })?;
        graph.apply(patch).map(drop).map_err(|e| refused(e.to_string()))
    }

    /// Folds lines into layers and composes layers. Returns the number of compositions.
    fn compose(&self, model: &mut Model) -> Result<u64, PassError> {
        model.infer()?;
        let crop = if self.pass.crop { ",crop-kernels" } else { "" };
        let by = self.pass.by;
        let pipeline = format!("fold-bn,fold-scale,fold-linear{{by={by}}}{crop},drop-dead");
        let report = self.scratch.run(&pipeline, model)?;
        model.infer()?;
        let composed = |name| report.steps.iter().map(|step| step.count(name)).sum::<u64>();
        Ok(composed("linear layers composed") + composed("composed kernels cropped"))
    }

    /// The layers to refit, in order: all layers before and after which an activation was removed.
    fn refits(
        &self,
        changed: &Graph,
        removed: &[usize],
        corresponding: &HashMap<String, ValueId>,
    ) -> Vec<Refit> {
        let original = &self.model.graph;
        let removed: HashSet<NodeId> =
            removed.iter().flat_map(|&i| self.sites[i].activation.nodes.iter().copied()).collect();
        let affected = dependents(original, &removed);
        // The value of the original that a value of the candidate should reproduce, if it is affected.
        let wanted = |v: ValueRef<'_>| {
            let value = corresponding.get(v.name()).copied().or_else(|| original.find(v.name()))?;
            (affected.contains(&value) && original.value_ref(value).shape() == v.shape()).then_some(value)
        };
        let refit = |&node: &NodeId| {
            let linear = Linear::owned(changed, node)?;
            let output = changed.value_ref(linear.output);
            let sum = output.sole_user().ok().filter(|at| at.is("Add")).and_then(|at| at.output().ok());
            let (target, sum) = (wanted(output), sum.and_then(wanted));
            // Without a bias the fit cannot reproduce the mean of the logits, which costs more than it gains.
            let last = output.value().is_output() && !linear.takes_bias();
            let target = target.or(sum).filter(|_| !last)?;
            Some(Refit { node, target, sum, kept: None, free: None, output_transform: false })
        };
        changed.nodes().iter().filter_map(refit).collect()
    }
}
