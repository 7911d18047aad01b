//! Training: the model of a step, the loop, and the decision.

use super::{
    Distill, TrainedWeights,
    changed::changed_weights,
    checkpoint::{Checkpoint, Position, Saved, fingerprint},
    collapse::Collapse,
    data::Data,
    equilibrium::{Equilibrium, Moving},
    loss::{DistillLoss, LossModel, features, targets},
    optimizer::{Optimizer, State},
    parameters::{Parameter, Weights, count, parameters, patch, patch_floats, tensor},
    quantized::unfold,
    rate,
    schedule::Schedule,
};
use crate::{
    analysis::{
        calibration::{Probe, batches_of, bytes_per_sample, fixed_batch, no_samples, open_inputs},
        evaluation::{HeldOut, Quality},
        gradient::{OPSET, differentiate_units},
        opset::raised,
        quality::measures_of,
        samples::Split,
    },
    framework::{Context, PassError, Tools},
};
use pare_graph::{
    Graph, Model, Patch, Run, Samples, Setting, Tensor,
    evaluate::quality::{class_rows, log_probabilities},
    ops::Bindings,
};
use std::{cell::RefCell, collections::BTreeMap, ops::Range, time::Instant};

/// The share of the samples that is held out: one in this many.
const HELD_OUT: usize = 10;
/// The least held-out samples, if they are at most a fifth; and the most.
const HELD_OUT_RANGE: (usize, usize) = (64, 1024);
/// Parts of the held-out samples, whose changes are tested for chance.
const PARTS: usize = 32;
/// The standard score of an improvement that is more than chance: 2.5 % one-sided.
const SIGNIFICANT: f64 = 1.96;
/// Evaluations of the held-out samples during training, and those without improvement after which it ends, in the
/// second half of the steps: high rates make weights worse before low ones make them better.
const EVALUATIONS: u64 = 16;
const PATIENCE: u64 = 5;
/// A trial of a rate has one in so many of the steps, and at least and at most this many. Shorter trials prefer rates
/// that are too small for the whole training.
const TRIAL: u64 = 4;
const TRIAL_RANGE: (u64, u64) = (20, 300);
/// Saved values and gradients take about this many times the bytes of the values of a forward pass.
const BACKWARD: u64 = 3;

/// A rule that changes weights in its own way beside the optimizer.
pub trait Companion {
    /// Changes weights after step `step` of `steps`, counted from 1, along whose gradients the optimizer went.
    fn follow(&mut self, step: u64, steps: u64, gradients: &[Vec<f32>], weights: &mut Weights);

    /// Returns true once weights may be compared with later ones: the best since then is kept.
    fn is_settled(&self) -> bool;

    /// Returns true if it is to know the quality of the weights on the held-out samples.
    fn asks(&self) -> bool {
        false
    }

    /// Takes the quality of the weights, which it may change.
    fn hear(&mut self, _: &Quality, _: &mut Weights) {}
}

/// The optimizer alone.
struct Alone;

impl Companion for Alone {
    fn follow(&mut self, _: u64, _: u64, _: &[Vec<f32>], _: &mut Weights) {}

    fn is_settled(&self) -> bool {
        true
    }
}

/// Everything that a step needs.
pub struct Training<'p, 't> {
    pass: &'p Distill,
    tools: Tools<'t>,
    student: Model,
    parameters: Vec<Parameter>,
    start: Weights,
    data: Data<'t>,
    held_out: HeldOut<'t>,
    collapse: Option<HeldOutCollapse<'t>>,
    loss: LossModel,
    step: StepModel,
    /// Samples of a step, and of a run of the step model: a step adds up the gradients of `batch / part` runs.
    batch: usize,
    part: usize,
    /// The share of the backward pass that was not computed.
    saved: Option<f64>,
}

/// The term of the loss for residual blocks, and the held-out samples that it is evaluated on.
struct HeldOutCollapse<'t> {
    term: Collapse,
    samples: RefCell<Data<'t>>,
}

/// The part of the numbers of random generators that draw directions in steps, and the one for held-out samples.
const STEP_DIRECTIONS: u64 = 1 << 62;
const HELD_OUT_DIRECTIONS: u64 = 1 << 61;

