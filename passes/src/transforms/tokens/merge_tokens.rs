//! The `merge-tokens` pass.

use super::{
    decline::MergeDecline,
    emit::Lowering,
    latency::latencies,
    merge::{MergePlan, Merged, UnreadTokens, merge, merged_model},
    options::{MergeMethod, MergeSchedule, TokenCounts, TokenMetric},
    schedule::{capped, distribute},
    search::ScheduleSearch,
    token_analysis::TokenAnalysis,
};
use crate::{
    analysis::{
        evaluation::QualityLimits,
        opset::{self, OpsetPolicy, has_opset},
    },
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Graph, Model};

pass! {
    /// Merge similar tokens of a vision transformer (ToMe).
    ///
    /// Between the attention and the MLP of a block, the `r` most similar pairs of alternating tokens are
    /// merged: `x ← Σ size·x / Σ size`. Later attentions add `log(size)` to their scores, and means over
    /// tokens are weighted by size. Class and distillation tokens are kept. Where only these are read after
    /// the last attention, all other tokens are dropped there.
    ///
    /// Declines where merged tokens are not well-defined: windows, positional biases, causal or cached
    /// attention, position embeddings after the first merge, tokens in two dimensions or in an output. Needs
    /// operator set 13.
    #[pass("merge-tokens", Lossy)]
    pub struct MergeTokens {
        /// `tome`, `folder` or `ppt`.
        pub method: MergeMethod = MergeMethod::Tome,
        /// Tokens to merge in each block: one number, or a list with one for each block (of `blocks`, if
        /// given).
        pub r: TokenCounts = TokenCounts::One(8),
        /// Blocks to merge in, counted from 0. Default: those of the method.
        pub blocks: Vec<usize> = vec![],
        /// Features that tokens are compared by: `key` or `feature`.
        pub metric: TokenMetric = TokenMetric::Key,
        /// Add the logarithms of sizes to the scores of later attentions.
        pub proportional: bool = true,
        /// `scatter` (operator set 16) or `matmul` (13). Default: the faster one on this machine.
        pub emit: Option<Lowering> = None,
        /// `fixed`, or `auto`: the `r` of each block with the largest speedup within the limits.
        pub schedule: MergeSchedule = MergeSchedule::Fixed,
        /// For `auto`: smallest share of samples whose predicted class is unchanged; 0.98 if no limit is
        /// given.
        pub min_agreement: Option<f64> = None,
        /// For `auto`: largest drift.
        pub max_drift: Option<f64> = None,
        /// For `auto`: largest loss of accuracy; needs labels.
        pub max_accuracy_drop: Option<f64> = None,
        /// Drop the tokens that are unread after the last attention.
        pub drop_unread: bool = true,
        /// For `ppt`: variance of the significance scores from which tokens are pruned.
        pub threshold: f64 = 7e-5,
        /// For `folder`: weight of the class token's attention, which protects tokens from being merged.
        pub alpha: f64 = 1.0,
        /// Number of samples in a timed run.
        pub batch: usize = 1,
        /// For models with an older operator set than needed: `raise` it, or `keep` it and fail.
        pub opset: OpsetPolicy = OpsetPolicy::Raise,
    }
}

