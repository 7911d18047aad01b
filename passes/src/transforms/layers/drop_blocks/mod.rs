//! The pass: which blocks go, one after another, and how what is left makes up for them.

mod heal;
mod interface;
mod merge;
mod score;
#[cfg(test)]
mod tests;

use crate::analysis::samples::Split;
use crate::{
    analysis::{
        blocks::{Block, blocks, chains, layers},
        evaluation::{HeldOut, Quality, QualityLimits},
        prepare::prepare,
    },
    framework::{Context, Counter, Pass, PassError, Tools},
    pass,
};
use heal::heal;
use pare_graph::{Graph, Model};
use score::Scores;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// What makes a block dispensable; the least goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Criterion {
    /// `1 - E cos(u, v)` over places (block influence, *ShortGPT*).
    Influence,
    /// The angle between what goes into a span of blocks and what comes out (*The Unreasonable Ineffectiveness of the
    /// Deeper Layers*).
    Angular,
    /// The entropy of the signs before the body's activations (*EASIER*).
    Entropy,
    /// The same from means and deviations (*TLC*).
    Tlc,
    /// The max-sliced Wasserstein distance of what goes in and what comes out (*LaCoOT*).
    Wasserstein,
    /// The drift of the outputs without the block.
    Loss,
}

/// How what is left makes up for what is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Healing {
    /// It does not.
    None,
    /// The layer before gets another scale and bias for each channel.
    Affine,
    /// Behind the layer before comes the best linear map, folded into its weights (*ReplaceMe*).
    LeastSquares,
    /// That layer, and every one behind, is fitted anew to what the original gives there.
    Refit,
    /// A block before, of the same shape, takes up what changed from it to those that are gone, `θ + η·Σ (θ' - θ)`, `η`
    /// chosen on samples (*LaCo*, as in the paper).
    Merge,
    /// A block before takes the weights of the last one that is gone (*LaCo*, as its notebooks compute).
    KeepLast,
}

/// What goes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A block: in transformers, attention or an MLP.
    Block,
    /// A layer: in transformers, attention with its MLP.
    Layer,
}

pass! {
    /// Drop residual blocks, and let what is left make up for them.
    ///
    /// Of `v = u + f(u)` stays `u`, of a projection `v = s(u) + f(u)` stays `s(u)` (see `pare inspect --blocks`). Blocks go
    /// one after another, scored anew each time, until `count` or `ratio` are gone, or a limit would be broken on
    /// samples that nothing was fitted to; those are also what decides whether healing helped. No training.
    ///
    /// Declines to drop blocks that read inputs or make outputs of their own, such as a KV cache, unless
    /// `allow_interface_change=true`: then these go, and numbers in the names of the others close up.
    #[pass("drop-blocks", Lossy)]
    pub struct DropBlocks {
        /// How many go.
        pub count: Option<usize> = None,
        /// Share of the blocks that goes.
        pub ratio: Option<f64> = None,
        /// Go on as long as the outputs drift by no more.
        pub max_drift: Option<f64> = None,
        /// Go on as long as at least this share of samples keeps its class.
        pub min_agreement: Option<f64> = None,
        /// Go on as long as accuracy on labelled samples drops by no more.
        pub max_accuracy_drop: Option<f64> = None,
        /// Drop these, by name, instead of the least missed.
        pub blocks: Vec<String> = vec![],
        /// `influence`, `angular`, `entropy`, `tlc`, `wasserstein` or `loss`.
        pub criterion: Criterion = Criterion::Loss,
        /// `none`, `affine`, `least-squares`, `refit`, `merge` or `keep-last`.
        pub healing: Healing = Healing::Refit,
        /// What goes at once: a `block`, or a whole `layer` (attention with its MLP).
        pub unit: Unit = Unit::Block,
        /// Score once, before anything goes.
        pub one_shot: bool = false,
        /// Drop blocks with inputs or outputs of the model of their own, and these with them.
        pub allow_interface_change: bool = false,
    }
}