/// The loaded model of a step, which computes a loss and its gradients.
struct StepModel {
    run: Box<dyn Run>,
    /// The output that holds the gradient of each parameter, if one does.
    gradients: Vec<Option<usize>>,
    /// The parts of parameters that are trained, where others are not.
    moving: Vec<Moving>,
    /// Multiply-accumulates of the backward pass.
    macs: u64,
}

impl StepModel {
    /// Differentiates a loss and loads the result. Returns also the reasons why gradients stopped.
    fn load(
        tools: Tools<'_>,
        loss: &LossModel,
        parameters: &[Parameter],
        moving: &[Moving],
    ) -> Result<(Self, Vec<String>), PassError> {
        let names: Vec<_> = parameters.iter().map(|p| p.name.clone()).collect();
        let units = |part: &Moving| Some((names[part.parameter].clone(), part.wanted()?.to_vec()));
        let units: BTreeMap<_, _> = moving.iter().filter_map(units).collect();
        let found = differentiate_units(&loss.model, &loss.loss, &names, &units);
        let found = found.map_err(PassError::from_error)?;
        let graph = &found.model.graph;
        let position = |name: &String| graph.outputs().iter().position(|&v| graph.value(v).name == *name);
        let gradients = names.iter().map(|name| found.gradients.get(name).and_then(position)).collect();
        let engine = tools.engine.ok_or_else(|| PassError::refused("it needs an engine"))?;
        let run = engine.load(&found.model, Setting::OPTIMIZED.threads(tools.threads))?;
        let macs = |model: &Model| model.cost(&Bindings::default()).macs;
        let macs = macs(&found.model).saturating_sub(macs(&loss.model));
        Ok((Self { run, gradients, moving: moving.to_vec(), macs }, found.stopped))
    }

    /// The loss and the gradients of all elements, 0 for those that are not trained.
    fn gradients(
        &mut self,
        feeds: &[(&str, &Tensor)],
        parameters: &[Parameter],
    ) -> Result<(f64, Vec<Vec<f32>>), PassError> {
        let outputs = self.run.run(feeds)?;
        let loss = outputs.first().and_then(Tensor::single).unwrap_or(f64::NAN);
        let of = |(k, (output, parameter)): (usize, (&Option<usize>, &Parameter))| {
            let len = parameter.shape.iter().product();
            let Some(output) = *output else { return Ok(vec![0.0; len]) };
            let values = outputs.get(output).and_then(|tensor| tensor.to_vec::<f32>().ok());
            let values = values.ok_or_else(|| PassError::refused("the engine returned no gradient"))?;
            let part = self.moving.iter().find(|part| part.parameter == k && values.len() < len);
            Ok(part.map_or(values.clone(), |part| part.spread(&values, len)))
        };
        let gradients = self.gradients.iter().zip(parameters).enumerate().map(of);
        Ok((loss, gradients.collect::<Result<_, PassError>>()?))
    }
}

