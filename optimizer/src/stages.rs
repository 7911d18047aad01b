//! Cuts a pipeline into stages that are proven by themselves.

use crate::{Progress, Prove};
use pare_graph::Model;
use pare_passes::{Effect, InterfaceChange, Observer, Pass, Pipeline};
use std::sync::Arc;

/// Consecutive runs of passes that promise equality, or of lossy passes.
pub(crate) struct Stage {
    pub effect: Effect,
    pub passes: Vec<&'static str>,
    pub before: Model,
    pub after: Model,
    /// Requested changes of inputs and outputs.
    pub interface: Vec<InterfaceChange>,
}

/// Collects the stages of a pipeline while it runs.
pub(crate) struct Stages {
    /// Models are kept only if stages are proven by themselves.
    keep_models: bool,
    each_pass: bool,
    progress: Arc<dyn Progress>,
    last: Model,
    patches: u64,
    done: Vec<Stage>,
}

impl Stages {
    pub fn new(pipeline: &Pipeline, prove: Prove, progress: Arc<dyn Progress>, model: &Model) -> Self {
        let each_pass = prove == Prove::EachPass;
        let keep_models = each_pass || pipeline.effect() == Effect::Lossy;
        Self { keep_models, each_pass, progress, last: model.clone(), patches: 0, done: vec![] }
    }

    pub fn finish(self) -> Vec<Stage> {
        self.done
    }
}

impl Observer for Stages {
    fn after(&mut self, pass: &dyn Pass, model: &Model, patches: u64, interface: &[InterfaceChange]) {
        let info = pass.info();
        self.progress.after_pass(info.name, model);
        if std::mem::replace(&mut self.patches, patches) == patches {
            return;
        }
        let after = if self.keep_models { model.clone() } else { Model::default() };
        let lossy = |effect: Effect| effect == Effect::Lossy;
        match self.done.last_mut() {
            Some(stage) if !self.each_pass && lossy(stage.effect) == lossy(info.effect) => {
                stage.effect = stage.effect.max(info.effect);
                stage.passes.push(info.name);
                stage.passes.dedup();
                stage.after = after.clone();
                stage.interface.extend_from_slice(interface);
            }
            _ => self.done.push(Stage {
                effect: info.effect,
                passes: vec![info.name],
                before: self.last.clone(),
                after: after.clone(),
                interface: interface.to_vec(),
            }),
        }
        if self.keep_models {
            self.last = after;
        }
    }
}
