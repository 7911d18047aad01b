//! The `drop-blocks` pass: options, search and report.

mod interface;
mod merge;
mod repair;
mod score;
#[cfg(test)]
mod tests;

use crate::{
    analysis::{
        blocks::{Block, blocks, chains, layers},
        evaluation::{HeldOut, Quality, QualityLimits},
        prepare::prepare,
        samples::Split,
    },
    framework::{Context, Counter, Pass, PassError, Tools},
    pass,
};
use pare_graph::{Graph, Model};
use score::Scores;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The score of a block; the lowest is removed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockCriterion {
    /// `1 - E cos(u, v)` over positions (block influence, *ShortGPT*).
    Influence,
    /// The angle between the input and the output of a span of blocks (*The Unreasonable Ineffectiveness of
    /// the Deeper Layers*).
    Angular,
    /// The entropy of the signs of the inputs of activations (*EASIER*).
    Entropy,
    /// The same entropy, from means and deviations (*TLC*).
    Tlc,
    /// The max-sliced Wasserstein distance between input and output (*LaCoOT*).
    Wasserstein,
    /// The drift of the outputs without the block.
    Loss,
}

/// The repair of the remaining layers after blocks are removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BlockRepair {
    /// No repair.
    None,
    /// Refits scale and bias per channel of the layer before the gap.
    Affine,
    /// Folds a least-squares map after the layer before the gap into its weights (*ReplaceMe*).
    LeastSquares,
    /// Refits that layer and every later one to reproduce the values of the original.
    Refit,
    /// Adds the differences to the removed blocks to the weights of a kept block of the same shape,
    /// `θ + η·Σ (θ' - θ)`, with `η` chosen on samples (*LaCo*, as in the paper).
    Merge,
    /// Replaces the weights of a kept block of the same shape by those of the last removed one (*LaCo*, as in
    /// its code).
    KeepLast,
}

/// The unit of removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// A block: in transformers, attention or an MLP.
    Block,
    /// A layer: in transformers, attention and its MLP.
    Layer,
}

pass! {
    /// Remove residual blocks and repair the remaining layers.
    ///
    /// `v = u + f(u)` becomes `u`, a projection `v = s(u) + f(u)` becomes `s(u)`. Blocks are removed one at a
    /// time and scored again after each, until `count` or `ratio` is reached or a limit would be exceeded on
    /// held-out samples, which also decide whether the repair is kept. No training.
    ///
    /// Declines blocks with model inputs or outputs of their own, such as a KV cache, unless
    /// `allow_interface_change=true`: then these are removed, and the numbers in the names of the others are
    /// closed up.
    #[pass("drop-blocks", Lossy)]
    pub struct DropBlocks {
        /// The number of blocks to remove.
        pub count: Option<usize> = None,
        /// The share of the blocks to remove.
        pub ratio: Option<f64> = None,
        /// The largest drift of the outputs (mean KL divergence of class scores, else squared error over
        /// variance).
        pub max_drift: Option<f64> = None,
        /// The smallest share of samples that keep their class.
        pub min_agreement: Option<f64> = None,
        /// The largest drop of accuracy; needs `labels`.
        pub max_accuracy_drop: Option<f64> = None,
        /// Remove these blocks, by name, instead of those with the lowest scores.
        pub blocks: Vec<String> = vec![],
        /// The score: `influence`, `angular`, `entropy`, `tlc`, `wasserstein` or `loss`.
        pub criterion: BlockCriterion = BlockCriterion::Loss,
        /// The repair: `none`, `affine`, `least-squares`, `refit`, `merge` or `keep-last`.
        pub repair: BlockRepair = BlockRepair::Refit,
        /// The unit of removal: a `block`, or a `layer` (attention and its MLP).
        pub unit: Unit = Unit::Block,
        /// Score once, before any block is removed.
        pub one_shot: bool = false,
        /// Also remove blocks with model inputs or outputs of their own, together with these.
        pub allow_interface_change: bool = false,
    }
}