impl<'p, 't> Training<'p, 't> {
    /// Prepares the training of a student. `None`, with the reason in the report, if nothing can be trained.
    pub fn new(
        pass: &'p Distill,
        teacher: &Model,
        student: &Model,
        cx: &mut Context<'t>,
    ) -> Result<Option<Self>, PassError> {
        let tools = cx.tools;
        let count = Split::required(tools, None)?.all().len();
        let mut raised = raised(student, OPSET, cx)?.map_err(|why| {
            PassError::refused(format!(
                "gradients need operator set {OPSET}, and the model's cannot be raised: {why}"
            ))
        })?;
        let codes = unfold(&mut raised.graph)?;
        raised.infer()?;
        let quality = measures_of(tools, &teacher.graph);
        let mut targets = targets(&teacher.graph, &raised.graph, &quality, pass.loss)?;
        if !pass.features.is_empty() {
            // The values of the original may have no types yet.
            let mut typed = teacher.clone();
            let _ = typed.infer();
            let features = features(&typed.graph, &raised.graph, &pass.features, pass.feature_weight)?;
            cx.figure("inner values compared", features.len() as f64);
            targets.extend(features);
        }
        let sizes = tools.sizes(&raised.graph);

        let (fit, held) = split(count);
        let fixed = fixed_batch(&raised.graph);
        let batch = pass.batch.min((fit.len() / 8).max(1));
        let part = fixed.unwrap_or_else(|| fitting(&raised, &sizes, tools.memory).min(batch));
        let batch = batch.div_ceil(part) * part;
        let parts = batches_of(held.clone(), fixed, held.len().div_ceil(PARTS));
        if fit.len() < batch || parts.is_empty() {
            cx.decline(format!("{count} samples are too few for batches of {part}"));
            return Ok(None);
        }
        let mut data = Data::new(tools, teacher, &targets, fit, &pass.augment)?;
        let variances = data.variances(&targets, part)?;
        let mut loss = LossModel::new(&raised, &targets, &variances, pass.temperature, part, &sizes)?;
        let collapse = match pass.collapse {
            None => None,
            Some(_) if held.len() < part => {
                cx.decline(format!("{count} samples are too few to hold {part} out"));
                return Ok(None);
            }
            Some(factor) => {
                let term = Collapse::add(&mut loss, factor)?;
                let samples = RefCell::new(Data::new(tools, teacher, &targets, held.clone(), &[])?);
                Some(HeldOutCollapse { term, samples })
            }
        };

        let mut found = parameters(&loss.model.graph, pass.filter(), &codes);
        if found.is_empty() {
            cx.decline("there are no float weights to train");
            return Ok(None);
        }
        if pass.train == TrainedWeights::Changed {
            let changed = changed_weights(teacher, student, cx)?;
            found.retain(|(parameter, _)| changed.contains(parameter.initializer()));
            if found.is_empty() {
                cx.decline("no weight differs from the original's or depends on one that does");
                return Ok(None);
            }
        }
        let (mut parameters, values): (Vec<_>, Vec<_>) = found.into_iter().unzip();
        let (step, stopped) = StepModel::load(tools, &loss, &parameters, &[])?;
        stopped.iter().for_each(|why| cx.decline(why));
        if step.gradients.iter().all(Option::is_none) {
            cx.decline("the outputs do not depend on float weights through operators with gradients");
            return Ok(None);
        }
        for (parameter, _) in
            parameters.iter_mut().zip(&step.gradients).filter(|(_, output)| output.is_none())
        {
            parameter.hold();
        }
        let held_out = HeldOut::in_batches(tools, teacher, &parts)?;
        let (start, student) = (Weights { values }, student.clone());
        Ok(Some(Self {
            pass,
            tools,
            student,
            parameters,
            start,
            data,
            held_out,
            collapse,
            loss,
            step,
            batch,
            part,
            saved: None,
        }))
    }

    /// Trains. `None`, with the reason in the report, if the weights do not become better.
    pub fn run(&mut self, cx: &mut Context<'t>) -> Result<Option<Weights>, PassError> {
        let mut checkpoint = Checkpoint::new(&self.pass.checkpoint);
        let run = self.fingerprint();
        let saved = checkpoint.read(run, &self.parameters)?;
        let mut position =
            saved.as_ref().map_or(Position { run, ..Position::default() }, |s| s.position.clone());
        if position.schedule.is_none() {
            position.schedule = self.schedule(&mut position.trials, &mut checkpoint, run)?;
        }
        let Some((rate, steps)) = position.schedule else {
            cx.decline("training ended before a rate was found");
            return Ok(None);
        };
        cx.detail("rate", rate);
        let saved = saved.filter(|saved| saved.position.schedule.is_some());
        let schedule = Schedule { rate, steps };
        let best = self.train(schedule, position, saved, &mut checkpoint, &mut Alone)?;
        let best = best.unwrap_or_else(|| self.start.clone());
        checkpoint.remove();
        if let Some(saved) = self.saved {
            cx.share("backward MACs saved", saved);
        }
        let (before, after) = (self.drift(&self.start)?, self.drift(&best)?);
        let what = if self.collapse.is_some() { "loss" } else { "drift" };
        cx.figure(format!("held-out {what} before"), before);
        // Batches, whose rows are what is sorted, are too few for a test, and the term falls by more than chance.
        let is_more_than_chance = match self.collapse {
            None => is_improved(&self.drifts(&self.start)?, &self.drifts(&best)?),
            Some(_) => true,
        };
        if !(after < before && is_more_than_chance) {
            cx.decline(format!(
                "training does not improve the held-out samples by more than chance: their {what} is {before:.3e} \
                 before and {after:.3e} after"
            ));
            return Ok(None);
        }
        cx.figure(format!("held-out {what} after"), after);
        if let Some(collapse) = &self.collapse {
            cx.figure(
                "distance of blocks before",
                mean(&self.losses(collapse, &self.start)?, |loss| loss.distance),
            );
            cx.figure("distance of blocks after", mean(&self.losses(collapse, &best)?, |loss| loss.distance));
        }
        cx.detail("steps", steps as f64);
        Ok(Some(best))
    }

