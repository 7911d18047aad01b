//! `pare diff`.

use crate::{
    args::{DiffArgs, source},
    failure::{Failure, Status},
    format::{figure, table},
    terminal::Terminal,
};
use onnx_pare::{ModelDiff, PropertyChange, WeightChange, diff};

/// Entries of a list that are shown without `--verbose`.
const SHOWN: usize = 20;

pub fn run(args: &DiffArgs, terminal: &Terminal) -> Result<Status, Failure> {
    let result = diff(source(&args.before)?, source(&args.after)?)?;
    terminal.report(&result, || text(&result, args.verbose));
    Ok(if result.is_empty() { Status::Success } else { Status::CheckFailed })
}

fn text(diff: &ModelDiff, verbose: bool) -> String {
    let ModelDiff { properties, interface, nodes, weights, .. } = diff;
    let mut text = String::new();
    let mut section = |title: String, lines: Vec<String>| {
        if lines.is_empty() {
            return;
        }
        let shown = if verbose { lines.len() } else { lines.len().min(SHOWN) };
        text += &format!("{title}\n");
        lines[..shown].iter().for_each(|line| text += &format!("  {line}\n"));
        if shown < lines.len() {
            text += &format!("  … {} more; `--verbose` lists them\n", lines.len() - shown);
        }
    };
    section("properties".into(), properties.iter().map(property).collect());
    section("interface".into(), interface.iter().map(property).collect());
    section(format!("nodes removed: {}", nodes.removed.len()), nodes.removed.clone());
    section(format!("nodes added: {}", nodes.added.len()), nodes.added.clone());
    let changed = nodes.changed.iter().map(|c| format!("{}: {}", c.node, c.changes.join("; ")));
    section(format!("nodes changed: {}", nodes.changed.len()), changed.collect());
    section(format!("weights removed: {}", weights.removed.len()), weights.removed.clone());
    section(format!("weights added: {}", weights.added.len()), weights.added.clone());
    let renamed = weights.renamed.iter().map(|(old, new)| format!("{old} → {new}"));
    section(format!("weights renamed: {}", weights.renamed.len()), renamed.collect());
    let rows = table(
        &["", "type", "max |Δ|", "relative", "differing"],
        weights.changed.iter().map(weight).collect(),
    );
    let rows = if weights.changed.is_empty() { vec![] } else { rows.lines().map(str::to_owned).collect() };
    section(format!("weights changed: {}", weights.changed.len()), rows);
    let verdict = if diff.is_empty() { "the models are equal" } else { "the models differ" };
    text + &format!("{verdict}: {} equal nodes, {} equal weights\n", nodes.equal, weights.equal)
}

fn property(change: &PropertyChange) -> String {
    let show = |value: &Option<String>| value.clone().unwrap_or_else(|| "none".into());
    format!("{}: {} → {}", change.name, show(&change.before), show(&change.after))
}

fn weight(change: &WeightChange) -> Vec<String> {
    let ty = match change.before == change.after {
        true => change.before.clone(),
        false => format!("{} → {}", change.before, change.after),
    };
    let number = |value: Option<f64>| value.map_or_else(String::new, figure);
    let differing = change.differing.map_or_else(String::new, |n| n.to_string());
    vec![change.name.clone(), ty, number(change.max_abs), number(change.max_rel), differing]
}