impl Pass for MergeTokens {
    fn validate(&self) -> Result<(), String> {
        if matches!(&self.r, TokenCounts::Each(r) if r.is_empty()) {
            return Err("`r` is an empty list".into());
        }
        if let (TokenCounts::Each(r), false) = (&self.r, self.blocks.is_empty())
            && r.len() != self.blocks.len()
        {
            return Err(format!("`r` has {} numbers for {} `blocks`", r.len(), self.blocks.len()));
        }
        if self.limits().any() && self.schedule == MergeSchedule::Fixed {
            return Err("limits need `schedule=auto`".into());
        }
        if !(self.alpha.is_finite() && self.alpha >= 0.0) {
            return Err("`alpha` is a number of at least 0".into());
        }
        if self.batch == 0 {
            return Err("`batch` is at least 1".into());
        }
        self.limits().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let first = self.blocks.iter().copied().min().unwrap_or(0);
        let raised = self.raised(model, cx)?;
        let analyse = |model: &Model| TokenAnalysis::of(&model.graph, first);
        let mut analysis = match analyse(raised.as_ref().unwrap_or(model)) {
            Ok(analysis) => analysis,
            Err(why) => {
                cx.decline(why);
                return Ok(());
            }
        };
        if let Some(block) = self.blocks.iter().find(|&&b| b >= analysis.blocks) {
            let last = analysis.blocks - 1;
            return Err(PassError::refused(format!("there is no block {block}: the last is {last}")));
        }
        if raised.is_some() {
            opset::raise(model, self.needed_opset(), cx)?;
            match analyse(model) {
                Ok(again) if has_opset(model, self.needed_opset()) => analysis = again,
                // The pipeline is stopped.
                _ => return Ok(()),
            }
        }
        let mut plan = self.plan(&analysis);
        if self.schedule == MergeSchedule::Auto && !self.search(model, &mut plan, &analysis, cx)? {
            cx.decline(NO_SPEEDUP);
            return Ok(());
        }
        let latency = match self.choose_lowering(model, &mut plan, &analysis, cx) {
            Ok(latency) => latency,
            Err(MeasureError::Declined(why)) => {
                cx.decline(why);
                return Ok(());
            }
            Err(MeasureError::Pass(error)) => return Err(error),
        };
        if self.schedule == MergeSchedule::Auto && latency.is_some_and(|latency| latency > 1.0) {
            cx.decline(NO_SPEEDUP);
            return Ok(());
        }
        let mut apply = |graph: &mut Graph, patch| {
            let before = cx.report.declined.len();
            let applied = cx.apply(graph, patch);
            match &applied {
                None if cx.report.declined.len() > before => {
                    Err(MergeDecline::Method("a patch was rejected".into()))
                }
                _ => Ok(applied),
            }
        };
        match merge(&mut model.graph, &plan, &analysis, &mut apply) {
            Ok(merged) => report(cx, &merged, &analysis, latency),
            Err(why) => cx.decline(why),
        }
        Ok(())
    }
}

const NO_SPEEDUP: &str = "no merge saves time within the limits on this machine";

/// A plan that the model does not allow, or tools that fail.
enum MeasureError {
    Declined(MergeDecline),
    Pass(PassError),
}

impl MergeTokens {
    fn limits(&self) -> QualityLimits {
        QualityLimits {
            max_drift: self.max_drift,
            min_agreement: self.min_agreement,
            max_accuracy_drop: self.max_accuracy_drop,
        }
    }

    fn needed_opset(&self) -> i64 {
        if self.emit == Some(Lowering::Scatter) { 16 } else { 13 }
    }

    /// The model with the operator set that the merge needs; `None` if it has that.
    fn raised(&self, model: &Model, cx: &Context<'_>) -> Result<Option<Model>, PassError> {
        let needed = self.needed_opset();
        if has_opset(model, needed) {
            return Ok(None);
        }
        let version = model.graph.opset("").unwrap_or(1);
        let why = match self.opset {
            OpsetPolicy::Keep => String::new(),
            OpsetPolicy::Raise => match opset::raised(model, needed, cx)? {
                Ok(raised) => return Ok(Some(raised)),
                Err(why) => format!(" and cannot be raised: {why}"),
            },
        };
        let hint = if version >= 13 {
            "`emit=matmul` needs operator set 13"
        } else {
            "export the model with a newer one"
        };
        Err(PassError::refused_with(
            format!("merging tokens needs operator set {needed}, the model has {version}{why}"),
            hint,
        ))
    }

