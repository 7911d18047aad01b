//! Fewer tokens: merging inserted into vision transformers.

mod census;
mod emit;
mod merge;
mod race;
mod refusal;
mod schedule;
mod survey;
#[cfg(test)]
mod tests;
mod trace;

pub use census::{BlockTokens, census};
pub use emit::Emit;
pub use refusal::Refusal;
pub use survey::Survey;

use crate::{
    analysis::evaluation::QualityLimits,
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use merge::{Done, Plan, merge};
use pare_graph::{Graph, Model};
use schedule::{capped, search, share_out};
use serde::{Deserialize, Serialize};

/// Which tokens go, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Similar ones become one, some in every block (Bolya et al., Token Merging, 2023).
    Tome,
    /// Most of them in the last blocks, folded again and again (Wang et al., FOLDER, 2025).
    Folder,
    /// In three blocks; for samples whose significance is spread unevenly they are pruned (Wu et al., PPT, 2023).
    Ppt,
}

/// What tokens are compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MetricOf {
    /// The mean of their keys over the heads.
    Key,
    /// The stream itself.
    Feature,
}

/// One number for all blocks, or one for each.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Counts {
    /// For all.
    One(usize),
    /// For each.
    Each(Vec<usize>),
}

/// Who chooses the counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Schedule {
    /// `r` does.
    Fixed,
    /// What wins time on this machine within the limits.
    Auto,
}

pass! {
    /// Merge tokens of a vision transformer that say the same.
    ///
    /// Between the attention and the MLP of a block every second token may join the most similar one of the others, if it
    /// is among the `r` most similar ones: `x ← Σ size·x / Σ size`. Sizes go along: keys of later attentions get `log(size)`
    /// added to their scores, and means over tokens count each as often as it stands for others. Class and distillation
    /// tokens stay. Where only these are read after the last attention, the others are dropped there instead.
    ///
    /// Declines, with the reason, where fewer tokens would not mean the same: windows, biases by place, causal or cached
    /// attention, positions added later, tokens laid out in two dimensions or given as an output. Needs operator set 13.
    #[pass("merge-tokens", Lossy)]
    pub struct MergeTokens {
        /// `tome`, `folder` or `ppt`.
        pub method: Method = Method::Tome,
        /// Tokens to merge in each block: one number, or a list with one for each (of `blocks`, if these are given).
        pub r: Counts = Counts::One(8),
        /// Blocks to merge in, the first is 0; by default as the method says.
        pub blocks: Vec<usize> = vec![],
        /// What tokens are compared by: `key` or `feature`.
        pub metric: MetricOf = MetricOf::Key,
        /// Add the logarithms of sizes to the scores of later attentions.
        pub proportional: bool = true,
        /// `scatter` (operator set 16) or `matmul` (13). By default the one that is faster on this machine.
        pub emit: Option<Emit> = None,
        /// `fixed`, or `auto`: the `r` of each block that wins most time within the limits.
        pub schedule: Schedule = Schedule::Fixed,
        /// For `auto`: the least share of samples that keep their class; 0.98 if no limit is given.
        pub min_agreement: Option<f64> = None,
        /// For `auto`: the greatest drift.
        pub max_drift: Option<f64> = None,
        /// For `auto`: the greatest loss of accuracy, if samples have labels.
        pub max_accuracy_drop: Option<f64> = None,
        /// Drop the tokens that nobody reads after the last attention.
        pub drop_unread: bool = true,
        /// For `ppt`: the variance of the tokens' significance from which on they are pruned.
        pub threshold: f64 = 7e-5,
        /// For `folder`: how much tokens that the class token attends to are kept from being merged.
        pub alpha: f64 = 1.0,
        /// Samples in a run when time is measured.
        pub batch: usize = 1,
    }
}