    /// Trains beside a companion. Returns the weights with the least held-out drift since it settled; `None` if it
    /// did not.
    pub fn run_beside(
        &mut self,
        companion: &mut dyn Companion,
        rate: f64,
    ) -> Result<Option<Weights>, PassError> {
        let schedule = Schedule { rate, steps: self.steps()? };
        self.train(schedule, Position::default(), None, &mut Checkpoint::new(""), companion)
    }

    /// The weights before training.
    pub fn start(&self) -> &Weights {
        &self.start
    }

    /// The position of a parameter among the weights.
    pub fn position(&self, name: &str) -> Option<usize> {
        self.parameters.iter().position(|parameter| parameter.name == name)
    }

    /// Leaves a parameter to a companion: the optimizer does not change it.
    pub fn hold(&mut self, parameter: usize) {
        self.parameters[parameter].hold();
    }

    /// The number of weights that are trained.
    pub fn count(&self) -> u64 {
        count(&self.parameters)
    }

    /// A patch that sets the weights of a graph; `None` if the graph has no nodes.
    pub fn patch(&self, graph: &Graph, weights: &Weights) -> Result<Option<Patch>, PassError> {
        patch(graph, &self.parameters, weights)
    }

    /// The rate and the number of steps. `None` if training is to end.
    fn schedule(
        &mut self,
        trials: &mut Vec<(f64, f64)>,
        checkpoint: &mut Checkpoint,
        run: u64,
    ) -> Result<Option<(f64, u64)>, PassError> {
        let steps = self.steps()?;
        if let Some(rate) = self.pass.rate {
            return Ok(Some((rate, steps)));
        }
        let first = match self.pass.optimizer {
            Optimizer::Adamw => 1e-3,
            Optimizer::Sgd => 1e-2,
        };
        let known = trials.clone();
        let length = (steps / TRIAL).clamp(TRIAL_RANGE.0, TRIAL_RANGE.1);
        let best = rate::choose(first, |rate| {
            if let Some((_, drift)) = known.iter().find(|(r, _)| *r == rate) {
                return Ok(Some(*drift));
            }
            let Some(drift) = self.trial(Schedule { rate, steps: length })? else { return Ok(None) };
            trials.push((rate, drift));
            let position = Position { run, trials: trials.clone(), ..Position::default() };
            checkpoint.write(&self.parameters, &position, &State::new(self.start.clone()), None)?;
            Ok::<_, PassError>(Some(drift))
        })?;
        Ok(best.map(|rate| (rate, steps)))
    }

    /// The number of steps.
    fn steps(&mut self) -> Result<u64, PassError> {
        let per_epoch = (self.data.len() / self.batch).max(1) as f64;
        let epochs = self.pass.epochs.unwrap_or(Distill::default_epochs(self.data.len()));
        let steps = self.pass.steps.unwrap_or((epochs * per_epoch).ceil().max(1.0) as u64);
        let Some(minutes) = self.pass.minutes else { return Ok(steps) };
        let seconds = self.seconds_per_step()?;
        // Up to four trials take about as long as the training.
        let share = if self.pass.rate.is_some() { 1.0 } else { 0.5 };
        Ok(steps.min((minutes * 60.0 * share / seconds) as u64).max(1))
    }

    /// The held-out drift after a short training; `None` if training is to end.
    fn trial(&mut self, schedule: Schedule) -> Result<Option<f64>, PassError> {
        let mut state = State::new(self.start.clone());
        let stage = format!("trying a rate of {:.0e}", schedule.rate);
        while state.steps < schedule.steps {
            if self.tools.progress.is_ending() {
                return Ok(None);
            }
            let loss = self.step(&mut state, schedule, &mut Alone)?;
            self.tools.progress.step(&stage, state.steps, schedule.steps);
            if !loss.is_finite() {
                return Ok(Some(f64::NAN));
            }
        }
        self.drift(&state.weights).map(Some)
    }