    /// Returns the plan of the options.
    fn plan(&self, analysis: &TokenAnalysis) -> MergePlan {
        let r = match &self.r {
            TokenCounts::One(r) => vec![*r],
            TokenCounts::Each(r) => r.clone(),
        };
        let mut plan = MergePlan {
            method: self.method,
            counts: distribute(self.method, &r, &self.blocks, analysis),
            metric: self.metric,
            proportional: self.proportional,
            lowering: self.emit.unwrap_or(Lowering::Matmul),
            threshold: self.threshold,
            alpha: self.alpha,
            unread: match (self.drop_unread, self.schedule) {
                (false, _) => UnreadTokens::Keep,
                (true, MergeSchedule::Fixed) => UnreadTokens::DropAfterMerges,
                // The search compares with dropping alone.
                (true, MergeSchedule::Auto) => UnreadTokens::Drop,
            },
        };
        plan.counts = capped(&plan.counts, &plan, analysis);
        plan
    }

    /// Searches the counts of the plan. Returns whether there are any within the limits.
    fn search(
        &self,
        model: &Model,
        plan: &mut MergePlan,
        analysis: &TokenAnalysis,
        cx: &mut Context<'_>,
    ) -> Result<bool, PassError> {
        let limits = self.limits();
        let limits =
            if limits.any() { limits } else { QualityLimits { min_agreement: Some(0.98), ..limits } };
        let search = ScheduleSearch { tools: cx.tools, model, plan, analysis, batch: self.batch };
        let Some(found) = search.run(limits)? else { return Ok(false) };
        cx.report.notes.push(format!("tokens merged per block: {:?}", found.counts));
        cx.figure("drift", found.measured.drift);
        if let Some(agreement) = found.measured.agreement {
            cx.share("agreement on held-out samples", agreement);
        }
        plan.counts = found.counts;
        Ok(!plan.is_empty())
    }

    /// Builds the plan in each lowering, keeps the fastest, and returns its latency relative to the model;
    /// `None` if nothing is merged or there is no engine.
    fn choose_lowering(
        &self,
        model: &Model,
        plan: &mut MergePlan,
        analysis: &TokenAnalysis,
        cx: &Context<'_>,
    ) -> Result<Option<f64>, MeasureError> {
        let mut lowerings = vec![plan.lowering];
        let scatter = model.graph.opset("").unwrap_or(1) >= 16;
        if self.emit.is_none() && scatter && cx.tools.engine.is_some() {
            lowerings.push(Lowering::Scatter);
        }
        let mut candidates = vec![];
        for &lowering in &lowerings {
            let plan = MergePlan { lowering, ..plan.clone() };
            candidates.push(merged_model(model, &plan, analysis).map_err(MeasureError::Declined)?);
        }
        if plan.is_empty() {
            return Ok(None);
        }
        let models: Vec<&Model> = std::iter::once(model).chain(&candidates).collect();
        let times = latencies(cx.tools, &models, self.batch).map_err(MeasureError::Pass)?;
        let Some(times) = times else { return Ok(None) };
        let best = (1..times.len()).min_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(1);
        plan.lowering = lowerings[best - 1];
        Ok(Some(times[best] / times[0]))
    }
}

fn report(cx: &mut Context<'_>, merged: &Merged, analysis: &TokenAnalysis, latency: Option<f64>) {
    if merged.tokens > 0 {
        let tokens = Counter::new("token merged", "tokens merged");
        cx.count_of(tokens, merged.tokens as u64, analysis.tokens[0] as u64);
        cx.count(Counter::new("block with merges", "blocks with merges"), merged.blocks as u64);
    }
    cx.count(Counter::new("unread token dropped", "unread tokens dropped"), merged.dropped as u64);
    if let Some(latency) = latency.filter(|_| merged.tokens + merged.dropped > 0) {
        cx.share("latency", latency);
        if latency > 1.0 {
            cx.report.notes.push(
                "merging costs more time than it saves on this machine; `schedule=auto` merges only where it is faster"
                    .into(),
            );
        }
    }
}
