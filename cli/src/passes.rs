//! `pare passes`: what there is, and what it does.

use crate::{
    args::PassesArgs,
    failure::{Done, Failure, worded},
    voice::Voice,
};
use pare_passes::{Effect, PassInfo, registry};
use serde_json::json;

pub fn run(args: &PassesArgs, voice: &Voice) -> Result<Done, Failure> {
    let Some(name) = &args.name else {
        let passes: Vec<_> = registry::PASSES.iter().map(|p| describe(p)).collect();
        let presets: Vec<_> = registry::PRESETS
            .iter()
            .map(|p| json!({"name": p.name, "docs": p.docs, "pipeline": p.text}))
            .collect();
        voice.report(|| json!({ "passes": passes, "presets": presets }), list);
        return Ok(Done::Well);
    };
    if let Some(preset) = registry::REGISTRY.find_preset(name) {
        voice.report(
            || json!({"name": preset.name, "docs": preset.docs, "pipeline": preset.text}),
            || format!("{}\n\n{}\n", preset.docs, preset.text),
        );
        return Ok(Done::Well);
    }
    // The parser of pipelines knows how to suggest a near name.
    let Some(info) = registry::REGISTRY.find(name) else {
        let error = name.parse::<pare_passes::Pipeline>().err();
        let (message, hint) = error.map_or((format!("there is no pass `{name}`"), None), |e| {
            (e.message, e.hint.as_ref().map(worded))
        });
        return Err(Failure { message, detail: None, hint });
    };
    voice.report(|| describe(info), || explain(info));
    Ok(Done::Well)
}

fn describe(info: &PassInfo) -> serde_json::Value {
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
        let passes: Vec<_> = registry::PASSES.iter().filter(|p| p.effect == effect).collect();
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
    for preset in registry::PRESETS {
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
        text += &format!("  {} = {default}\n", option.name);
        text += &option.docs.lines().map(|l| format!("      {}\n", l.trim())).collect::<String>();
    }
    text
}
