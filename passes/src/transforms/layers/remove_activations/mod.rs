//! The `remove-activations` pass: options, search and report.

mod build;
mod collapse;
mod replace;
mod score;
#[cfg(test)]
mod tests;

use crate::{
    analysis::{
        activation::{Activation, activations, channel_axis, none_selected},
        calibration::{JointMoments, floats, observe},
        composition::By,
        evaluation::{HeldOut, QualityLimits},
        prepare::prepare,
        samples::Split,
    },
    framework::{Context, Counter, Hint, Pass, PassError, Scratch, Tools, glob::matches},
    pass,
};
use build::CandidateModel;
use pare_graph::{Graph, Model};
use replace::Line;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The score of an activation; the lowest is removed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationCriterion {
    /// The distance of the slopes from 1.
    Slope,
    /// The entropy of the signs of the inputs.
    Entropy,
    /// The same entropy, from mean and deviation.
    Tlc,
    /// The drift of the outputs when units become 0 or the identity.
    TlcAblation,
    /// The drift of the outputs with the least-squares lines in place of the activation.
    Loss,
}

impl ActivationCriterion {
    fn needs_samples(self) -> bool {
        self != Self::Slope
    }

    fn name(self) -> &'static str {
        match self {
            Self::Slope => "slope",
            Self::Entropy => "entropy",
            Self::Tlc => "tlc",
            Self::TlcAblation => "tlc-ablation",
            Self::Loss => "loss",
        }
    }
}

/// The replacement of an activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replacement {
    /// The least-squares line of each channel.
    #[default]
    Affine,
    /// The identity.
    Identity,
}

pass! {
    /// Remove activations and compose the layers around them.
    ///
    /// An activation `y = f(z)` is replaced by its least-squares line on the samples, channel by channel:
    /// `a = Cov(z, f(z))/Var(z)`, `c = E f(z) − a·E z`. The line is folded into the adjacent layers, these
    /// are composed (see `fold-linear`), and every affected layer is refitted in closed form to reproduce the
    /// values of the original. The end of a network without activations becomes one matrix.
    ///
    /// The criterion is evaluated again after each removal (`rescore`). The target is `count`, `below`, a
    /// limit, or `names`; limits are checked on held-out samples. Declines activations whose channels are
    /// unknown.
    #[pass("remove-activations", Lossy)]
    pub struct RemoveActivations {
        /// The number of activations to remove.
        pub count: Option<usize> = None,
        /// Remove activations with a score below this.
        pub below: Option<f64> = None,
        /// The largest drift of the outputs (mean KL divergence of class scores, else squared error over
        /// variance).
        pub max_drift: Option<f64> = None,
        /// The smallest share of samples that keep their class.
        pub min_agreement: Option<f64> = None,
        /// The largest drop of accuracy; needs `labels`.
        pub max_accuracy_drop: Option<f64> = None,
        /// Only activations with these names, `*` as a wildcard; all of them if there is no other target.
        pub names: Vec<String> = vec![],
        /// The score: `loss` (measured drift of the outputs), `entropy` (of signs; EASIER), `tlc` (the same
        /// of a Gaussian with the batch norm's β and γ, or the samples' mean and deviation), `tlc-ablation`,
        /// `slope` (distance from 1). By default `loss` with samples, else `slope`.
        pub criterion: Option<ActivationCriterion> = None,
        /// The replacement: `affine` or `identity`. By default `affine` with samples.
        pub replacement: Option<Replacement> = None,
        /// Refit affected layers. By default with samples.
        pub refit: Option<bool> = None,
        /// The criterion for composing layers: see `fold-linear`.
        pub by: By = By::Macs,
        /// Where composing convolutions would cost more: use one with the larger kernel and refit it (see
        /// `crop-kernels`).
        pub crop: bool = false,
        /// Evaluate the criterion again after each removal.
        pub rescore: bool = true,
    }
}

impl RemoveActivations {
    fn limits(&self) -> QualityLimits {
        let Self { max_drift, min_agreement, max_accuracy_drop, .. } = *self;
        QualityLimits { max_drift, min_agreement, max_accuracy_drop }
    }

    /// Returns true if activations are removed in the order of their scores.
    fn is_ranked(&self) -> bool {
        self.count.is_some() || self.below.is_some() || self.limits().any()
    }
}

impl Pass for RemoveActivations {
    fn validate(&self) -> Result<(), String> {
        if self.count == Some(0) {
            return Err("`count` is at least 1".into());
        }
        if self.crop && self.refit == Some(false) {
            return Err("`crop` needs `refit`".into());
        }
        self.limits().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if !self.is_ranked() && self.names.is_empty() {
            let hint = "set `count`, `below`, `max_drift`, `min_agreement`, `max_accuracy_drop` or `names`";
            return Err(PassError::refused_with("it needs a target", hint));
        }
        // Read before batch norms are folded.
        let norm_ratios = score::batch_norm_ratios(&model.graph);
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let search = ActivationSearch::new(self, model, norm_ratios, cx)?;
        if let Some(candidate) = search.run(cx)?
            && cx.permit()
        {
            *model = candidate.model;
        }
        Ok(())
    }
}

