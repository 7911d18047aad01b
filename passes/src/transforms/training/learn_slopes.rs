use super::distill::{Companion, Distill, DistillLoss, Training, Weights};
use crate::{
    analysis::{
        activation::{Activation, activations, none_selected},
        evaluation::{Quality, QualityLimits},
        weighted_layers::NameFilter,
    },
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{DataType, Decline, Graph, Model, Node, Patch, Tensor, expect};

pass! {
    /// Train slopes of activations towards 1, where they are the identity, and remove those that arrive.
    ///
    /// Each `Relu` becomes `y = x` where `x ≥ 0`, else `a·x`, with one slope `a` from 0 to 1, which starts at 0
    /// (*Layer Folding*, Dror et al. 2021). Slopes and weights are trained together, without labels, towards the
    /// outputs of the original: the loss is that of `distill` plus `λ Σ|1 − aᵖ|`, with `p = 1`, since for larger `p`
    /// it has no derivative at the start. `λ` rises to `penalty` over the first half of the steps, so that those
    /// slopes arrive first that the outputs need least.
    ///
    /// A slope that reaches `threshold` becomes 1 and stays; the weights are trained on. When `count` have arrived,
    /// or half of the steps are made, the others go back: those below `1 − threshold` to 0, and the rest are trained
    /// without the penalty and become `LeakyRelu`. What is missing of `count` then rises to 1 layer by layer during
    /// a quarter of the steps, the largest slopes first. Of the states since then the best on held-out samples is kept.
    ///
    /// Whenever a slope becomes 1, the limits are checked on held-out samples: a slope with which one is broken goes
    /// back, and no more arrive. Without limits, the outputs are to be closer to those of the original than constants.
    ///
    /// Activations of slope 1 are removed, and layers composed where that saves: see `fold-linear`.
    #[pass("learn-slopes", Lossy, trains = true)]
    pub struct LearnSlopes {
        /// The number of activations to remove. By default those that arrive.
        pub count: Option<usize> = None,
        /// The factor `λ` of the penalty, relative to the variance of the outputs.
        pub penalty: f64 = 0.25,
        /// The slope from which an activation is the identity.
        pub threshold: f64 = 0.9,
        /// The largest drift of the outputs (mean KL divergence of class scores, else squared error over variance). By
        /// default that of constant outputs.
        pub max_drift: Option<f64> = None,
        /// The smallest share of samples that keep their class.
        pub min_agreement: Option<f64> = None,
        /// The largest drop of accuracy; needs `labels`.
        pub max_accuracy_drop: Option<f64> = None,
        /// Only activations whose name matches one of these patterns, `*` for any text.
        pub only: Vec<String> = vec![],
        /// No activations whose name matches one of these patterns.
        pub except: Vec<String> = vec![],
        /// Passes over the samples: see `distill`.
        pub epochs: Option<f64> = None,
        /// The number of steps, in place of `epochs`.
        pub steps: Option<u64> = None,
        /// The largest number of minutes.
        pub minutes: Option<f64> = None,
        /// The distance from the original's outputs: see `distill`.
        pub loss: Option<DistillLoss> = None,
        /// The largest rate of the weights.
        pub rate: f64 = 1e-3,
        /// Samples in a step.
        pub batch: usize = 64,
    }
}

/// The first factor of the penalty, as a share of the last.
const LEAST_PENALTY: f64 = 1e-2;
/// Those that are missing rise during one in so many of the steps.
const RISE: u64 = 4;
/// A slope that nothing holds back arrives in one in so many of the steps in which the penalty rises.
const TRAVEL: f64 = 10.0;

impl Pass for LearnSlopes {
    fn validate(&self) -> Result<(), String> {
        if self.count == Some(0) {
            return Err("`count` is at least 1".into());
        }
        if !(self.penalty > 0.0 && self.penalty.is_finite()) {
            return Err(format!("`penalty` is a positive number, not {}", self.penalty));
        }
        if !(self.threshold > 0.5 && self.threshold <= 1.0) {
            return Err(format!("`threshold` is above 0.5 and at most 1, not {}", self.threshold));
        }
        self.limits().validate()?;
        self.training().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        let (mut student, prepared) = (model.clone(), "inline-functions,lift-constants");
        let is_prepared = cx.scratch().run(prepared, &mut student)?.patches() == 0;
        let original = student.clone();
        let sites = self.sites(&original.graph)?;
        if self.count.is_some_and(|count| count > sites.len()) {
            cx.report.notes.push(format!("only {} activations can be removed", sites.len()));
        }
        for site in &sites {
            site.replace(&mut student.graph, |patch| {
                (Node::new("PRelu"), Some(patch.constant(&site.slope, Tensor::vector(&[0.0_f32]))))
            })?;
        }
        student.infer()?;

        let options = self.training();
        let teacher = cx.tools.teacher.unwrap_or(&original);
        let Some(mut training) = Training::new(&options, teacher, &student, cx)? else { return Ok(()) };
        let known = sites.into_iter().filter_map(|site| Some((training.position(&site.slope)?, site)));
        let (indices, sites): (Vec<_>, Vec<_>) = known.unzip();
        indices.iter().for_each(|&index| training.hold(index));
        let limits = match self.limits() {
            limits if limits.any() => limits,
            none => QualityLimits { max_drift: Some(training.drift_of_constants()), ..none },
        };
        let mut slopes = Slopes::new(self, limits, indices);
        let Some(trained) = training.run_beside(&mut slopes, self.rate)? else {
            cx.decline("training ended before the slopes were decided");
            return Ok(());
        };
        let trained = slopes.better(trained, &training)?;
        for (why, position) in &slopes.withdrawn {
            cx.decline(format!("`{}` is kept: {why}", sites[*position].name));
        }
        if let Some(why) = limits.broken(&training.quality(&trained)?) {
            cx.decline(why);
            return Ok(());
        }

        if !is_prepared {
            cx.run_nested(prepared, model)?;
        }
        let decided: Vec<_> = slopes.indices.iter().map(|&i| f64::from(trained.values[i][0])).collect();
        if decided.iter().all(|a| *a == 0.0) {
            cx.decline("no slope arrived: all went back to 0");
            return Ok(());
        }
        let mut changed = model.clone();
        if let Some(patch) = training.patch(&changed.graph, &trained)? {
            changed.graph.apply(patch).map_err(PassError::from_error)?;
        }
        for (site, &slope) in sites.iter().zip(&decided).filter(|(_, slope)| **slope > 0.0) {
            site.replace(&mut changed.graph, |_| (Node::new("LeakyRelu").with("alpha", slope as f32), None))?;
            if slope < 1.0 {
                cx.detail(format!("slope of `{}`", site.name), slope);
            }
        }
        changed.infer()?;
        if !cx.permit() {
            return Ok(());
        }
        *model = changed;
        cx.figure("held-out drift", training.drift(&trained)?);
        let removed = decided.iter().filter(|slope| **slope == 1.0).count() as u64;
        let counter = Counter::new("activation removed", "activations removed");
        cx.count_of(counter, removed, sites.len() as u64);
        cx.run_nested("drop-redundant-activations,fold-linear", model)
    }
}

impl LearnSlopes {
    fn limits(&self) -> QualityLimits {
        let Self { max_drift, min_agreement, max_accuracy_drop, .. } = *self;
        QualityLimits { max_drift, min_agreement, max_accuracy_drop }
    }

    fn training(&self) -> Distill {
        let Self { epochs, steps, minutes, loss, batch, .. } = *self;
        Distill { epochs, steps, minutes, loss, batch, rate: Some(self.rate), ..Distill::default() }
    }

    /// The activations whose slopes are learned.
    fn sites(&self, graph: &Graph) -> Result<Vec<Site>, PassError> {
        let filter = NameFilter { only: &self.only, except: &self.except };
        let of = |activation: &Activation| {
            let at = activation.end(graph)?;
            let output = graph.value_ref(activation.output);
            let is_relu = at.is("Relu") && output.dtype() == Some(DataType::Float);
            let site = || Site {
                name: activation.name.clone(),
                slope: graph.fresh_name(&format!("{}_slope", output.name())),
                output: output.name().to_owned(),
            };
            is_relu.then(site)
        };
        let all: Vec<_> = activations(graph).iter().filter_map(of).collect();
        let example = all.first().map(|site| site.name.clone());
        let sites: Vec<_> = all.into_iter().filter(|s| filter.accepts(&s.name)).collect();
        if sites.is_empty() {
            return Err(none_selected(
                example,
                "there is no `Relu` of 32-bit floats",
                "no `Relu` has a matching name",
            ));
        }
        Ok(sites)
    }
}

/// A `Relu`.
struct Site {
    name: String,
    output: String,
    /// The name of its slope.
    slope: String,
}

impl Site {
    /// Replaces it by a node of the same input, and a constant if there is one.
    fn replace(
        &self,
        graph: &mut Graph,
        by: impl FnOnce(&mut Patch) -> (Node, Option<pare_graph::Ref>),
    ) -> Result<(), PassError> {
        let patch = (|| {
            let output = graph.value_ref(graph.find(&self.output).ok_or(Decline::Mismatch)?);
            let at = output.producer().ok_or(Decline::Mismatch)?;
            expect(at.is("Relu"))?;
            let mut patch = Patch::at(at);
            let (node, constant) = by(&mut patch);
            let inputs: Vec<_> = std::iter::once(at.input(0)?.into()).chain(constant).collect();
            let new = patch.node(&self.output, node, &inputs);
            patch.replace(output, new);
            Ok::<_, Decline>(patch)
        })();
        let lost =
            |_| PassError::refused(format!("`{}` is not the output of a `Relu` any more", self.output));
        graph.apply(patch.map_err(lost)?).map_err(PassError::from_error)?;
        Ok(())
    }
}

/// The slopes during training.
///
/// They go along the gradient of `L/λ + Σ(1 − a)`, clipped to ±1, by a step of a length that lets them arrive; this
/// keeps their pace while `λ` grows by orders of magnitude. Once released they go along that of `L/λ` alone, until
/// those that are due rise one after the other, linearly.
struct Slopes {
    /// The positions of the slopes among the weights.
    indices: Vec<usize>,
    /// The slopes that are decided.
    decided: Vec<Option<f32>>,
    count: Option<usize>,
    threshold: f64,
    penalty: f64,
    limits: QualityLimits,
    /// The last `λ`, and the step, once the others are released.
    released: Option<Release>,
    /// Slopes that are to rise to 1, the next one last.
    due: Vec<usize>,
    /// Slopes that became 1 since the quality was known, each with its value before.
    unchecked: Vec<(usize, f32)>,
    /// Slopes that went back, each with the limit that was broken.
    withdrawn: Vec<(String, usize)>,
}

/// The release of the slopes that have not arrived.
#[derive(Clone, Copy)]
struct Release {
    lambda: f64,
    step: u64,
    /// The number of slopes that were due, and the value from which the next one rises.
    due: usize,
    from: Option<f32>,
}

impl Slopes {
    fn new(pass: &LearnSlopes, limits: QualityLimits, indices: Vec<usize>) -> Self {
        let decided = vec![None; indices.len()];
        let LearnSlopes { count, threshold, penalty, .. } = *pass;
        let (released, due, unchecked, withdrawn) = (None, vec![], vec![], vec![]);
        Self { indices, decided, count, threshold, penalty, limits, released, due, unchecked, withdrawn }
    }

    fn arrived(&self) -> usize {
        self.decided.iter().filter(|slope| **slope == Some(1.0)).count()
    }

    /// The largest slopes that are not decided, as far as `count` permits, in descending order.
    fn largest(&self, slopes: &[f32]) -> Vec<usize> {
        let mut open: Vec<_> = (0..slopes.len()).filter(|&k| self.decided[k].is_none()).collect();
        open.sort_by(|&a, &b| slopes[b].total_cmp(&slopes[a]));
        open.truncate(self.count.unwrap_or(usize::MAX).saturating_sub(self.arrived()));
        open
    }

    fn arrive(&mut self, slope: usize, from: f32) {
        self.decided[slope] = Some(1.0);
        self.unchecked.push((slope, from));
    }

    /// Lets slopes that have not arrived go; with a count, those that are missing are due.
    fn release(&mut self, lambda: f64, step: u64, slopes: &[f32]) {
        if self.count.is_some() && self.withdrawn.is_empty() {
            self.due = self.largest(slopes);
            self.due.reverse();
        }
        for (k, slope) in slopes.iter().enumerate() {
            let is_open = self.decided[k].is_none() && !self.due.contains(&k);
            if is_open && f64::from(*slope) < 1.0 - self.threshold {
                self.decided[k] = Some(0.0);
            }
        }
        self.released = Some(Release { lambda, step, due: self.due.len(), from: None });
    }

    /// Lifts the slopes that are due to their place in this step.
    fn lift(&mut self, step: u64, steps: u64, slopes: &mut [f32]) {
        let Some(mut release) = self.released else { return };
        let end = (release.step + steps / RISE).min(steps);
        let done = if step >= end { 1.0 } else { (step - release.step) as f64 / (end - release.step) as f64 };
        while let Some(&next) = self.due.last() {
            let from = *release.from.get_or_insert(slopes[next]);
            let risen = done * release.due as f64 - (release.due - self.due.len()) as f64;
            if risen < 1.0 {
                slopes[next] = from + (1.0 - from) * risen.max(0.0) as f32;
                break;
            }
            self.due.pop();
            self.arrive(next, from);
            release.from = None;
        }
        self.released = Some(release);
    }

    /// The weights, or those of the start with the same activations removed, if they are better.
    fn better(&self, trained: Weights, training: &Training<'_, '_>) -> Result<Weights, PassError> {
        let mut untrained = training.start().clone();
        for (&index, decided) in self.indices.iter().zip(&self.decided) {
            untrained.values[index][0] = decided.unwrap_or(0.0);
        }
        let is_better = training.drift(&trained)? <= training.drift(&untrained)?;
        Ok(if is_better { trained } else { untrained })
    }
}

impl Companion for Slopes {
    fn follow(&mut self, step: u64, steps: u64, gradients: &[Vec<f32>], weights: &mut Weights) {
        let rise = (steps / 2).max(1) as f64;
        let risen = (step as f64 / rise).min(1.0);
        let (push, lambda) = match self.released {
            None => (1.0, self.penalty * LEAST_PENALTY.powf(1.0 - risen)),
            Some(release) => (0.0, release.lambda),
        };
        let left = if self.released.is_some() { 1.0 - step as f64 / steps as f64 } else { 1.0 };
        let pace = left * TRAVEL / rise;
        let mut slopes: Vec<f32> = self.indices.iter().map(|&i| weights.values[i][0]).collect();
        for (slope, &i) in slopes.iter_mut().zip(&self.indices) {
            let pull = f64::from(gradients[i][0]) / lambda;
            if pull.is_finite() {
                *slope = (f64::from(*slope) + pace * (push - pull).clamp(-1.0, 1.0)).clamp(0.0, 1.0) as f32;
            }
        }
        if self.released.is_none() {
            let is_stopped = !self.withdrawn.is_empty();
            for k in self.largest(&slopes) {
                if !is_stopped && f64::from(slopes[k]) >= self.threshold {
                    self.arrive(k, slopes[k]);
                }
            }
            if risen >= 1.0 || Some(self.arrived()) == self.count || is_stopped {
                self.release(lambda, step, &slopes);
            }
        }
        self.lift(step, steps, &mut slopes);
        for ((&i, slope), decided) in self.indices.iter().zip(slopes).zip(&self.decided) {
            weights.values[i][0] = decided.unwrap_or(slope);
        }
    }

    fn is_settled(&self) -> bool {
        self.released.is_some() && self.due.is_empty()
    }

    fn asks(&self) -> bool {
        !self.unchecked.is_empty()
    }

    fn hear(&mut self, quality: &Quality, weights: &mut Weights) {
        let unchecked = std::mem::take(&mut self.unchecked);
        let Some(why) = self.limits.broken(quality) else { return };
        for (slope, from) in unchecked {
            self.decided[slope] = None;
            weights.values[self.indices[slope]][0] = from;
            self.withdrawn.push((why.clone(), slope));
        }
        self.due.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{
        Report, Tools,
        testing::{self, model, read_fixture, run_pass_with, tools},
    };
    use pare_graph::Setting;

    fn slopes(pass: &LearnSlopes, count: usize) -> Slopes {
        Slopes::new(pass, pass.limits(), (0..count).collect())
    }

    /// The quality of weights with these slopes, where each that is 1 changes the class of a tenth of the samples.
    fn quality(weights: &Weights) -> Quality {
        let removed = weights.values.iter().filter(|slope| slope[0] == 1.0).count();
        Quality { drift: 0.0, agreement: Some(1.0 - 0.1 * removed as f64), accuracy_drop: None }
    }

    /// Slopes after all steps, where the loss of slope `k` is `costs[k]·a²/2`.
    fn trained(pass: &LearnSlopes, costs: &[f32], steps: u64) -> (Vec<f32>, Slopes) {
        let mut slopes = slopes(pass, costs.len());
        let mut weights = Weights { values: vec![vec![0.0]; costs.len()] };
        for step in 1..=steps {
            let gradients: Vec<_> = weights.values.iter().zip(costs).map(|(a, c)| vec![a[0] * c]).collect();
            slopes.follow(step, steps, &gradients, &mut weights);
            if slopes.asks() {
                slopes.hear(&quality(&weights), &mut weights);
            }
        }
        (weights.values.into_iter().flatten().collect(), slopes)
    }

    #[test]
    fn slopes_arrive_that_cost_least() {
        let pass = LearnSlopes::default();
        // With a penalty of 0.25 the slope of the second stops at 0.25 / 2, and goes back after its release.
        let (values, slopes) = trained(&pass, &[0.01, 2.0, 0.1, 20.0], 400);
        assert_eq!((values[0], values[2], values[3]), (1.0, 1.0, 0.0));
        assert!(values[1] > 0.0 && values[1] < 0.12, "{values:?}");
        assert!(slopes.is_settled() && slopes.arrived() == 2);
    }

    #[test]
    fn as_many_slopes_arrive_as_are_asked_for() {
        let costs = [0.02, 2.0, 0.1, 20.0];
        for (count, expected) in [(1, vec![0]), (2, vec![0, 2]), (3, vec![0, 1, 2]), (4, vec![0, 1, 2, 3])] {
            let pass = LearnSlopes { count: Some(count), ..LearnSlopes::default() };
            for steps in [4, 40, 400] {
                let (values, slopes) = trained(&pass, &costs, steps);
                assert_eq!(slopes.arrived(), count);
                let ones: Vec<_> = (0..4).filter(|&k| values[k] == 1.0).collect();
                // Four steps are too few for an order.
                assert!(ones == expected || steps == 4 && ones.len() == count, "{steps}: {values:?}");
            }
        }
    }

    #[test]
    fn missing_slopes_rise_layer_by_layer() {
        let costs = [0.02, 4.0, 2.0, 3.0];
        let mut slopes = slopes(&LearnSlopes { count: Some(4), ..LearnSlopes::default() }, 4);
        let mut weights = Weights { values: vec![vec![0.0]; 4] };
        let (mut rising, mut last) = (Vec::new(), [0.0; 4]);
        for step in 1..=400 {
            let gradients: Vec<_> = weights.values.iter().zip(costs).map(|(a, c)| vec![a[0] * c]).collect();
            slopes.follow(step, 400, &gradients, &mut weights);
            let now: Vec<_> = weights.values.iter().map(|slope| slope[0]).collect();
            assert!(step < 300 || now == [1.0; 4], "{step}: {now:?}");
            if (201..=300).contains(&step) {
                let up: Vec<_> = (0..4).filter(|&k| now[k] > last[k] + 1e-3).collect();
                assert!(up.len() <= 2 && (0..4).all(|k| now[k] < last[k] + 0.1), "{step}: {now:?} {last:?}");
                rising.extend(up.into_iter().filter(|k| !rising.contains(k)).collect::<Vec<_>>());
            }
            last.copy_from_slice(&now);
        }
        // Those that cost less have come further, and rise first.
        assert_eq!(rising, [2, 3, 1]);
    }

    #[test]
    fn the_slope_that_breaks_a_limit_goes_back() {
        let costs = [0.01, 0.02, 30.0, 20.0, 0.015];
        for (count, limit, expected) in
            [(None, 0.75, 2), (Some(5), 0.65, 3), (Some(5), 0.55, 4), (Some(2), 0.3, 2)]
        {
            let pass = LearnSlopes { count, min_agreement: Some(limit), ..LearnSlopes::default() };
            let (values, slopes) = trained(&pass, &costs, 400);
            assert!(slopes.is_settled() && slopes.arrived() <= expected, "{values:?}");
            assert_eq!(slopes.arrived(), values.iter().filter(|a| **a == 1.0).count());
            assert_eq!(slopes.withdrawn.is_empty(), count == Some(2));
            for (why, slope) in &slopes.withdrawn {
                assert!(values[*slope] < 1.0 && why.starts_with("the agreement of 0."), "{why}");
            }
        }
    }

    #[test]
    fn gradients_that_are_not_finite_move_nothing() {
        let (values, _) = trained(&LearnSlopes::default(), &[f32::NAN, f32::INFINITY], 20);
        assert!(values.iter().all(|a| a.is_finite()), "{values:?}");
    }

    fn relus(model: &Model) -> usize {
        let graph = &model.graph;
        let is_bent = |op: &str| ["Relu", "LeakyRelu", "PRelu"].contains(&op);
        graph.nodes().iter().filter(|&&n| is_bent(&graph.node(n).op)).count()
    }

    fn learned(pass: LearnSlopes, before: &Model, with: Tools<'_>) -> (Model, Report) {
        let mut changed = before.clone();
        let report = run_pass_with(pass, &mut changed, with);
        changed.check().unwrap();
        (changed, report)
    }

    /// The mean squared difference of the first outputs on labelled digits.
    fn distance(a: &Model, b: &Model) -> f64 {
        let test = testing::samples("digits.npz", a);
        let feeds = pare_graph::Samples::batch(&test, 0..256).unwrap();
        let feeds: Vec<_> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let engine = tools().engine.unwrap();
        let run = |model: &Model| engine.load(model, Setting::PLAIN).unwrap().run(&feeds).unwrap().remove(0);
        let (a, b) = (run(a).to_f64().unwrap(), run(b).to_f64().unwrap());
        a.iter().zip(&b).map(|(a, b)| (a - b).powi(2)).sum::<f64>() / a.len() as f64
    }

    #[test]
    fn removed_activations_cost_less_than_without_training() {
        let digits = read_fixture("digits-cnn.onnx");
        let samples = testing::samples("digits-calibration.npz", &digits);
        let with = Tools { samples: Some(&samples), ..tools() };
        let pass = LearnSlopes { count: Some(4), steps: Some(80), ..LearnSlopes::default() };
        let (changed, report) = learned(pass, &digits, with);
        assert_eq!(relus(&changed), relus(&digits) - 4);
        let step = report.steps.last().unwrap();
        assert_eq!(step.pass, "learn-slopes");
        let mut plain = digits.clone();
        let identity = "remove-activations{count=4,replacement=identity,refit=false}";
        testing::context(with).run_nested(identity, &mut plain).unwrap();
        let (learned, plain) = (distance(&digits, &changed), distance(&digits, &plain));
        assert!(learned < plain / 2.0, "{learned} {plain}");
    }

    const TWO_LAYERS: &str = "g (float[N,3] x) => (float[N,2] y) <
        float[3,8] a = {1, -1, 0.5, 0.25, 0.5, 1, -0.5, 1, -1, 0.75, 1, -0.5, 1, -1, 0.5, 0.25, 0.5, 1, -0.5, 1, -1,
            0.75, 1, -0.5},
        float[8] b = {5, 4, 5, 4, 5, 4, 5, 4},
        float[8,2] c = {1, -1, 0.5, 1, -0.75, 0.5, 1, 1, 1, -1, 0.5, 1, -0.75, 0.5, 1, 1}> {
        h = MatMul(x, a) s = Add(h, b) r = Relu(s) y = MatMul(r, c) }";

    #[test]
    fn layers_around_an_arrived_slope_become_one() {
        // Almost no input of the activation is negative, so nothing holds the slope back.
        let before = model(TWO_LAYERS);
        let samples = Normal { count: 300 };
        let with = Tools { samples: Some(&samples), ..tools() };
        let pass = LearnSlopes { steps: Some(60), ..LearnSlopes::default() };
        let (changed, _) = learned(pass, &before, with);
        let ops: Vec<_> = changed.graph.nodes().iter().map(|&n| changed.graph.node(n).op.clone()).collect();
        assert_eq!(ops.iter().filter(|op| *op == "MatMul" || *op == "Gemm").count(), 1, "{ops:?}");
        assert_eq!(relus(&changed), 0);
    }

    /// Sums of uniform numbers, the same for the same sample.
    struct Normal {
        count: usize,
    }

    impl pare_graph::Samples for Normal {
        fn len(&self) -> usize {
            self.count
        }

        fn batch(
            &self,
            range: std::ops::Range<usize>,
        ) -> Result<Vec<(String, Tensor)>, pare_graph::EvaluateError> {
            let sample = |i: usize| {
                let mut rng = fastrand::Rng::with_seed(i as u64 + 1);
                (0..3).map(move |_| (0..4).map(|_| rng.f32() - 0.5).sum::<f32>())
            };
            let values: Vec<f32> = range.clone().flat_map(sample).collect();
            Ok(vec![("x".into(), Tensor::from_slice(&[range.len(), 3], &values).unwrap())])
        }
    }

    #[test]
    fn a_limit_that_every_removal_breaks_keeps_the_model() {
        let before = model(&TWO_LAYERS.replace("5, 4", "0, 0"));
        let samples = Normal { count: 300 };
        let with = Tools { samples: Some(&samples), ..tools() };
        let steps = Some(60);
        let pass = LearnSlopes { count: Some(1), steps, max_drift: Some(0.0), ..LearnSlopes::default() };
        let (changed, report) = learned(pass, &before, with);
        assert_eq!(relus(&changed), 1);
        let reasons: Vec<_> = report.steps.iter().flat_map(|step| step.declined()).collect();
        assert!(reasons.iter().any(|(why, _)| why.contains("is kept: the drift of")), "{reasons:?}");
    }

    #[test]
    fn refuses_what_has_no_slopes() {
        let samples = Normal { count: 100 };
        let with = || Tools { samples: Some(&samples), ..tools() };
        let refused = |pass: LearnSlopes, text: &str| {
            testing::try_pass(pass, &mut model(text), with()).unwrap_err().to_string()
        };
        let smooth = TWO_LAYERS.replace("Relu", "Tanh");
        let why = refused(LearnSlopes::default(), &smooth);
        assert!(why.contains("there is no `Relu` of 32-bit floats"), "{why}");
        let pass = LearnSlopes { only: vec!["other*".into()], ..LearnSlopes::default() };
        let why = refused(pass, TWO_LAYERS);
        assert!(why.contains("no `Relu` has a matching name"), "{why}");
    }

    #[test]
    fn refuses_options_out_of_range() {
        let error = |text: &str| text.parse::<crate::Pipeline>().unwrap_err().to_string();
        for (text, why) in [
            ("learn-slopes{count=0}", "`count` is at least 1"),
            ("learn-slopes{penalty=0}", "`penalty` is a positive number, not 0"),
            ("learn-slopes{threshold=0.5}", "`threshold` is above 0.5 and at most 1, not 0.5"),
            ("learn-slopes{min_agreement=2}", "`min_agreement` cannot be 2"),
            ("learn-slopes{epochs=1,steps=2}", "`epochs` and `steps` exclude each other"),
        ] {
            assert!(error(text).contains(why), "{}", error(text));
        }
    }
}
