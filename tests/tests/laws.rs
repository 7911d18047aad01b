//! Laws over every pass and preset, on random graphs.
//!
//! For each graph `g` and pipeline `p` whose effect is exact or rounding:
//!
//! ```text
//! p(p(g)) = p(g)                     idempotent
//! ports(p(g)) = ports(g)             the interface is kept
//! run(p(g)) = run(g)                 to the bit if exact, within the noise of `g` if rounding
//! bytes(p(g)) = bytes(p(g))          deterministic
//! read(write(p(g))) = p(g)           nothing is lost in the file
//! ```
//!
//! `PARE_LAWS=2000` takes that many graphs through every pass, `PARE_SEED=17` starts at another seed.

use crate::support::{after, brief, bytes, number, same_interface, same_outputs};
use pare_graph::{Model, onnx, text};
use pare_passes::{Effect, Pipeline, registry};
use pare_tests::random;
use std::{collections::BTreeMap, fmt::Write as _};

/// Graphs in a quick run.
const QUICK: u64 = 300;

/// Passes each graph of a quick run goes through, besides `safe`.
const ROTATING: usize = 3;

/// The graph of this seed. It is one that the laws speak of: sound, and it runs.
fn model(seed: u64) -> Result<Model, String> {
    let (source, opset) = random::graph(seed);
    let say = |why: String| format!("{why}\nopset {opset}\n{source}");
    let model = Model::of(text::parse_graph(&source, opset).map_err(|e| say(e.to_string()))?);
    model.check().map_err(|e| say(e.to_string()))?;
    same_outputs(&model, &model, Effect::Exact, 1).map_err(say)?;
    Ok(model)
}

fn hold(pipeline: &Pipeline, effect: Effect, model: &Model) -> Result<(), String> {
    let (changed, _) = after(pipeline, model)?;
    let print = text::print_model(&changed);
    let written = bytes(&changed)?;
    let read = onnx::read_bytes(written.clone(), None).map_err(|e| e.to_string())?;
    if text::print_model(&read) != print {
        return Err("it is another one after writing and reading".into());
    }
    let (repeated, _) = after(pipeline, model)?;
    if bytes(&repeated)? != written {
        return Err(format!("two runs differ\n{}and\n{}", brief(&changed), brief(&repeated)));
    }
    changed.check().map_err(|e| e.to_string())?;
    changed.clone().infer().map_err(|e| e.to_string())?;
    same_interface(model, &changed)?;
    let (again, _) = after(pipeline, &changed)?;
    if text::print_model(&again) != print {
        return Err(format!("a second run still changes it from\n{}to\n{}", brief(&changed), brief(&again)));
    }
    if print == text::print_model(model) {
        return Ok(());
    }
    same_outputs(model, &changed, effect, 2).map_err(|why| format!("{why}\nchanged to\n{}", brief(&changed)))
}

#[test]
fn laws_hold_of_every_pass() {
    let heavy = std::env::var_os("PARE_LAWS").is_some();
    let (first, count) = (number("PARE_SEED", 0), number("PARE_LAWS", QUICK));
    let lossless: Vec<_> = registry::PASSES.iter().filter(|p| p.effect != Effect::Lossy).collect();
    let mut failures = BTreeMap::<String, Vec<(u64, String)>>::new();
    for seed in first..first + count {
        let mut fail = |who: &str, why| failures.entry(who.into()).or_default().push((seed, why));
        let original = match model(seed) {
            Ok(original) => original,
            Err(why) => {
                fail("the generator", why);
                continue;
            }
        };
        let turn = seed as usize * ROTATING;
        let chosen = if heavy { 0..lossless.len() } else { turn..turn + ROTATING };
        let passes = chosen.map(|i| lossless[i % lossless.len()]).map(|p| (p.name, p.effect));
        for (name, effect) in passes.chain([("safe", Effect::Rounding)]) {
            if let Err(why) = hold(&name.parse().unwrap(), effect, &original) {
                fail(name, format!("{why}\nfrom\n{}", brief(&original)));
            }
        }
    }
    let mut told = String::new();
    for (who, cases) in &failures {
        let seeds: Vec<_> = cases.iter().map(|(seed, _)| seed).collect();
        let shortest = cases.iter().min_by_key(|(_, why)| why.len());
        let _ = writeln!(told, "{who}: {} of {count} graphs, seeds {seeds:?}", cases.len());
        if let Some((seed, why)) = shortest {
            let _ = writeln!(told, "seed {seed}: {why}");
        }
    }
    assert!(failures.is_empty(), "{told}");
}