impl Pass for DropBlocks {
    fn validate(&self) -> Result<(), String> {
        if let Some(ratio) = self.ratio.filter(|r| !(*r > 0.0 && *r <= 1.0)) {
            return Err(format!("`ratio` is a share between 0 and 1, not {ratio}"));
        }
        if self.count.is_some() && self.ratio.is_some() {
            return Err("only one of `count` and `ratio` can be given".into());
        }
        if !self.blocks.is_empty() && (self.count.is_some() || self.ratio.is_some()) {
            return Err("`blocks` excludes `count` and `ratio`".into());
        }
        if self.count == Some(0) {
            return Err("`count` is at least 1".into());
        }
        self.limits().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let without_target = self.count.is_none() && self.ratio.is_none() && self.blocks.is_empty();
        if without_target && !self.limits().any() {
            let hint = "such as `drop-blocks{count=1}` or `drop-blocks{min_agreement=0.99}`";
            return Err(PassError::refused_with("it needs a target", hint));
        }
        let split = Split::required(cx.tools, None)?;
        cx.run_nested("resolve-shapes", model)?;
        prepare(model, cx)?;
        if cx.stopped() {
            return Ok(());
        }
        let search = BlockSearch { pass: self, tools: cx.tools, original: model.clone(), split };
        let Some((mut result, removed)) = search.run(cx)? else { return Ok(()) };
        if !cx.permit() {
            return Ok(());
        }
        // Activations between removed blocks are now consecutive.
        cx.scratch().run("drop-idempotent", &mut result)?;
        interface::close_up(&mut result, &search.interface(&removed), cx);
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

/// A removed block, by names of the original.
#[derive(Clone, Debug, PartialEq)]
struct RemovedBlock {
    /// Its name in reports.
    name: String,
    /// The output of its body.
    branch: String,
    /// The stream after it.
    exit: String,
}

impl RemovedBlock {
    fn of(graph: &Graph, block: &Block) -> Self {
        let name = |v| graph.value(v).name.clone();
        Self { name: block.name.clone(), branch: name(block.branch), exit: name(block.exit) }
    }
}

/// The search for the blocks to remove.
struct BlockSearch<'p, 't> {
    pass: &'p DropBlocks,
    tools: Tools<'t>,
    original: Model,
    split: Split,
}

impl BlockSearch<'_, '_> {
    /// Removes blocks until the target is reached. `None` if none is removed.
    fn run(&self, cx: &mut Context<'_>) -> Result<Option<(Model, Vec<RemovedBlock>)>, PassError> {
        let held_out = HeldOut::new(self.tools, &self.original, self.split.held_out.clone())?;
        let graph = &self.original.graph;
        let all = self.units(&self.original, cx);
        if all.is_empty() {
            let name = graph.name.as_deref().unwrap_or("the graph");
            return Err(PassError::refused(format!("`{name}` has no residual block that can be removed")));
        }
        if !self.pass.blocks.is_empty() {
            return self.remove_named(&all, &held_out, cx).map(Some);
        }
        let wanted = match (self.pass.count, self.pass.ratio) {
            (Some(count), _) => count,
            (_, Some(ratio)) => ((ratio * all.len() as f64).round() as usize).max(1),
            _ => all.len(),
        };
        let wanted = wanted.min(all.len());
        let limits = self.pass.limits();
        let (mut removed, mut best): (Vec<RemovedBlock>, Option<(Model, Quality)>) = (vec![], None);
        let mut units = 0;
        let mut first: Option<Scores> = None;
        while units < wanted {
            cx.tools.progress.step("blocks", units as u64, wanted as u64);
            let current = best.as_ref().map_or(&self.original, |b| &b.0);
            let scores = match &first {
                Some(scores) if self.pass.one_shot => scores.clone(),
                _ => self.scores(current, self.units(current, cx), &held_out, wanted - units)?,
            };
            let next = scores.lowest(&removed, wanted - units);
            first.get_or_insert(scores);
            let Some(next) = next else { break };
            let mut candidate = removed.clone();
            candidate.extend(next.blocks.iter().cloned());
            let (model, measured) = self.without(&candidate, &held_out, cx)?;
            let names: Vec<_> = next.blocks.iter().map(|b| format!("`{}`", b.name)).collect();
            if let Some(why) = limits.broken(&measured) {
                cx.decline(format!("{} is kept: {why}", names.join(" and ")));
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
            removed = candidate;
            best = Some((model, measured));
        }
        cx.count(Counter::new("block dropped", "blocks dropped"), removed.len() as u64);
        let Some((model, measured)) = best else { return Ok(None) };
        report_quality(&measured, cx);
        Ok(Some((model, removed)))
    }

    /// Removes the blocks named in the options.
    fn remove_named(
        &self,
        units: &[Vec<Block>],
        held_out: &HeldOut<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Model, Vec<RemovedBlock>), PassError> {
        let found = |name: &String| {
            let block = units.iter().flatten().find(|b| b.name == *name).ok_or_else(|| {
                let names: Vec<_> = units.iter().flatten().map(|b| format!("`{}`", b.name)).collect();
                let hint = format!("the blocks that can be removed are {}", names.join(", "));
                PassError::refused_with(format!("there is no removable block `{name}`"), hint)
            })?;
            Ok(RemovedBlock::of(&self.original.graph, block))
        };
        let removed = self.pass.blocks.iter().map(found).collect::<Result<Vec<_>, PassError>>()?;
        let (model, measured) = self.without(&removed, held_out, cx)?;
        if let Some(why) = self.pass.limits().broken(&measured) {
            return Err(PassError::refused(why));
        }
        cx.count(Counter::new("block dropped", "blocks dropped"), removed.len() as u64);
        report_quality(&measured, cx);
        Ok((model, removed))
    }

    /// The units of a model that can be removed, in order.
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
                    "`{}` has an interface of its own, such as `{value}` (removed with `allow_interface_change=true`)",
                    unit[0].name
                )),
                None => units.push(unit),
            }
        }
        units
    }

    /// Names of inputs and outputs that belong to these blocks.
    fn interface(&self, removed: &[RemovedBlock]) -> Vec<String> {
        let graph = &self.original.graph;
        let is_removed = |b: &Block| removed.iter().any(|r| r.branch == graph.value(b.branch).name);
        blocks(graph).iter().filter(|b| is_removed(b)).flat_map(|b| interface::own(graph, b)).collect()
    }

    /// The original without these blocks, repaired if that reduces the drift.
    fn without(
        &self,
        removed: &[RemovedBlock],
        held_out: &HeldOut<'_>,
        cx: &mut Context<'_>,
    ) -> Result<(Model, Quality), PassError> {
        let mut plain = self.original.clone();
        let replacements = remove_blocks(&mut plain, removed)?;
        plain.infer()?;
        let measured = held_out.measure(&plain)?;
        let mut best = (plain.clone(), measured);
        for (what, repaired) in self.repaired(removed, &replacements, &plain, held_out)? {
            let measured = held_out.measure(&repaired)?;
            cx.detail(format!("drift {what}"), measured.drift);
            if measured.drift < best.1.drift {
                best = (repaired, measured);
            }
        }
        if self.pass.repair != BlockRepair::None {
            cx.figure("drift without repair", measured.drift);
        }
        Ok(best)
    }
}