impl Pass for DropBlocks {
    fn validate(&self) -> Result<(), String> {
        if let Some(ratio) = self.ratio.filter(|r| !(*r > 0.0 && *r <= 1.0)) {
            return Err(format!("`ratio` is a share between 0 and 1, not {ratio}"));
        }
        if self.count.is_some() && self.ratio.is_some() {
            return Err("only one of `count` and `ratio` can be asked for".into());
        }
        if !self.blocks.is_empty() && (self.count.is_some() || self.ratio.is_some()) {
            return Err("`blocks` says already how many go".into());
        }
        if self.count == Some(0) {
            return Err("`count` is at least 1".into());
        }
        self.limits().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let open = self.count.is_none() && self.ratio.is_none() && self.blocks.is_empty();
        if open && !self.limits().any() {
            let hint = "such as `drop-blocks{count=1}` or `drop-blocks{min_agreement=0.99}`";
            return Err(PassError::refused_with("it needs to know how far to go", hint));
        }
        let split = Split::required(cx.tools, None)?;
        cx.run_nested("resolve-shapes", model)?;
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let work = Work { pass: self, tools: cx.tools, original: model.clone(), split };
        let Some((mut result, gone)) = work.drop(cx)? else { return Ok(()) };
        if !cx.permit() {
            return Ok(());
        }
        // Activations that stood between two blocks stand side by side now.
        cx.scratch().run("drop-idempotent", &mut result)?;
        interface::close_up(&mut result, &work.interface(&gone), cx);
        result.infer()?;
        *model = result;
        Ok(())
    }
}

impl DropBlocks {
    fn limits(&self) -> QualityLimits {
        QualityLimits {
            max_drift: self.max_drift,
            min_agreement: self.min_agreement,
            max_accuracy_drop: self.max_accuracy_drop,
        }
    }
}

/// A block that is gone, by names of the original.
#[derive(Clone, Debug, PartialEq)]
struct Gone {
    /// For people.
    name: String,
    /// What the body gave.
    branch: String,
    /// The stream behind.
    exit: String,
}

impl Gone {
    fn of(graph: &Graph, block: &Block) -> Self {
        let name = |v| graph.value(v).name.clone();
        Self { name: block.name.clone(), branch: name(block.branch), exit: name(block.exit) }
    }
}

struct Work<'p, 't> {
    pass: &'p DropBlocks,
    tools: Tools<'t>,
    original: Model,
    split: Split,
}

impl Work<'_, '_> {
    /// The model without the blocks that can go; `None` if none can.
    fn drop(&self, cx: &mut Context<'_>) -> Result<Option<(Model, Vec<Gone>)>, PassError> {
        let trial = HeldOut::new(self.tools, &self.original, self.split.held_out.clone())?;
        let graph = &self.original.graph;
        let all = self.units(&self.original, cx);
        if all.is_empty() {
            let name = graph.name.as_deref().unwrap_or("the graph");
            return Err(PassError::refused(format!("`{name}` has no residual block that can go")));
        }
        if !self.pass.blocks.is_empty() {
            return self.drop_named(&all, &trial, cx).map(Some);
        }
        let wanted = match (self.pass.count, self.pass.ratio) {
            (Some(count), _) => count,
            (_, Some(ratio)) => ((ratio * all.len() as f64).round() as usize).max(1),
            _ => all.len(),
        };
        let wanted = wanted.min(all.len());
        let limits = self.pass.limits();
        let (mut gone, mut best): (Vec<Gone>, Option<(Model, Quality)>) = (vec![], None);
        let mut units = 0;
        let mut first: Option<Scores> = None;
        while units < wanted {
            cx.tools.progress.step("blocks", units as u64, wanted as u64);
            let current = best.as_ref().map_or(&self.original, |b| &b.0);
            let scores = match &first {
                Some(scores) if self.pass.one_shot => scores.clone(),
                _ => self.scores(current, self.units(current, cx), &trial, wanted - units)?,
            };
            let next = scores.least(&gone, wanted - units);
            first.get_or_insert(scores);
            let Some(next) = next else { break };
            let mut candidate = gone.clone();
            candidate.extend(next.gone.iter().cloned());
            let (model, measured) = self.without(&candidate, &trial, cx)?;
            let names: Vec<_> = next.gone.iter().map(|g| format!("`{}`", g.name)).collect();
            if let Some(why) = limits.broken(&measured) {
                cx.decline(format!("{} stays: {why}", names.join(" and ")));
                break;
            }
            let agreement = measured.agreement.map_or_else(String::new, |a| format!(", agreement {a:.4}"));
            let note = format!(
                "dropped {} (score {:.3e}): drift {:.3e}{agreement}",
                names.join(" and "),
                next.score,
                measured.drift
            );
            cx.report.notes.push(note);
            units += next.units;
            gone = candidate;
            best = Some((model, measured));
        }
        cx.count(Counter::new("block dropped", "blocks dropped"), gone.len() as u64);
        let Some((model, measured)) = best else { return Ok(None) };
        figures(&measured, cx);
        Ok(Some((model, gone)))
    }

