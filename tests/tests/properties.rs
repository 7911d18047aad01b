//! Properties of every pass and preset, on random graphs.
//!
//! For each graph `g` and pipeline `p` whose effect is exact or rounding:
//!
//! ```text
//! p(p(g)) = p(g)                     idempotent
//! ports(p(g)) = ports(g)             same interface
//! run(p(g)) = run(g)                 bitwise if exact, within the noise of `g` if rounding
//! bytes(p(g)) = bytes(p(g))          deterministic
//! read(write(p(g))) = p(g)           the file loses nothing
//! ```
//!
//! The default run takes 2,000 graphs through every pass. `PARE_GRAPHS=20000` sets the number, `PARE_SEED=17`
//! the first seed.

use crate::support::{Reference, after, brief, bytes, number, same_interface};
use pare_graph::{Model, onnx, text};
use pare_passes::{Effect, Pipeline, registry};
use pare_tests::random;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

/// Graphs in a run.
const GRAPHS: u64 = 2000;

/// The graph of a seed and its reference outputs, if the graph is valid and its file round-trips.
fn model(seed: u64) -> Result<(Model, Reference), String> {
    let (source, opset) = random::graph(seed);
    let say = |why: String| format!("{why}\nopset {opset}\n{source}");
    let model = Model::of(text::parse_graph(&source, opset).map_err(|e| say(e.to_string()))?);
    model.check().map_err(|e| say(e.to_string()))?;
    written_and_read(&model)?;
    let mut reference = Reference::new(&model, 2).map_err(say)?;
    reference.check_equal(&model, true).map_err(say)?;
    Ok((model, reference))
}

/// The bytes of the model, if reading them returns the same model.
fn written_and_read(model: &Model) -> Result<Vec<u8>, String> {
    let written = bytes(model)?;
    let read = onnx::read_bytes(written.clone(), None).map_err(|e| e.to_string())?;
    if text::print_model(&read) == text::print_model(model) {
        Ok(written)
    } else {
        Err("it is another one after writing and reading".into())
    }
}

fn hold(pipeline: &Pipeline, effect: Effect, model: &Model, reference: &mut Reference) -> Result<(), String> {
    let (changed, report) = after(pipeline, model)?;
    let (repeated, _) = after(pipeline, model)?;
    let print = text::print_model(&changed);
    if text::print_model(&repeated) != print {
        return Err(format!("two runs differ\n{}and\n{}", brief(&changed), brief(&repeated)));
    }
    let same = print == text::print_model(model);
    if same != (report.patches() == 0) {
        return Err(format!("it reports {} patches and left\n{}", report.patches(), brief(&changed)));
    }
    if same {
        return Ok(());
    }
    let written = written_and_read(&changed)?;
    if bytes(&repeated)? != written {
        return Err("two runs give different files".into());
    }
    changed.check().map_err(|e| e.to_string())?;
    changed.clone().infer().map_err(|e| e.to_string())?;
    same_interface(model, &changed)?;
    let (again, _) = after(pipeline, &changed)?;
    if text::print_model(&again) != print {
        return Err(format!("a second run still changes it from\n{}to\n{}", brief(&changed), brief(&again)));
    }
    reference
        .check_equal(&changed, effect == Effect::Exact)
        .map_err(|why| format!("{why}\nchanged to\n{}", brief(&changed)))
}

/// Passes that refuse models without samples.
const NEED_SAMPLES: &[&str] = &["smooth-activations"];

/// Failures of each pass, with their seeds.
type Failures = BTreeMap<&'static str, Vec<(u64, String)>>;

/// The entry for graphs that the engine does not run, because of its own defects. Up to one percent is
/// accepted.
const NOT_RUN: &str = "the engine";

/// Checks every pipeline on the graph of a seed.
fn check_seed(seed: u64, pipelines: &[(&'static str, Effect)], failures: &Mutex<Failures>) {
    let fail = |who, why| failures.lock().unwrap().entry(who).or_default().push((seed, why));
    match model(seed) {
        Ok((original, mut reference)) => {
            for &(name, effect) in pipelines {
                if let Err(why) = hold(&name.parse().unwrap(), effect, &original, &mut reference) {
                    fail(name, format!("{why}\nfrom\n{}", brief(&original)));
                }
            }
        }
        Err(why) if why.starts_with("Unproven") => fail(NOT_RUN, why),
        Err(why) => fail("the generator", why),
    }
}

/// Every pass that has defaults and every preset, without the lossy ones.
fn pipelines() -> Vec<(&'static str, Effect)> {
    // Passes that need options change the interface, as requested.
    let passes = registry::PASSES.iter().filter(|p| p.effect != Effect::Lossy && p.has_defaults());
    let passes = passes.filter(|p| !NEED_SAMPLES.contains(&p.name));
    let passes = passes.map(|p| (p.name, p.effect));
    let presets = registry::PRESETS.iter().map(|p| (p.name, p.name.parse::<Pipeline>().unwrap().effect()));
    passes.chain(presets.filter(|p| p.1 != Effect::Lossy)).collect()
}

/// Seeds beyond the default run on which a property was violated once.
const REGRESSIONS: &[u64] = &[5025];

#[test]
fn properties_hold_where_they_were_violated() {
    let failures = Mutex::new(Failures::new());
    for &seed in REGRESSIONS {
        check_seed(seed, &pipelines(), &failures);
    }
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{failures:?}");
}

#[test]
#[allow(clippy::print_stderr, reason = "a run reports its graphs")]
fn properties_hold_for_every_pass() {
    let (first, count) = (number("PARE_SEED", 0), number("PARE_GRAPHS", GRAPHS));
    let pipelines = pipelines();
    eprintln!("seeds {first} to {}, {} pipelines each", first + count - 1, pipelines.len());

    let (next, failures) = (AtomicU64::new(first), Mutex::new(Failures::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                let take = || Some(next.fetch_add(1, Ordering::Relaxed)).filter(|seed| *seed < first + count);
                while let Some(seed) = take() {
                    check_seed(seed, &pipelines, &failures);
                }
            });
        }
    });

    let mut message = String::new();
    let mut failures = failures.into_inner().unwrap();
    if failures.get(NOT_RUN).is_some_and(|cases| cases.len() as u64 * 100 <= count) {
        let seeds: Vec<_> = failures.remove(NOT_RUN).unwrap_or_default().iter().map(|c| c.0).collect();
        eprintln!("not run by the engine: seeds {seeds:?}");
    }
    for (who, cases) in &failures {
        let mut seeds: Vec<_> = cases.iter().map(|(seed, _)| seed).collect();
        seeds.sort();
        let shortest = cases.iter().min_by_key(|(_, why)| why.len());
        let _ = writeln!(message, "{who}: {} of {count} graphs, seeds {seeds:?}", cases.len());
        if let Some((seed, why)) = shortest {
            let _ = writeln!(message, "seed {seed}: {why}");
        }
    }
    assert!(failures.is_empty(), "{message}");
}
