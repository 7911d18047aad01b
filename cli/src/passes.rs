//! `pare passes`.

use crate::{
    args::PassesArgs,
    failure::{Failure, Status},
    terminal::Terminal,
};
use onnx_pare::{
    Effect, OptimizeOptions,
    passes::{PASSES, PRESETS, PassInfo, REGISTRY},
};
use serde_json::{Value, json};

pub fn run(args: &PassesArgs, terminal: &Terminal) -> Result<Status, Failure> {
    let Some(name) = &args.name else {
        let passes: Vec<_> = PASSES.iter().map(|p| describe(p)).collect();
        let presets: Vec<_> =
            PRESETS.iter().map(|p| json!({"name": p.name, "docs": p.docs, "pipeline": p.text})).collect();
        terminal.report(&json!({ "passes": passes, "presets": presets }), list);
        return Ok(Status::Success);
    };
    if let Some(preset) = REGISTRY.find_preset(name) {
        let options =
            preset.options.iter().map(|o| json!({"name": o.name, "omits": o.omits, "docs": o.docs}));
        let options: Vec<_> = options.collect();
        let report =
            json!({"name": preset.name, "docs": preset.docs, "pipeline": preset.text, "options": options});
        terminal.report(&report, || {
            let options = preset.options.iter().map(|o| format!("  {} = false\n      {}\n", o.name, o.docs));
            let options: String = std::iter::once("\noptions\n".to_owned()).chain(options).collect();
            format!("{}\n\n{}\n{options}", preset.docs, preset.text)
        });
        return Ok(Status::Success);
    }
    let info = REGISTRY.find(name).ok_or_else(|| unknown(name))?;
    terminal.report(&describe(info), || explain(info));
    Ok(Status::Success)
}

/// The error of the pipeline parser, which suggests a similar name.
fn unknown(name: &str) -> Failure {
    match OptimizeOptions::from(name).pipeline() {
        Err(error) => Failure { detail: None, ..error.into() },
        Ok(_) => Failure::new(format!("there is no pass `{name}`")),
    }
}

fn describe(info: &PassInfo) -> Value {
    let options = info
        .options
        .iter()
        .map(|o| json!({"name": o.name, "type": o.ty, "default": (o.default)(), "docs": o.docs.trim()}));
    json!({ "name": info.name, "effect": info.effect, "docs": info.docs.trim(), "options": options.collect::<Vec<_>>() })
}

fn list() -> String {
    let mut text = String::new();
    for (effect, title) in [
        (Effect::Exact, "exact: the same arithmetic"),
        (Effect::Rounding, "rounding: the same function, rounded differently"),
        (Effect::Lossy, "lossy: another function, close on the data"),
    ] {
        let passes: Vec<_> = PASSES.iter().filter(|p| p.effect == effect).collect();
        if passes.is_empty() {
            continue;
        }
        text += &format!("{title}\n");
        for pass in passes {
            text += &format!("  {:<24}{}\n", pass.name, pass.summary().replace('`', ""));
        }
        text.push('\n');
    }
    text += "presets\n";
    for preset in PRESETS {
        text += &format!("  {:<24}{}\n", preset.name, preset.docs);
    }
    text + "\n`pare passes NAME` explains one.\n"
}

fn explain(info: &PassInfo) -> String {
    let mut text = format!("{} ({})\n\n", info.name, info.effect);
    text +=
        &info.docs.lines().map(|l| l.strip_prefix(' ').unwrap_or(l).to_owned() + "\n").collect::<String>();
    if !info.options.is_empty() {
        text += "\noptions\n";
    }
    for option in info.options {
        let default = match (option.default)() {
            none if none.is_empty() => "none".to_owned(),
            default => default,
        };
        text += &match info.open == Some(option.name) {
            true => "  any other key = value\n".to_owned(),
            false => format!("  {} = {default}\n", option.name),
        };
        text += &option.docs.lines().map(|l| format!("      {}\n", l.trim())).collect::<String>();
    }
    text
}
