//! `pare inspect --blocks`: residual blocks, and what each is worth: weights, multiply-accumulates, time.

use crate::{
    args::{Common, InspectArgs},
    bench::feeds,
    failure::Failure,
    inputs::Engines,
    voice::{self, Voice},
};
use pare_graph::{Model, onnx, ops::Bindings};
use pare_passes::{
    Progress,
    analysis::{
        blocks::{Block, blocks, layers},
        flow::Flow,
    },
};
use pare_runtime::{Contender, Feed, LoadOptions, ModelSource, Optimize, Stopwatch, bench};
use serde_json::json;
use std::time::Duration;

/// Models that are timed against the whole at once.
const TIMED_AT_ONCE: usize = 8;

struct Row {
    name: String,
    kind: String,
    skip: &'static str,
    layer: usize,
    nodes: usize,
    params: f64,
    macs: f64,
    time: Option<f64>,
    exit: String,
}

pub fn run(args: &InspectArgs, common: &Common, voice: &Voice, model: &Model) {
    let graph = &model.graph;
    let found = blocks(graph);
    let layers = layers(graph, &found);
    let sizes = Bindings { sizes: args.dims.iter().cloned().collect(), ..Bindings::default() };
    let whole = model.cost(&sizes);
    let mut rows = vec![];
    let mut without = vec![];
    for (i, block) in found.iter().enumerate() {
        let dropped = dropped(model, block);
        let cost = dropped.as_ref().map_or_else(|| whole.clone(), |m| m.cost(&sizes));
        let share = |all: u64, rest: u64| (all.saturating_sub(rest)) as f64 / all.max(1) as f64;
        rows.push(Row {
            name: block.name.clone(),
            kind: block.kind.to_string(),
            skip: if block.identity { "identity" } else { "projection" },
            layer: layers.iter().position(|l| l.contains(&i)).unwrap_or(i),
            nodes: block.body.len(),
            params: share(whole.params, cost.params),
            macs: share(whole.macs, cost.macs),
            time: None,
            exit: graph.value(block.exit).name.clone(),
        });
        without.push(dropped);
    }
    let note = match times(args, common, voice, model, &without) {
        Ok((times, engine)) => {
            rows.iter_mut().zip(times).for_each(|(row, time)| row.time = time);
            format!("time: what a run without the block saves, interleaved with the whole, in {engine}\n")
        }
        Err(failure) => format!("not timed: {}\n", failure.message),
    };
    let cuts: Vec<_> = Flow::of(graph).cuts().iter().map(|&v| graph.value(v).name.clone()).collect();
    let machine = || {
        let block = |r: &Row| {
            json!({ "name": r.name, "kind": r.kind, "skip": r.skip, "layer": r.layer, "nodes": r.nodes, "exit": r.exit,
                    "parameters": r.params, "macs": r.macs, "time": r.time })
        };
        json!({ "model": args.model, "blocks": rows.iter().map(block).collect::<Vec<_>>(), "layers": layers.len(), "cuts": cuts })
    };
    let people = || {
        if rows.is_empty() {
            return "there are no residual blocks\n".to_owned();
        }
        let percent = |share: f64| format!("{:.1} %", 100.0 * share);
        let row = |r: &Row| {
            let time = r.time.map_or_else(|| "?".into(), percent);
            let (kind, skip) = (r.kind.clone(), r.skip.to_owned());
            vec![r.name.clone(), kind, skip, percent(r.params), percent(r.macs), time]
        };
        let head = ["block", "of", "skip", "weights", "MACs", "time"];
        let table = voice::table(&head, rows.iter().map(row).collect());
        let (n, l, c) = (rows.len(), layers.len(), cuts.len());
        format!("{table}\n{n} blocks in {l} layers; {c} tensors that all data passes\n{note}")
    };
    voice.report(machine, people);
}

/// The model without a block.
fn dropped(model: &Model, block: &Block) -> Option<Model> {
    let mut without = model.clone();
    without.graph.apply(block.dropped(&model.graph)?).ok()?;
    without.graph.sweep();
    Some(without)
}

/// For each model the share of the whole's time that it saves.
fn times(
    args: &InspectArgs,
    common: &Common,
    voice: &Voice,
    whole: &Model,
    without: &[Option<Model>],
) -> Result<(Vec<Option<f64>>, String), Failure> {
    let engines = Engines::new(common, voice);
    let threads = if common.threads == 0 { 1 } else { common.threads };
    let options = LoadOptions { threads, ..engines.load_options() }.with_optimize(Optimize::All);
    let mut feeds = feeds(None, 1, &args.dims, whole, common.seed)?;
    feeds.truncate(1);
    let contender = |model: &Model, feeds: &[Feed]| -> Result<Contender, Failure> {
        let session = engines.engine()?.load(&ModelSource::bytes(onnx::to_bytes(model)?), &options)?;
        Ok(Contender::new(session, feeds)?)
    };
    let mut saved = vec![None; without.len()];
    let places: Vec<_> = (0..without.len()).filter(|&i| without[i].is_some()).collect();
    for (lot, places) in places.chunks(TIMED_AT_ONCE).enumerate() {
        Progress::step(voice, "timing", (lot * TIMED_AT_ONCE) as u64, without.len() as u64);
        let mut contenders = vec![contender(whole, &feeds)?];
        for model in places.iter().filter_map(|&i| without[i].as_ref()) {
            contenders.push(contender(model, &feeds)?);
        }
        let limits = Stopwatch { min_time: Duration::from_secs(2), rounds: 20, ..Stopwatch::default() };
        let report = bench(&mut contenders, &limits)?;
        for (&i, ratio) in places.iter().zip(&report.ratios[1..]) {
            saved[i] = Some(1.0 - ratio.median);
        }
    }
    Ok((saved, engines.get()?.note.clone()))
}