    /// Trains, and returns the weights with the least held-out drift; `None` if none are better than those of the
    /// start, which count once the companion has settled.
    fn train(
        &mut self,
        schedule: Schedule,
        mut position: Position,
        saved: Option<Saved>,
        checkpoint: &mut Checkpoint,
        companion: &mut dyn Companion,
    ) -> Result<Option<Weights>, PassError> {
        let steps = schedule.steps;
        let (mut state, mut best) = match saved {
            Some(saved) => (saved.state, saved.best),
            None => (State::new(self.start.clone()), None),
        };
        let every = (steps / EVALUATIONS).max(1);
        let mut drift = match position.best {
            Some(drift) => drift,
            None if companion.is_settled() => self.drift(&self.start)?,
            None => f64::INFINITY,
        };
        position.best = Some(drift);
        let mut rest = self.pass.freeze.map(|threshold| {
            Rest::new(Equilibrium::new(threshold, &self.loss.model.graph, &self.parameters), self)
        });
        if let Some(rest) = &mut rest {
            rest.equilibrium.observe(&self.units(&rest.equilibrium, &state.weights)?);
        }
        while state.steps < steps && position.since < PATIENCE && !self.tools.progress.is_ending() {
            let was_settled = companion.is_settled();
            let loss = self.step(&mut state, schedule, companion)?;
            if !loss.is_finite() {
                break;
            }
            if companion.asks() {
                companion.hear(&self.quality(&state.weights)?, &mut state.weights);
            }
            if let Some(rest) = &mut rest {
                rest.spent += self.step.macs as f64;
                rest.full += rest.macs as f64;
            }
            let stage = format!("distilling (loss {loss:.2e}, held-out drift {drift:.2e})");
            self.tools.progress.step(&stage, state.steps, steps);
            let is_due = !was_settled || state.steps.is_multiple_of(every) || state.steps == steps;
            if is_due && companion.is_settled() {
                let new = self.drift(&state.weights)?;
                position.since += u64::from(state.steps > steps / 2);
                if new < drift {
                    (drift, best) = (new, Some(state.weights.clone()));
                    (position.best, position.since) = (Some(drift), 0);
                }
            }
            if let Some(rest) =
                rest.as_mut().filter(|_| state.steps.is_multiple_of(every) && state.steps < steps)
            {
                let moving = rest.equilibrium.observe(&self.units(&rest.equilibrium, &state.weights)?);
                self.train_only(moving, &rest.free)?;
            }
            if checkpoint.is_due() {
                checkpoint.write(&self.parameters, &position, &state, best.as_ref())?;
            }
        }
        if let Some(rest) = rest {
            self.saved = Some(1.0 - rest.spent / rest.full.max(1.0));
            self.parameters.iter_mut().zip(rest.free).for_each(|(parameter, free)| parameter.free = free);
        }
        // Training that is ended early may be better than at its last evaluation.
        let is_ended = state.steps < steps && position.since < PATIENCE && companion.is_settled();
        if is_ended && self.drift(&state.weights)? < drift {
            best = Some(state.weights);
        }
        Ok(best)
    }

    /// The outputs of the layers whose units may rest, for the last samples.
    fn units(&self, equilibrium: &Equilibrium, weights: &Weights) -> Result<Vec<Tensor>, PassError> {
        let samples = self.tools.samples.ok_or_else(no_samples)?;
        let mut model = self.loss.model.clone();
        if let Some(patch) = patch_floats(&model.graph, &self.parameters, weights)? {
            model.graph.apply(patch).map_err(PassError::from_error)?;
        }
        let values: Vec<_> = equilibrium.outputs().filter_map(|name| model.graph.find(name)).collect();
        let mut probe = Probe::new(self.tools, &model, &open_inputs(&model.graph), &values)?;
        Ok(probe.run(&samples.batch(samples.len() - self.part..samples.len())?)?)
    }