impl Pass for MergeTokens {
    fn validate(&self) -> Result<(), String> {
        if matches!(&self.r, Counts::Each(r) if r.is_empty()) {
            return Err("`r` is an empty list".into());
        }
        if let (Counts::Each(r), false) = (&self.r, self.blocks.is_empty())
            && r.len() != self.blocks.len()
        {
            return Err(format!("`r` has {} numbers for {} `blocks`", r.len(), self.blocks.len()));
        }
        if self.limits().any() && self.schedule == Schedule::Fixed {
            return Err("limits are for `schedule=auto`".into());
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
        let opset = model.graph.opset("").unwrap_or(1);
        let needed = if self.emit == Some(Emit::Scatter) { 16 } else { 13 };
        if opset < needed {
            let hint =
                if opset >= 13 { "`emit=matmul` needs 13" } else { "convert the model to a newer one first" };
            let why = format!("merging tokens needs operator set {needed}, the model has {opset}");
            return Err(PassError::refused_with(why, hint));
        }
        let first = self.first();
        let survey = match Survey::of(&model.graph, first) {
            Ok(survey) => survey,
            Err(refusal) => {
                cx.decline(refusal);
                return Ok(());
            }
        };
        if let Some(block) = self.blocks.iter().find(|&&b| b >= survey.blocks) {
            return Err(PassError::refused(format!(
                "there is no block {block}: the last is {}",
                survey.blocks - 1
            )));
        }
        let r = match &self.r {
            Counts::One(r) => vec![*r],
            Counts::Each(r) => r.clone(),
        };
        let mut plan = Plan {
            method: self.method,
            counts: share_out(self.method, &r, &self.blocks, &survey),
            metric: self.metric,
            proportional: self.proportional,
            emit: self.emit.unwrap_or(Emit::Matmul),
            threshold: self.threshold,
            alpha: self.alpha,
            drop_unread: self.drop_unread,
            // Searching starts from what dropping alone wins.
            even_alone: false,
        };
        plan.counts = capped(&plan.counts, &plan, &survey);
        if self.schedule == Schedule::Auto {
            let limits = self.limits();
            let limits =
                if limits.any() { limits } else { QualityLimits { min_agreement: Some(0.98), ..limits } };
            let build = |counts: &[usize]| {
                built(model, &Plan { counts: counts.to_vec(), even_alone: true, ..plan.clone() }, &survey)
            };
            let Some(found) = search(cx.tools, model, &plan, &survey, &limits, self.batch, &build)? else {
                cx.decline("no merge wins time within the limits on this machine");
                return Ok(());
            };
            cx.report.notes.push(format!("tokens merged in each block: {:?}", found.counts));
            if let Some(agreement) = found.measured.agreement {
                cx.figure("agreement on held-out samples", agreement);
            }
            plan.counts = found.counts;
            plan.even_alone = true;
        }
        let measured = match self.measure(model, &mut plan, &survey, cx, opset) {
            Ok(measured) => measured,
            Err(Failed::Refused(refusal)) => {
                cx.decline(refusal);
                return Ok(());
            }
            Err(Failed::Pass(error)) => return Err(error),
        };
        if self.schedule == Schedule::Auto && measured.is_some_and(|speed| speed < 1.0) {
            cx.decline("no merge wins time within the limits on this machine");
            return Ok(());
        }
        let mut apply = |graph: &mut Graph, patch| {
            let left = cx.report.declined.len();
            let applied = cx.apply(graph, patch);
            match &applied {
                None if cx.report.declined.len() > left => {
                    Err(Refusal::Method("a change was refused".into()))
                }
                _ => Ok(applied),
            }
        };
        let done = merge(&mut model.graph, &plan, &survey, &mut apply);
        match done {
            Ok(done) => report(cx, done, measured),
            Err(refusal) => cx.decline(refusal),
        }
        Ok(())
    }
}

/// A plan that cannot be carried out, or tools that fail.
enum Failed {
    Refused(Refusal),
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

    /// The first block that may merge.
    fn first(&self) -> usize {
        self.blocks.iter().copied().min().unwrap_or(0)
    }

    /// Try the plan on a copy, and time it: first to choose how it is written, then against the model as it is. The speed is
    /// how many times as fast the result is.
    fn measure(
        &self,
        model: &Model,
        plan: &mut Plan,
        survey: &Survey,
        cx: &Context<'_>,
        opset: i64,
    ) -> Result<Option<f64>, Failed> {
        let mut candidates = vec![plan.emit];
        if self.emit.is_none() && opset >= 16 && cx.tools.engine.is_some() {
            candidates.push(Emit::Scatter);
        }
        let mut made = vec![];
        for &emit in &candidates {
            made.push(built(model, &Plan { emit, ..plan.clone() }, survey).map_err(Failed::Refused)?);
        }
        if plan.counts.iter().all(|&r| r == 0) && !plan.even_alone {
            return Ok(None);
        }
        let models: Vec<&Model> = std::iter::once(model).chain(&made).collect();
        let times = race::race(cx.tools, &models, self.batch).map_err(Failed::Pass)?;
        let Some(times) = times else { return Ok(None) };
        let best = (1..times.len()).min_by(|&a, &b| times[a].total_cmp(&times[b])).unwrap_or(1);
        plan.emit = candidates[best - 1];
        Ok(Some(times[0] / times[best]))
    }
}

/// A copy of the model after the plan.
fn built(model: &Model, plan: &Plan, survey: &Survey) -> Result<Model, Refusal> {
    let mut copy = model.clone();
    let mut apply =
        |graph: &mut Graph, patch| graph.apply(patch).map(Some).map_err(|e| Refusal::Method(e.to_string()));
    merge(&mut copy.graph, plan, survey, &mut apply)?;
    Ok(copy)
}

fn report(cx: &mut Context<'_>, done: Done, speed: Option<f64>) {
    if done.merged > 0 {
        cx.count(Counter::new("token merged", "tokens merged"), done.merged as u64);
        cx.count(Counter::new("merging block", "merging blocks"), done.blocks as u64);
    }
    if done.dropped > 0 {
        cx.count(
            Counter::new("token dropped that nobody reads", "tokens dropped that nobody reads"),
            done.dropped as u64,
        );
    }
    if let Some(speed) = speed.filter(|_| done.merged + done.dropped > 0) {
        let word = if speed < 1.0 { "slower" } else { "faster" };
        cx.report.notes.push(format!("{word} on this machine: {speed:.2}×"));
    }
}