    /// The model without the blocks that were asked for.
    fn drop_named(
        &self,
        units: &[Vec<Block>],
        trial: &HeldOut<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Model, Vec<Gone>), PassError> {
        let found = |name: &String| {
            let block = units.iter().flatten().find(|b| b.name == *name).ok_or_else(|| {
                let names: Vec<_> = units.iter().flatten().map(|b| format!("`{}`", b.name)).collect();
                let hint = format!("those that can go are {}", names.join(", "));
                PassError::refused_with(format!("no block that can go is called `{name}`"), hint)
            })?;
            Ok(Gone::of(&self.original.graph, block))
        };
        let gone = self.pass.blocks.iter().map(found).collect::<Result<Vec<_>, PassError>>()?;
        let (model, measured) = self.without(&gone, trial, cx)?;
        if let Some(why) = self.pass.limits().broken(&measured) {
            return Err(PassError::refused(why));
        }
        cx.count(Counter::new("block dropped", "blocks dropped"), gone.len() as u64);
        figures(&measured, cx);
        Ok((model, gone))
    }

    /// What may go next of a model: blocks, or layers of them, in order.
    fn units(&self, model: &Model, cx: &mut Context<'_>) -> Vec<Vec<Block>> {
        let graph = &model.graph;
        let found = blocks(graph);
        let groups = match self.pass.unit {
            Unit::Block => (0..found.len()).map(|i| vec![i]).collect(),
            Unit::Layer => layers(graph, &found),
        };
        let mut units = vec![];
        for group in groups {
            let unit: Vec<_> = group.iter().map(|&i| found[i].clone()).collect();
            let own = unit.iter().flat_map(|b| interface::own(graph, b)).collect::<Vec<_>>();
            match own.first().filter(|_| !self.pass.allow_interface_change) {
                Some(value) => cx.decline(format!(
                    "`{}` has an interface of its own, such as `{value}` (`allow_interface_change=true` lets it go)",
                    unit[0].name
                )),
                None => units.push(unit),
            }
        }
        units
    }

    /// Names of inputs and outputs that belong to these blocks.
    fn interface(&self, gone: &[Gone]) -> Vec<String> {
        let graph = &self.original.graph;
        let is_gone = |b: &Block| gone.iter().any(|g| g.branch == graph.value(b.branch).name);
        blocks(graph).iter().filter(|b| is_gone(b)).flat_map(|b| interface::own(graph, b)).collect()
    }

    /// The original without these blocks, healed if that helps.
    fn without(
        &self,
        gone: &[Gone],
        trial: &HeldOut<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Model, Quality), PassError> {
        let mut plain = self.original.clone();
        let stands = take_out(&mut plain, gone)?;
        plain.infer()?;
        let measured = trial.measure(&plain)?;
        let mut best = (plain.clone(), measured);
        for (what, healed) in heal(self, gone, &stands, &plain, trial)? {
            let measured = trial.measure(&healed)?;
            cx.detail(format!("drift {what}"), measured.drift);
            if measured.drift < best.1.drift {
                best = (healed, measured);
            }
        }
        if self.pass.healing != Healing::None {
            cx.figure("drift unhealed", measured.drift);
        }
        Ok(best)
    }
}

fn figures(measured: &Quality, cx: &mut Context<'_>) {
    cx.figure("drift", measured.drift);
    if let Some(agreement) = measured.agreement {
        cx.figure("agreement", agreement);
    }
}

/// Take blocks out of a model. Returns what stands for the stream behind each, by name.
fn take_out(model: &mut Model, gone: &[Gone]) -> Result<HashMap<String, String>, PassError> {
    let graph = &mut model.graph;
    let mut stands = HashMap::new();
    for block in gone {
        let refused = |why: String| PassError::refused(format!("`{}` cannot go: {why}", block.name));
        let found = blocks(graph).into_iter().find(|b| graph.value(b.branch).name == block.branch);
        let found = found.ok_or_else(|| refused("it is no block any more".into()))?;
        stands.insert(block.exit.clone(), graph.value(found.rest).name.clone());
        let patch = found.dropped(graph).ok_or_else(|| refused("its sum is used in other ways".into()))?;
        graph.apply(patch).map_err(|e| refused(e.to_string()))?;
    }
    Ok(stands)
}

/// Units that follow one another, for spans: chains of places in a list of units.
fn runs(graph: &Graph, units: &[Vec<Block>]) -> Vec<Vec<usize>> {
    let all = blocks(graph);
    let place = |i: usize| units.iter().position(|u| u.iter().any(|b| b.branch == all[i].branch));
    let run = |chain: Vec<Vec<usize>>| {
        let mut places: Vec<_> = chain.into_iter().flatten().filter_map(place).collect();
        places.dedup();
        places
    };
    chains(graph, &all).into_iter().map(run).filter(|r| !r.is_empty()).collect()
}