/// An activation that can be removed.
struct ActivationSite {
    activation: Activation,
    /// The name of its output, which is the same in every candidate.
    output: String,
    /// The channel axis.
    axis: usize,
    /// The number of channels.
    channels: usize,
}

/// The search for the activations to remove.
struct ActivationSearch<'p, 't> {
    pass: &'p RemoveActivations,
    tools: Tools<'t>,
    scratch: Scratch<'t>,
    criterion: ActivationCriterion,
    refit: bool,
    /// The original, prepared.
    model: Model,
    sites: Vec<ActivationSite>,
    /// The replacement of each activation, by channel.
    lines: Vec<Vec<Line>>,
    /// `β/|γ|` of the batch norms before activations, by the names of their outputs.
    norm_ratios: HashMap<String, Vec<f64>>,
    split: Split,
    held_out: Option<HeldOut<'t>>,
}

impl<'p, 't> ActivationSearch<'p, 't> {
    fn new(
        pass: &'p RemoveActivations,
        model: &Model,
        norm_ratios: HashMap<String, Vec<f64>>,
        cx: &mut Context<'t>,
    ) -> Result<Self, PassError> {
        let sampled = cx.tools.samples.is_some() && cx.tools.engine.is_some();
        let criterion = pass.criterion.unwrap_or(if sampled {
            ActivationCriterion::Loss
        } else {
            ActivationCriterion::Slope
        });
        let replacement =
            pass.replacement.unwrap_or(if sampled { Replacement::Affine } else { Replacement::Identity });
        let refit = pass.refit.unwrap_or(sampled);
        if pass.crop && !refit {
            return Err(PassError::refused_with(
                "`crop` needs samples to fit to",
                Hint::NeedsSamples { otherwise: None },
            ));
        }
        let needs = pass.is_ranked() && criterion.needs_samples()
            || replacement == Replacement::Affine
            || refit
            || pass.limits().any();
        let split = Split::when(needs, cx.tools, "criterion=slope,replacement=identity,refit=false")?;
        let measures = sampled && split.suffices();
        let held_out = measures.then(|| HeldOut::new(cx.tools, model, split.held_out.clone())).transpose()?;
        let mut search = Self {
            pass,
            tools: cx.tools,
            scratch: cx.scratch(),
            criterion,
            refit,
            model: model.clone(),
            sites: find_sites(pass, &model.graph, cx)?,
            lines: vec![],
            norm_ratios,
            split,
            held_out,
        };
        search.lines = match replacement {
            Replacement::Identity => search.sites.iter().map(|s| vec![Line::IDENTITY; s.channels]).collect(),
            Replacement::Affine => {
                let all: Vec<_> = (0..search.sites.len()).collect();
                let moments = search.moments(&search.model, &all)?;
                moments.iter().map(|m| m.channels.iter().map(Line::fit).collect()).collect()
            }
        };
        Ok(search)
    }

    /// Removes activations in the order of their scores until the target is reached.
    fn run(&self, cx: &mut Context<'_>) -> Result<Option<CandidateModel>, PassError> {
        let pass = self.pass;
        let limits = pass.limits();
        if !pass.is_ranked() {
            let all: Vec<_> = (0..self.sites.len()).collect();
            return self.finish(&all, None, cx).map(Some);
        }
        let most = pass.count.unwrap_or(usize::MAX).min(self.sites.len());
        if pass.count.is_some_and(|count| count > most) {
            cx.report.notes.push(format!("only {most} activations can be removed"));
        }
        let (mut removed, mut current): (Vec<usize>, Option<CandidateModel>) = (vec![], None);
        let mut scores = HashMap::new();
        while removed.len() < most {
            cx.tools.progress.step("activations", removed.len() as u64, most as u64);
            let remaining: Vec<_> = (0..self.sites.len()).filter(|i| !removed.contains(i)).collect();
            if scores.is_empty() || pass.rescore {
                let model = current.as_ref().map_or(&self.model, |candidate| &candidate.model);
                scores = self.scores(model, &remaining, cx)?;
            }
            let Some((next, score)) = self.lowest(&scores, &remaining, removed.is_empty(), cx) else { break };
            let name = &self.sites[next].activation.name;
            removed.push(next);
            if limits.any() || pass.rescore && removed.len() < most {
                // A candidate that is checked against a limit is built in full, since it may be the result.
                let candidate = self.build(&removed, !limits.any())?;
                if let Some(held_out) = self.held_out.as_ref().filter(|_| limits.any())
                    && let Some(why) = limits.broken(&held_out.measure(&candidate.model)?)
                {
                    cx.report.notes.push(format!("`{name}` is kept: {why}"));
                    removed.pop();
                    break;
                }
                current = Some(candidate);
            }
            cx.detail(format!("{} of `{name}`", self.criterion.name()), score);
        }
        if removed.is_empty() {
            return Ok(None);
        }
        self.finish(&removed, current.filter(|_| limits.any()), cx).map(Some)
    }

