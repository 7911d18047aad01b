//! `pare inspect --tokens`: the tokens of each block of a transformer, its share of the MACs, and whether
//! tokens can be merged.

use crate::{
    failure::Done,
    voice::{self, Voice},
};
use pare_graph::{Model, ops::Bindings};
use pare_passes::transforms::tokens::{BlockTokens, TokenAnalysis, token_statistics};
use serde_json::json;
use std::path::Path;

pub fn run(path: &Path, model: &Model, sizes: &Bindings, voice: &Voice) -> Done {
    let blocks = token_statistics(model, sizes);
    let all = model.cost(sizes).macs;
    let analysis = TokenAnalysis::of(&model.graph, 0);
    let share = |macs: u64| if all > 0 { macs as f64 / all as f64 } else { 0.0 };
    voice.report(
        || {
            let block = |b: &BlockTokens| {
                json!({
                    "attention": b.attention, "before": b.before.to_string(), "after": b.after.to_string(),
                    "macs": b.macs, "share": share(b.macs),
                })
            };
            json!({
                "model": path, "blocks": blocks.iter().map(block).collect::<Vec<_>>(),
                "protected": analysis.as_ref().ok().map(|s| s.protected),
                "refusal": analysis.as_ref().err().map(ToString::to_string),
            })
        },
        || {
            let rows = blocks.iter().enumerate().map(|(i, b)| {
                vec![
                    i.to_string(),
                    b.attention.clone(),
                    b.before.to_string(),
                    b.after.to_string(),
                    voice::count(b.macs),
                    format!("{:.1} %", 100.0 * share(b.macs)),
                ]
            });
            let mut out =
                voice::table(&["block", "attention", "tokens", "after", "MACs", "share"], rows.collect());
            out.push('\n');
            out += &match &analysis {
                Ok(analysis) => format!(
                    "tokens can be merged; {} at the front stay{}\n",
                    analysis.protected,
                    if analysis.unread { ", and nothing else is read after the last attention" } else { "" }
                ),
                Err(why) => format!("tokens cannot be merged: {why}\n"),
            };
            out
        },
    );
    Done::Well
}