    /// Trains these parts of parameters from now on, and of other parameters all that is free.
    fn train_only(&mut self, moving: Vec<Moving>, free: &[Option<Vec<bool>>]) -> Result<(), PassError> {
        if moving == self.step.moving {
            return Ok(());
        }
        self.step = StepModel::load(self.tools, &self.loss, &self.parameters, &moving)?.0;
        for part in &moving {
            let parameter = &mut self.parameters[part.parameter];
            let len = parameter.shape.iter().product();
            parameter.free = Some(part.free(free[part.parameter].as_ref(), len));
        }
        Ok(())
    }

    /// Makes a step, and returns its loss.
    fn step(
        &mut self,
        state: &mut State,
        schedule: Schedule,
        companion: &mut dyn Companion,
    ) -> Result<f64, PassError> {
        let per_epoch = (self.data.len() / self.batch) as u64;
        let (epoch, within) = (state.steps / per_epoch, (state.steps % per_epoch) as usize);
        let rows = self.data.rows(epoch, within * self.batch, self.batch);
        let (loss, gradients) = self.gradients(&state.weights, &rows, state.steps)?;
        if loss.is_finite() {
            let rate = schedule.at(state.steps);
            state.step(self.pass.optimizer, &self.parameters, &gradients, rate, self.pass.decay);
            companion.follow(state.steps, schedule.steps, &gradients, &mut state.weights);
        }
        Ok(loss)
    }

    /// The mean loss of samples and its gradients.
    fn gradients(
        &mut self,
        weights: &Weights,
        rows: &[usize],
        step: u64,
    ) -> Result<(f64, Vec<Vec<f32>>), PassError> {
        let tensors = self.parameters.iter().zip(&weights.values).map(|(p, values)| tensor(&p.shape, values));
        let tensors = tensors.collect::<Result<Vec<_>, _>>()?;
        let runs = rows.len() / self.part;
        let (mut loss, mut sums) = (0.0, Vec::<Vec<f32>>::new());
        for (i, rows) in rows.chunks_exact(self.part).enumerate() {
            let number = step * runs as u64 + i as u64;
            let mut samples = self.data.batch(rows, number)?;
            if let Some(collapse) = &self.collapse {
                samples.extend(collapse.term.draw(&mut self.data.rng(STEP_DIRECTIONS + number))?);
            }
            let parameters =
                self.parameters.iter().zip(&tensors).map(|(p, tensor)| (p.name.as_str(), tensor));
            let samples = samples.iter().map(|(name, tensor)| (name.as_str(), tensor));
            let feeds: Vec<_> = samples.chain(parameters).collect();
            let (part, gradients) = self.step.gradients(&feeds, &self.parameters)?;
            loss += part / runs as f64;
            if sums.is_empty() {
                sums = gradients;
                continue;
            }
            let all = sums.iter_mut().flatten().zip(gradients.into_iter().flatten());
            all.for_each(|(sum, value): (&mut f32, f32)| *sum += value);
        }
        if runs > 1 {
            let share = 1.0 / runs as f32;
            sums.iter_mut().flatten().for_each(|sum| *sum *= share);
        }
        Ok((loss, sums))
    }

    /// The median time of a step.
    fn seconds_per_step(&mut self) -> Result<f64, PassError> {
        let mut times = vec![];
        for _ in 0..4 {
            let start = Instant::now();
            self.step(&mut State::new(self.start.clone()), Schedule { rate: 0.0, steps: 1 }, &mut Alone)?;
            times.push(start.elapsed().as_secs_f64());
        }
        times.sort_by(f64::total_cmp);
        Ok(times[1])
    }

    /// The student with these weights.
    fn with(&self, weights: &Weights) -> Result<Model, PassError> {
        let mut model = self.student.clone();
        if let Some(patch) = self.patch(&model.graph, weights)? {
            model.graph.apply(patch).map_err(PassError::from_error)?;
        }
        Ok(model)
    }

    /// The held-out drift; with labels the cross entropy, and with a term for blocks the loss.
    pub fn drift(&self, weights: &Weights) -> Result<f64, PassError> {
        if self.pass.loss == Some(DistillLoss::Labels) || self.collapse.is_some() {
            return Ok(mean(&self.drifts(weights)?, |drift| *drift));
        }
        self.held_out.drift(&self.with(weights)?)
    }

    /// The quality of the student with these weights on the held-out samples.
    pub fn quality(&self, weights: &Weights) -> Result<Quality, PassError> {
        self.held_out.measure(&self.with(weights)?)
    }

