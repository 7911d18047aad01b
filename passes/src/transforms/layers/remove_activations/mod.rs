//! The pass: which activations go, one after another.

mod build;
mod collapse;
mod replace;
mod score;
#[cfg(test)]
mod tests;

use crate::analysis::samples::Split;
use crate::{
    analysis::{
        activation::{Activation, activations, channel_axis},
        calibration::JointMoments,
        composition::By,
        evaluation::{HeldOut, QualityLimits},
        prepare::prepare,
    },
    framework::{Context, Counter, Hint, Pass, PassError, Scratch, glob::matches},
    pass,
};
use build::Built;
use pare_graph::{Graph, Model};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What makes an activation dispensable; the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// Slopes near 1.
    Slope,
    /// Units that are nearly always on, or nearly always off.
    Entropy,
    /// The same, from mean and deviation alone.
    Tlc,
    /// What the outputs lose without it, its units switched on or off for good.
    TlcAblation,
    /// What the outputs lose when the nearest lines take its place.
    Loss,
}

impl Criterion {
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

/// What takes the place of an activation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Replacement {
    /// The nearest line of each channel.
    #[default]
    Affine,
    /// Nothing.
    Identity,
}

pass! {
    /// Remove activations, and make one layer of those that stood apart.
    ///
    /// Of an activation `y = f(z)` the line nearest to it on the samples is left, channel by channel:
    /// `a = Cov(z, f(z))/Var(z)`, `c = E f(z) − a·E z`. It goes into the layers beside it, these are composed (see
    /// `fold-linear`), and every layer that something changes for is fitted anew to what the original computes:
    /// in closed form, without training. An end of the network with no activation left becomes one matrix.
    ///
    /// Which go is asked again after each (`rescore`), of the model that is left. Say how many by `count`, `below`, a limit, or
    /// `names`. A limit is held on samples that nothing was fitted to. Declines activations whose channels are not known.
    #[pass("remove-activations", Lossy)]
    pub struct RemoveActivations {
        /// How many to remove.
        pub count: Option<usize> = None,
        /// Remove while the criterion is below this.
        pub below: Option<f64> = None,
        /// Remove while the outputs drift no further (mean KL divergence of class scores, else squared error by variance).
        pub max_drift: Option<f64> = None,
        /// Remove while this share of the samples keeps its class.
        pub min_agreement: Option<f64> = None,
        /// Remove while accuracy drops no further; needs `labels`.
        pub max_accuracy_drop: Option<f64> = None,
        /// Only activations with these names, `*` for anything; all of them, if nothing else says how many.
        pub names: Vec<String> = vec![],
        /// What goes first: `loss` (of the outputs, by trying), `entropy` (of on and off; EASIER), `tlc` (the same of a Gaussian
        /// with the batch norm's β and γ, or the samples' mean and deviation), `tlc-ablation`, `slope` (nearest to 1). By
        /// default `loss` with samples, else `slope`.
        pub criterion: Option<Criterion> = None,
        /// What takes its place: `affine` or `identity`. By default `affine` with samples.
        pub replacement: Option<Replacement> = None,
        /// Whether layers are fitted anew. By default with samples.
        pub refit: Option<bool> = None,
        /// What decides whether composing layers pays: see `fold-linear`.
        pub by: By = By::Macs,
        /// Where composing would cost more than it saves: one layer with the larger of both kernels, fitted in the composite's place.
        pub crop: bool = false,
        /// Ask the criterion again after each removal.
        pub rescore: bool = true,
    }
}

impl RemoveActivations {
    fn limits(&self) -> QualityLimits {
        let Self { max_drift, min_agreement, max_accuracy_drop, .. } = *self;
        QualityLimits { max_drift, min_agreement, max_accuracy_drop }
    }
}

impl Pass for RemoveActivations {
    fn validate(&self) -> Result<(), String> {
        if self.count == Some(0) {
            return Err("`count` is at least 1".into());
        }
        if self.crop && self.refit == Some(false) {
            return Err("`crop` leaves what only a fit makes useful: it goes with `refit`".into());
        }
        self.limits().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let open = self.count.is_none() && self.below.is_none() && !self.limits().any();
        if open && self.names.is_empty() {
            let hint = "say how many: `count`, `below`, `max_drift`, `min_agreement`, `max_accuracy_drop` or `names`";
            return Err(PassError::refused_with("it needs a target", hint));
        }
        // Batch norms are about to be folded; what they say about signs would be lost.
        let norms = score::batch_norms(&model.graph);
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let work = Work::new(self, model, norms, cx)?;
        if let Some(built) = work.search(cx)?
            && cx.permit()
        {
            *model = built.model;
        }
        Ok(())
    }
}

