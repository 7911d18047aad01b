//! Residual blocks, with their shares of weights, multiply-accumulates and time.

use super::{Checked, InspectOptions};
use crate::{Error, Source, environment::LazyEngine, samples::FeedOptions};
use pare_graph::{Model, onnx};
use pare_passes::analysis::{
    blocks::{Block, blocks, layers},
    flow::Flow,
};
use pare_runtime::{Contender, LoadOptions, ModelSource, Optimize, Stopwatch, bench};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Models without a block that are timed against the entire model at once.
const TIMED_AT_ONCE: usize = 8;

/// The residual blocks of a model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct Blocks {
    /// The model file.
    pub model: Option<PathBuf>,
    /// The blocks in topological order.
    pub blocks: Vec<BlockShare>,
    /// Number of layers of blocks.
    pub layers: usize,
    /// Values that all data passes through.
    pub cuts: Vec<String>,
    /// The engine of the times, or why they could not be measured.
    #[serde(skip)]
    pub timed_in: Result<String, String>,
}

/// A residual block with its shares of the model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct BlockShare {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: String,
    /// `identity` or `projection`.
    pub skip: &'static str,
    /// The layer that it belongs to.
    pub layer: usize,
    /// Nodes of its body.
    pub nodes: usize,
    /// The value that it computes.
    pub exit: String,
    /// Share of the parameters.
    pub parameters: f64,
    /// Share of the multiply-accumulates.
    pub macs: f64,
    /// Share of the time that a run without the block saves.
    pub time: Option<f64>,
}

/// Returns the residual blocks of a model; the time of each is measured by running the model without it.
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] for an invalid model.
pub fn inspect_blocks(source: impl Into<Source>, options: &InspectOptions) -> Result<Blocks, Error> {
    let Checked { model, path, .. } = Checked::load(source.into())?;
    let graph = &model.graph;
    let found = blocks(graph);
    let layers = layers(graph, &found);
    let sizes = options.bindings(&model)?;
    let all = model.cost(&sizes);
    let share = |all: u64, rest: u64| (all.saturating_sub(rest)) as f64 / all.max(1) as f64;
    let without: Vec<_> = found.iter().map(|block| without_block(&model, block)).collect();
    let describe = |(i, block): (usize, &Block)| {
        let rest = without[i].as_ref().map_or_else(|| all.clone(), |m| m.cost(&sizes));
        BlockShare {
            name: block.name.clone(),
            kind: block.kind.to_string(),
            skip: if block.identity { "identity" } else { "projection" },
            layer: layers.iter().position(|l| l.contains(&i)).unwrap_or(i),
            nodes: block.body.len(),
            exit: graph.value(block.exit).name.clone(),
            parameters: share(all.params, rest.params),
            macs: share(all.macs, rest.macs),
            time: None,
        }
    };
    let mut shares: Vec<_> = found.iter().enumerate().map(describe).collect();
    let timed_in = match time_shares(&model, &without, options) {
        Ok((times, engine)) => {
            shares.iter_mut().zip(times).for_each(|(share, time)| share.time = time);
            Ok(engine)
        }
        Err(Error::Cancelled) => return Err(Error::Cancelled),
        Err(error) => Err(error.to_string()),
    };
    let cuts = Flow::of(graph).cuts().iter().map(|&v| graph.value(v).name.clone()).collect();
    Ok(Blocks { model: path, blocks: shares, layers: layers.len(), cuts, timed_in })
}

fn without_block(model: &Model, block: &Block) -> Option<Model> {
    let mut without = model.clone();
    without.graph.apply(block.dropped(&model.graph)?).ok()?;
    without.graph.sweep();
    Some(without)
}

/// The share of the model's time that each reduced model saves, and the engine.
fn time_shares(
    model: &Model,
    without: &[Option<Model>],
    options: &InspectOptions,
) -> Result<(Vec<Option<f64>>, String), Error> {
    let environment = &options.environment;
    let engine = LazyEngine::new(environment);
    let threads = environment.single_thread();
    let load = LoadOptions { threads, ..engine.load_options() }.with_optimize(Optimize::All);
    let feeds = FeedOptions { samples: None, batch: 1, dims: &options.dims, seed: environment.seed };
    let mut feeds = feeds.feeds(model)?;
    feeds.truncate(1);
    let contender = |model: &Model| -> Result<Contender, Error> {
        let session = engine.engine()?.load(&ModelSource::bytes(onnx::to_bytes(model)?), &load)?;
        Ok(Contender::new(session, &feeds)?)
    };
    let mut saved = vec![None; without.len()];
    let candidates: Vec<_> = without.iter().enumerate().filter_map(|(i, m)| Some((i, m.as_ref()?))).collect();
    for (chunk, candidates) in candidates.chunks(TIMED_AT_ONCE).enumerate() {
        environment.progress.step("timing", (chunk * TIMED_AT_ONCE) as u64, without.len() as u64);
        let mut contenders = vec![contender(model)?];
        for (_, model) in candidates {
            contenders.push(contender(model)?);
        }
        let stopwatch = Stopwatch { min_time: Duration::from_secs(2), rounds: 20, ..Stopwatch::default() };
        let report = bench(&mut contenders, &stopwatch)?;
        for (&(i, _), ratio) in candidates.iter().zip(&report.ratios[1..]) {
            saved[i] = Some(1.0 - ratio.median);
        }
    }
    Ok((saved, engine.description()?))
}