    /// The activation with the lowest score, if that is below `below`. If it is the first one, the reason why
    /// there is none is reported.
    fn lowest(
        &self,
        scores: &HashMap<usize, f64>,
        remaining: &[usize],
        first: bool,
        cx: &mut Context<'_>,
    ) -> Option<(usize, f64)> {
        let by = self.criterion.name();
        let scored = remaining.iter().filter_map(|i| Some((*i, *scores.get(i)?)));
        let lowest = scored.min_by(|a, b| a.1.total_cmp(&b.1));
        let why = match (lowest, self.pass.below) {
            (None, _) => format!("no activation has a score by `{by}`"),
            (Some((next, score)), Some(limit)) if !(score < limit) => {
                let name = &self.sites[next].activation.name;
                format!("the lowest {by} is {score:.3e}, of `{name}`, and not below {limit}")
            }
            _ => return lowest,
        };
        if first {
            cx.decline(why);
        }
        None
    }

    /// The result without the activations `removed`, with its report; `built` if it is already built.
    fn finish(
        &self,
        removed: &[usize],
        built: Option<CandidateModel>,
        cx: &mut Context<'_>,
    ) -> Result<CandidateModel, PassError> {
        let built = built.map_or_else(|| self.build(removed, false), Ok)?;
        let counter = Counter::new("activation removed", "activations removed");
        cx.count_of(counter, removed.len() as u64, self.sites.len() as u64);
        cx.count(Counter::new("layer composed", "layers composed"), built.composed);
        cx.count(
            Counter::new("linear end replaced by matrices", "linear ends replaced by matrices"),
            built.collapsed,
        );
        if let Some(lambda) = built.lambda {
            cx.detail("ridge λ of the refit", lambda);
        }
        if let Some(drift) = built.drift {
            cx.figure("drift", drift);
        }
        Ok(built)
    }

    /// The moments of inputs and outputs of these activations in `model`.
    fn moments(&self, model: &Model, sites: &[usize]) -> Result<Vec<JointMoments>, PassError> {
        let graph = &model.graph;
        let mut wanted = vec![];
        for &i in sites {
            let found = self.find(graph, i)?;
            wanted.extend([found.input, found.output]);
        }
        let mut moments: Vec<_> = sites.iter().map(|&i| JointMoments::new(self.sites[i].channels)).collect();
        observe(self.tools, model, &wanted, self.split.statistics(), "statistics", &mut |_, values| {
            for ((moments, &i), xy) in moments.iter_mut().zip(sites).zip(values.chunks_exact(2)) {
                moments.add(&floats(&xy[0])?, &floats(&xy[1])?, xy[0].shape(), self.sites[i].axis);
            }
            Ok(())
        })?;
        for (moments, &i) in moments.iter().zip(sites) {
            if !moments.is_finite() {
                let name = &self.sites[i].activation.name;
                return Err(PassError::refused(format!("`{name}` is not finite on the samples")));
            }
        }
        Ok(moments)
    }

    /// An activation in a candidate that still has it.
    fn find(&self, graph: &Graph, site: usize) -> Result<Activation, PassError> {
        let output = &self.sites[site].output;
        let matches = |a: &Activation| graph.value(a.output).name == *output;
        let missing = || PassError::refused(format!("`{output}` is no longer an activation"));
        activations(graph).into_iter().find(matches).ok_or_else(missing)
    }
}

/// The activations that can be removed.
fn find_sites(
    pass: &RemoveActivations,
    graph: &Graph,
    cx: &mut Context<'_>,
) -> Result<Vec<ActivationSite>, PassError> {
    let all = activations(graph);
    let example = all.first().map(|a| a.name.clone());
    let mut sites = vec![];
    for activation in all {
        let output = graph.value(activation.output).name.clone();
        let named = |p: &String| matches(p, &activation.name) || matches(p, &output);
        if !pass.names.is_empty() && !pass.names.iter().any(named) {
            continue;
        }
        let x = graph.value_ref(activation.input);
        let axis = channel_axis(x);
        let channels = axis.and_then(|axis| x.shape()?.get(axis)?.size());
        match axis.zip(channels) {
            Some((axis, channels)) => sites.push(ActivationSite { activation, output, axis, channels }),
            None => cx.decline(format!("the channels of `{}` are unknown", activation.name)),
        }
    }
    if sites.is_empty() {
        let unmatched = "no activation can be removed or has a matching name";
        return Err(none_selected(example, "there is no activation", unmatched));
    }
    Ok(sites)
}