/// An activation that may go.
struct Place {
    activation: Activation,
    /// The name of its output, which stays the same in every candidate.
    output: String,
    /// Where its channels lie, and how many there are.
    axis: usize,
    channels: usize,
}

struct Work<'p, 't> {
    pass: &'p RemoveActivations,
    tools: crate::framework::Tools<'t>,
    scratch: Scratch<'t>,
    criterion: Criterion,
    refit: bool,
    /// The original, prepared.
    model: Model,
    places: Vec<Place>,
    /// The nearest line of each channel of each activation.
    lines: Vec<Vec<(f64, f64)>>,
    /// `β/|γ|` of the batch norms before activations, by the names of their outputs.
    norms: HashMap<String, Vec<f64>>,
    split: Split,
    trial: Option<HeldOut<'t>>,
}

impl<'p, 't> Work<'p, 't> {
    fn new(
        pass: &'p RemoveActivations,
        model: &Model,
        norms: HashMap<String, Vec<f64>>,
        cx: &mut Context<'t>,
    ) -> Result<Self, PassError> {
        let sampled = cx.tools.samples.is_some() && cx.tools.engine.is_some();
        let criterion = pass.criterion.unwrap_or(if sampled { Criterion::Loss } else { Criterion::Slope });
        let replacement =
            pass.replacement.unwrap_or(if sampled { Replacement::Affine } else { Replacement::Identity });
        let refit = pass.refit.unwrap_or(sampled);
        let ranked = pass.count.is_some() || pass.below.is_some() || pass.limits().any();
        if pass.crop && !refit {
            return Err(PassError::refused_with(
                "`crop` needs samples to fit to",
                Hint::NeedsSamples { otherwise: None },
            ));
        }
        let needs = ranked && criterion.needs_samples()
            || replacement == Replacement::Affine
            || refit
            || pass.limits().any();
        let split = Split::when(needs, cx.tools, "criterion=slope,replacement=identity,refit=false")?;
        let measures = sampled && split.suffices();
        let trial = measures.then(|| HeldOut::new(cx.tools, model, split.held_out.clone())).transpose()?;
        let places = choose(pass, &model.graph, cx)?;
        let (tools, scratch, model) = (cx.tools, cx.scratch(), model.clone());
        let mut work = Self {
            pass,
            tools,
            scratch,
            criterion,
            refit,
            model,
            places,
            lines: vec![],
            norms,
            split,
            trial,
        };
        work.lines = match replacement {
            Replacement::Identity => work.places.iter().map(|p| vec![(1.0, 0.0); p.channels]).collect(),
            Replacement::Affine => {
                let all: Vec<_> = (0..work.places.len()).collect();
                let pairs = work.pairs(&work.model, &all)?;
                pairs
                    .iter()
                    .map(|p| {
                        p.channels.iter().map(crate::analysis::calibration::ChannelMoments::line).collect()
                    })
                    .collect()
            }
        };
        Ok(work)
    }

    /// Remove one after another, until what was asked for is there.
    fn search(&self, cx: &mut Context<'_>) -> Result<Option<Built>, PassError> {
        let pass = self.pass;
        let limits = pass.limits();
        let ranked = pass.count.is_some() || pass.below.is_some() || limits.any();
        if !ranked {
            let all: Vec<_> = (0..self.places.len()).collect();
            return self.finish(&all, None, cx).map(Some);
        }
        let most = pass.count.unwrap_or(usize::MAX).min(self.places.len());
        if pass.count.is_some_and(|count| count > most) {
            cx.report.notes.push(format!("there are only {most} activations that could go"));
        }
        let (mut removed, mut current): (Vec<usize>, Option<Built>) = (vec![], None);
        let mut scores = HashMap::new();
        while removed.len() < most {
            cx.tools.progress.step("activations", removed.len() as u64, most.min(self.places.len()) as u64);
            let left: Vec<_> = (0..self.places.len()).filter(|i| !removed.contains(i)).collect();
            if scores.is_empty() || pass.rescore {
                let model = current.as_ref().map_or(&self.model, |built| &built.model);
                scores = self.scores(model, &left, cx)?;
            }
            let best = left.iter().filter_map(|i| Some((*i, *scores.get(i)?)));
            let Some((next, score)) = best.min_by(|a, b| a.1.total_cmp(&b.1)) else {
                if removed.is_empty() {
                    cx.decline(format!("no activation has a score by `{}`", self.criterion.name()));
                }
                break;
            };
            if let Some(limit) = pass.below.filter(|&limit| !(score < limit)) {
                if removed.is_empty() {
                    let (by, name) = (self.criterion.name(), &self.places[next].activation.name);
                    cx.decline(format!("the least {by} is {score:.3e}, of `{name}`, and not below {limit}"));
                }
                break;
            }
            removed.push(next);
            if limits.any() || pass.rescore && removed.len() < most {
                // What is held to a limit is what will be handed out.
                let built = self.build(&removed, !limits.any())?;
                if let Some(trial) = self.trial.as_ref().filter(|_| limits.any())
                    && let Some(why) = limits.broken(&trial.measure(&built.model)?)
                {
                    cx.report.notes.push(format!("`{}` stays: {why}", self.places[next].activation.name));
                    removed.pop();
                    break;
                }
                current = Some(built);
            }
            let name = &self.places[next].activation.name;
            cx.detail(format!("{} of `{name}`", self.criterion.name()), score);
        }
        if removed.is_empty() {
            return Ok(None);
        }
        self.finish(&removed, current.filter(|_| limits.any()), cx).map(Some)
    }