fn report_quality(measured: &Quality, cx: &mut Context<'_>) {
    cx.figure("drift", measured.drift);
    if let Some(agreement) = measured.agreement {
        cx.figure("agreement", agreement);
    }
}

/// Removes blocks from a model. Returns, for the stream after each block, the value that replaces it, by
/// name.
fn remove_blocks(model: &mut Model, removed: &[RemovedBlock]) -> Result<HashMap<String, String>, PassError> {
    let graph = &mut model.graph;
    let mut replacements = HashMap::new();
    for block in removed {
        let refused = |why: String| PassError::refused(format!("`{}` cannot be removed: {why}", block.name));
        let found = blocks(graph).into_iter().find(|b| graph.value(b.branch).name == block.branch);
        let found = found.ok_or_else(|| refused("it is no longer a block".into()))?;
        replacements.insert(block.exit.clone(), graph.value(found.rest).name.clone());
        let patch = found.dropped(graph).ok_or_else(|| refused("its sum has other uses".into()))?;
        graph.apply(patch).map_err(|e| refused(e.to_string()))?;
    }
    Ok(replacements)
}

/// Chains of consecutive units, as indices into `units`.
fn consecutive(graph: &Graph, units: &[Vec<Block>]) -> Vec<Vec<usize>> {
    let all = blocks(graph);
    let unit = |i: usize| units.iter().position(|u| u.iter().any(|b| b.branch == all[i].branch));
    let run = |chain: Vec<Vec<usize>>| {
        let mut run: Vec<_> = chain.into_iter().flatten().filter_map(unit).collect();
        run.dedup();
        run
    };
    chains(graph, &all).into_iter().map(run).filter(|r| !r.is_empty()).collect()
}
