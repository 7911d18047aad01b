//! Passes that run other passes: on the model itself as nested steps, or on models of their own.

use super::{
    Context, Pass, PassError, Pipeline, Registry, Report, Tools,
    run::{Rounds, run_steps},
};
use pare_graph::Model;
use std::time::Instant;

impl<'t> Context<'t> {
    /// Runs other passes on the model, such as `"lift-constants,fold-constants"`. Their patches are numbered
    /// with those of the current pass, and each pass is reported under its own name as a nested step
    /// ([`StepReport::within`](super::StepReport::within)).
    ///
    /// # Errors
    ///
    /// The first error of a nested pass, or [`PassError::Refused`] if the pipeline is invalid.
    pub fn run_nested(&mut self, pipeline: &str, model: &mut Model) -> Result<(), PassError> {
        let pipeline = Pipeline::parse(pipeline, self.registry)
            .map_err(|e| PassError::refused(format!("the nested pipeline is invalid: {e}")))?;
        run_steps(&pipeline, model, self, &mut Rounds::default(), &mut |pass, _, model, cx| {
            cx.run_nested_pass(pass, model)
        })
    }

    fn run_nested_pass(&mut self, pass: &dyn Pass, model: &mut Model) -> Result<(), PassError> {
        let report = std::mem::take(&mut self.report);
        let declined = std::mem::take(&mut self.declined);
        let nested = std::mem::take(&mut self.nested);
        let start = Instant::now();
        let result = pass.run(model, self);
        let reports = self.take_reports(pass.info(), start.elapsed());
        self.nested = nested;
        self.nested.extend(reports);
        (self.report, self.declined) = (report, declined);
        result
    }

    /// Returns a runner for models other than the one being transformed.
    pub fn scratch(&self) -> Scratch<'t> {
        Scratch { tools: self.tools, registry: self.registry }
    }
}

/// Runs pipelines on models that a pass builds itself, such as the candidates of a search. Patch numbers and
/// reports of the pass are not affected.
#[derive(Clone, Copy)]
pub struct Scratch<'t> {
    tools: Tools<'t>,
    registry: &'static Registry,
}

impl<'t> Scratch<'t> {
    /// Runs a pipeline in text form over `model`.
    ///
    /// # Errors
    ///
    /// Those of [`Context::run_nested`].
    pub fn run(self, pipeline: &str, model: &mut Model) -> Result<Report, PassError> {
        let mut cx = self.context();
        cx.run_nested(pipeline, model)?;
        let mut report = Report::default();
        cx.nested.into_iter().for_each(|step| report.add(step));
        Ok(report)
    }

    /// Returns a new context, for rewrites that are not passes.
    pub fn context(self) -> Context<'t> {
        Context::new(self.tools, self.registry)
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        framework::{
            Context, Counter, Pass, PassError, Pipeline, Report, RunError, RunOptions, Tools, run,
            testing::{context, model},
        },
        pass,
    };
    use pare_graph::Model;

    pass! {
        /// Run other passes.
        #[pass("run-others", Exact)]
        pub struct RunOthers {
            /// Their pipeline.
            pub pipeline: String = String::new(),
        }
    }

    impl Pass for RunOthers {
        fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
            cx.count(Counter::new("start", "starts"), 1);
            cx.run_nested(&self.pipeline, model)?;
            cx.decline("nothing else to run");
            Ok(())
        }
    }

    /// Three no-ops and a double `Relu`.
    const MODEL: &str = "g (float[2] x) => (float[2] y) {
        a = Identity(x) b = Relu(a) c = Identity(b) d = Relu(c) y = Identity(d) }";

    fn run_others(nested: &str, stop_after: Option<u64>) -> (Result<Report, RunError>, Model) {
        let mut model = model(MODEL);
        let mut pipeline = Pipeline::default();
        pipeline.push(RunOthers { pipeline: nested.into() });
        let options = RunOptions::default().stop_after(stop_after);
        (run(&pipeline, &mut model, options, &mut ()), model)
    }

    #[test]
    fn reports_nested_steps_under_their_own_names() {
        let (report, model) = run_others("drop-noops,drop-idempotent", None);
        let report = report.unwrap();
        let steps: Vec<_> = report.steps.iter().map(|s| (s.pass, s.within, s.patches)).collect();
        assert_eq!(
            steps,
            [
                ("drop-noops", Some("run-others"), 3),
                ("drop-idempotent", Some("run-others"), 1),
                ("run-others", None, 0)
            ]
        );
        let own = &report.steps[2];
        assert_eq!((own.count("starts"), own.declined.len()), (1, 1));
        assert_eq!(report.patches(), 4);
        assert_eq!(model.graph.node_count(), 1);
    }

    #[test]
    fn numbers_nested_patches_with_those_of_the_pipeline() {
        for limit in 0..=5 {
            let (report, model) = run_others("(drop-noops,drop-idempotent)*", Some(limit));
            assert_eq!(report.unwrap().patches(), limit.min(4));
            assert_eq!(model.graph.node_count() as u64, 5 - limit.min(4));
        }
    }

    #[test]
    fn propagates_errors_of_nested_passes() {
        let message = |nested: &str| run_others(nested, None).0.unwrap_err().to_string();
        assert_eq!(message("drop-noops,sparsify"), "`run-others`: it needs a target");
        assert_eq!(
            message("drop-nops"),
            "`run-others`: the nested pipeline is invalid: there is no pass `drop-nops`"
        );
    }

    #[test]
    fn scratch_does_not_affect_the_pass() {
        let mut model = model(MODEL);
        let mut cx = context(Tools::default());
        cx.count(Counter::new("start", "starts"), 1);
        let report = cx.scratch().run("drop-noops,drop-idempotent", &mut model).unwrap();
        let steps: Vec<_> = report.steps.iter().map(|s| (s.pass, s.within, s.patches)).collect();
        assert_eq!(steps, [("drop-noops", None, 3), ("drop-idempotent", None, 1)]);
        assert_eq!(model.graph.node_count(), 1);
        assert_eq!((cx.patches, cx.report.patches, cx.report.count("starts")), (0, 0, 1));
        assert!(cx.nested.is_empty());
        assert!(cx.scratch().run("no-such-pass", &mut model).is_err());
    }
}