    /// The drift of constant outputs.
    pub fn drift_of_constants(&self) -> f64 {
        self.held_out.drift_of_constants()
    }

    /// The loss of batches of held-out samples, with the same directions for the same batch.
    fn losses(&self, collapse: &HeldOutCollapse<'t>, weights: &Weights) -> Result<Vec<Losses>, PassError> {
        let mut model = self.loss.model.clone();
        if let Some(patch) = patch_floats(&model.graph, &self.parameters, weights)? {
            model.graph.apply(patch).map_err(PassError::from_error)?;
        }
        let engine = self.tools.engine.ok_or_else(|| PassError::refused("it needs an engine"))?;
        let mut run = engine.load(&model, Setting::OPTIMIZED.threads(self.tools.threads))?;
        let mut samples = collapse.samples.borrow_mut();
        let rows: Vec<_> = (0..samples.len()).collect();
        let mut found = vec![];
        for (number, rows) in (0..).zip(rows.chunks_exact(self.part)) {
            let mut feeds = samples.batch(rows, 0)?;
            feeds.extend(collapse.term.draw(&mut samples.rng(HELD_OUT_DIRECTIONS + number))?);
            let feeds: Vec<_> = feeds.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
            let outputs = run.run(&feeds)?;
            let number = |slot: usize| outputs.get(slot).and_then(Tensor::single).unwrap_or(f64::NAN);
            found.push(Losses { loss: number(0), distance: number(1) });
        }
        Ok(found)
    }

    /// The numbers of which [`Training::drift`] is the mean, one for each part of the held-out samples.
    fn drifts(&self, weights: &Weights) -> Result<Vec<f64>, PassError> {
        if let Some(collapse) = &self.collapse {
            return Ok(self.losses(collapse, weights)?.iter().map(|losses| losses.loss).collect());
        }
        let parts = self.held_out.drift_by_batch(&self.with(weights)?)?;
        let labels = self.tools.samples.and_then(Samples::labels);
        let labels = labels.filter(|_| self.pass.loss == Some(DistillLoss::Labels));
        let of = |(rows, drift, scores): (Range<usize>, f64, Option<(Tensor, Tensor)>)| match labels {
            None => drift,
            Some(labels) => scores.map_or(f64::NAN, |(_, scores)| cross_entropy(&scores, &labels[rows])),
        };
        Ok(parts.into_iter().map(of).collect())
    }

    /// Identifies the run by everything that determines its result.
    fn fingerprint(&self) -> u64 {
        let weights = self.start.values.iter().flat_map(|values| values.iter().flat_map(|v| v.to_le_bytes()));
        let outputs = self.held_out.outputs().iter().flatten().flat_map(|tensor| tensor.bytes().to_vec());
        let bytes: Vec<u8> = weights.chain(outputs).collect();
        let options = Distill { checkpoint: String::new(), ..self.pass.clone() };
        let about = format!("{options:?} {} {} {}", self.data.len(), self.batch, self.tools.seed);
        fingerprint([bytes.as_slice(), about.as_bytes()])
    }
}

/// The loss of a batch, and the part of it that is the distance of residual blocks, without its factor.
struct Losses {
    loss: f64,
    distance: f64,
}

fn mean<T>(items: &[T], value: impl Fn(&T) -> f64) -> f64 {
    items.iter().map(value).sum::<f64>() / items.len() as f64
}

/// The units that rest during a training, and what that saves.
struct Rest {
    equilibrium: Equilibrium,
    /// The elements of each parameter that are free otherwise.
    free: Vec<Option<Vec<bool>>>,
    /// Multiply-accumulates of a whole backward pass.
    macs: u64,
    /// Those of all steps so far, and those that whole backward passes would have taken.
    spent: f64,
    full: f64,
}

impl Rest {
    fn new(equilibrium: Equilibrium, training: &Training<'_, '_>) -> Self {
        let free = training.parameters.iter().map(|p| p.free.clone()).collect();
        Self { equilibrium, free, macs: training.step.macs, spent: 0.0, full: 0.0 }
    }
}

/// The samples to train on, and those that are held out at the end.
fn split(count: usize) -> (Range<usize>, Range<usize>) {
    let (least, most) = HELD_OUT_RANGE;
    let held = (count / HELD_OUT).max(least.min(count / 5)).min(most);
    (0..count - held, count - held..count)
}