    /// Without these, as it is handed out; perhaps it has been built already.
    fn finish(
        &self,
        removed: &[usize],
        built: Option<Built>,
        cx: &mut Context<'_>,
    ) -> Result<Built, PassError> {
        let built = built.map_or_else(|| self.build(removed, false), Ok)?;
        cx.count(Counter::new("activation removed", "activations removed"), removed.len() as u64);
        cx.count(Counter::new("layer composed", "layers composed"), built.composed);
        if let Some(lambda) = built.lambda {
            cx.figure("refitted at λ", lambda);
        }
        if let Some(drift) = built.drift {
            cx.figure("drift", drift);
        }
        Ok(built)
    }

    /// What goes into each of these activations and comes out, in a model where they are left.
    fn pairs(&self, model: &Model, places: &[usize]) -> Result<Vec<JointMoments>, PassError> {
        let graph = &model.graph;
        let mut wanted = vec![];
        for &i in places {
            let found = self.find(graph, i)?;
            wanted.extend([found.input, found.output]);
        }
        let mut pairs: Vec<_> = places.iter().map(|&i| JointMoments::new(self.places[i].channels)).collect();
        let range = self.split.statistics();
        crate::analysis::calibration::observe(
            self.tools,
            model,
            &wanted,
            range,
            "statistics",
            &mut |_, values| {
                for ((pairs, &i), xy) in pairs.iter_mut().zip(places).zip(values.chunks_exact(2)) {
                    let (x, y) = (
                        crate::analysis::calibration::floats(&xy[0])?,
                        crate::analysis::calibration::floats(&xy[1])?,
                    );
                    pairs.add(&x, &y, xy[0].shape(), self.places[i].axis);
                }
                Ok(())
            },
        )?;
        for (pairs, &i) in pairs.iter().zip(places) {
            if !pairs.is_finite() {
                let name = &self.places[i].activation.name;
                return Err(PassError::refused(format!("`{name}` is not finite on the samples")));
            }
        }
        Ok(pairs)
    }

    /// An activation in a candidate that still has it.
    fn find(&self, graph: &Graph, place: usize) -> Result<Activation, PassError> {
        let output = &self.places[place].output;
        let there = |a: &Activation| graph.value(a.output).name == *output;
        let gone = || PassError::refused(format!("`{output}` is no activation any more"));
        activations(graph).into_iter().find(there).ok_or_else(gone)
    }
}

/// The activations that may go.
fn choose(pass: &RemoveActivations, graph: &Graph, cx: &mut Context<'_>) -> Result<Vec<Place>, PassError> {
    let all = activations(graph);
    let example = all.first().map(|a| a.name.clone());
    let mut places = vec![];
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
            Some((axis, channels)) => places.push(Place { activation, output, axis, channels }),
            None => cx.decline(format!("`{}` stays: its channels are not known", activation.name)),
        }
    }
    match (places.is_empty(), example) {
        (false, _) => Ok(places),
        (true, None) => Err(PassError::refused("there is no activation")),
        (true, Some(example)) => Err(PassError::refused_with(
            "no activation can go, or has a name that matches",
            format!("activations are named after their nodes, such as `{example}`"),
        )),
    }
}