/// The largest batch whose values and gradients fit into half of the memory.
fn fitting(model: &Model, sizes: &Bindings, memory: u64) -> usize {
    let graph = &model.graph;
    let computed = graph.values().filter(|&v| graph.producer(v).is_some());
    let bytes: u64 = computed.map(|v| bytes_per_sample(graph, v, sizes)).sum();
    (memory / 2 / (bytes * BACKWARD).max(1)).max(1) as usize
}

/// The mean of `−ln softmax(scores)` at the labels; of probabilities, of their logarithm.
fn cross_entropy(scores: &Tensor, labels: &[i64]) -> f64 {
    let Some((classes, scores)) = class_rows(scores, -1) else { return f64::NAN };
    let row = |(row, &label): (&[f64], &i64)| {
        let logs = log_probabilities(row);
        usize::try_from(label).ok().and_then(|label| logs.get(label)).map_or(f64::NAN, |log| -log)
    };
    scores.chunks_exact(classes).zip(labels).map(row).sum::<f64>() / labels.len().max(1) as f64
}

/// Returns true if the parts improved by more than chance: the signed-rank test of Wilcoxon (1945), which does not
/// depend on the distribution of drifts, whose mean a few samples may dominate.
///
/// `z = Σ sgn(dᵢ)·rank(|dᵢ|) / √(n(n+1)(2n+1)/6)` for the gains `dᵢ ≠ 0` is normal if chance decides their signs.
fn is_improved(before: &[f64], after: &[f64]) -> bool {
    let mut gains: Vec<_> = before.iter().zip(after).map(|(before, after)| before - after).collect();
    gains.retain(|gain| *gain != 0.0);
    gains.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let sum: f64 = gains.iter().zip(1..).map(|(gain, rank)| gain.signum() * f64::from(rank)).sum();
    let n = gains.len() as f64;
    sum > SIGNIFICANT * (n * (n + 1.0) * (2.0 * n + 1.0) / 6.0).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_is_held_out() {
        let sizes = |count| {
            let (fit, held) = split(count);
            assert_eq!((fit.start, fit.end, held.end), (0, held.start, count));
            held.len()
        };
        assert_eq!([20, 200, 2000, 50_000].map(sizes), [4, 40, 200, 1024]);
    }

    #[test]
    fn chance_is_no_improvement() {
        let before: Vec<_> = (0..32).map(f64::from).collect();
        // The first `wins` parts are lower, the others higher.
        let after = |wins: usize| -> Vec<_> {
            before.iter().enumerate().map(|(i, v)| if i < wins { v - 0.5 } else { v + 0.5 }).collect()
        };
        assert!(is_improved(&before, &after(32)) && is_improved(&before, &after(28)));
        assert!(!is_improved(&before, &after(16)) && !is_improved(&before, &after(0)));
        assert!(!is_improved(&before, &before));
        assert!(!is_improved(&before, &vec![f64::NAN; 32]));
        // Four parts of four may improve by chance.
        assert!(!is_improved(&before[..4], &after(4)[..4]) && is_improved(&before[..6], &after(6)[..6]));
        // Fourteen large gains outweigh eight small losses.
        let mixed: Vec<_> =
            (0..22).map(|i| if i < 14 { f64::from(i) - 30.0 } else { f64::from(i) + 0.1 }).collect();
        assert!(is_improved(&before[..22], &mixed));
    }

    #[test]
    fn cross_entropy_is_that_of_logits_or_probabilities() {
        let logits = Tensor::from_slice(&[2, 2], &[0.0_f32, 3_f32.ln(), 5.0, 5.0]).unwrap();
        let expected = f64::midpoint(0.75_f64.ln(), 0.5_f64.ln());
        assert!((cross_entropy(&logits, &[1, 0]) + expected).abs() < 1e-6);
        let probabilities = Tensor::from_slice(&[2, 2], &[0.25_f32, 0.75, 0.5, 0.5]).unwrap();
        assert!((cross_entropy(&probabilities, &[1, 0]) + expected).abs() < 1e-6);
        assert!(cross_entropy(&logits, &[2, 0]).is_nan());
    }
}
