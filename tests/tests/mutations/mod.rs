//! The share of wrong rewrites that default verification catches, and its false alarms.
//!
//! [`kinds::KINDS`] are mistakes, planted into real models one at a time. Their effect is measured on samples
//! that verification does not use: three times as many, from another seed. There
//!
//! ```text
//! effect = max |original - mutant| / max |original - original with optimizations on|
//! ```
//!
//! in units of the noise. [`clean`] constructs pairs that are equal up to rounding: none may be reported as
//! different.
//!
//! `cargo test --workspace --test main mutations::table -- --ignored` plants them into eleven models and writes
//! `tests/tables/mutations.md`; the ordinary test uses those in `fixtures`.

mod clean;
mod kinds;
mod small;

use crate::support::{bytes, engine, number, root};
use fastrand::Rng;
use kinds::{KINDS, Kind};
use pare_graph::{Graph, Model, onnx, text::parse_graph};
use pare_runtime::{
    Comparison, Deviation, LoadOptions, ModelSource, Outcome, ProofOptions, ProofReport, SampleSet, epsilon,
    input_specs, prove, symbol_plans,
};
use std::{collections::BTreeMap, fmt::Write as _, fs, io::Write as _, path::PathBuf, time::Instant};

/// The models: convolutions, attention, recurrence, branches, a loop.
const TARGETS: &[&str] = &[
    "digits-cnn",
    "digits-fold",
    "digits-vit",
    "mnist-8",
    "burn-mnist-cnn",
    "fastestdet",
    "silero-16k-op15",
    "gtcrn-simple",
    "cifar-resnet20",
    "ultraface-rfb-320",
    "elman",
];

/// The models of the quick test.
const QUICK: &[&str] = &["digits-fold", "digits-cnn", "elman"];

/// Reads a model by name, with types inferred and initializers constant; `None` if the file is missing.
fn read(name: &str) -> Option<Model> {
    if name == "elman" {
        return Some(elman());
    }
    let shared =
        std::env::var_os("PARE_MODELS").map_or_else(|| root().join("../shared/models"), PathBuf::from);
    let path = [root().join("fixtures"), shared]
        .map(|f| f.join(format!("{name}.onnx")))
        .into_iter()
        .find(|p| p.is_file())?;
    let mut model = onnx::read(path, &onnx::ReadOptions::default()).unwrap();
    model.graph.freeze_initializers();
    model.infer().unwrap();
    Some(model)
}

/// An Elman network as exporters write it: a loop over time, with captured and own weights.
fn elman() -> Model {
    let mut rng = Rng::with_seed(0);
    let mut weights = |name: &str, shape: &[usize]| {
        let scale = 3.0 / (shape[0] as f64).sqrt();
        let values = (0..shape.iter().product()).map(|_| format!("{:.4}", scale * (rng.f64() - 0.5)));
        let dims: Vec<_> = shape.iter().map(ToString::to_string).collect();
        format!("float[{}] {name} = {{{}}}", dims.join(","), values.collect::<Vec<_>>().join(","))
    };
    let (w, b) = (weights("w", &[8, 16]), weights("b", &[16]));
    let (u, c) = (weights("u", &[16, 16]), weights("c", &[16]));
    let (v, a) = (weights("v", &[16, 5]), weights("a", &[5]));
    let text = format!(
        "g (float[time,batch,8] x) => (float[batch,5] y, float[time,batch,16] states)
            <int64 zero = {{0}}, int64[1] one = {{1}}, int64[1] two = {{2}}, int64[1] hidden = {{16}}, bool go = {{1}},
             {w}, {b}, {v}, {a}> {{
            shape = Shape(x) time = Gather(shape, zero) batch = Slice(shape, one, two)
            like = Concat<axis = 0>(batch, hidden) start = ConstantOfShape(like)
            last, states = Loop(time, go, start) <body = step (int64 t, bool goes, float[batch,16] h)
                => (bool on, float[batch,16] next, float[batch,16] state) <{u}, {c}> {{
                on = Identity(goes)
                frame = Gather(x, t) in = MatMul(frame, w) shifted = Add(in, b)
                recurrent = MatMul(h, u) carried = Add(recurrent, c)
                sum = Add(shifted, carried) next = Tanh(sum) state = Relu(next)
            }}>
            scores = MatMul(last, v) biased = Add(scores, a) y = Softmax(biased)
        }}"
    );
    let mut model = Model::of(parse_graph(&text, 17).unwrap());
    model.infer().unwrap();
    model
}

/// Plants one mistake of a kind at a random node.
fn plant(model: &Model, kind: &Kind, rng: &mut Rng) -> Option<Model> {
    let mut mutant = model.clone();
    if !plant_in(&mut mutant.graph, kind, rng) {
        return None;
    }
    // A mistake that makes the model invalid is not of interest: it does not load.
    mutant.check().is_ok().then_some(mutant)
}

fn plant_in(graph: &mut Graph, kind: &Kind, rng: &mut Rng) -> bool {
    let mut nodes = graph.nodes().to_vec();
    rng.shuffle(&mut nodes);
    for id in nodes {
        let at = graph.at(id);
        let inside = at.node().subgraphs().next().is_some() && rng.bool();
        if inside
            && graph.with_subgraphs(id, |bodies, _| bodies.iter_mut().any(|body| plant_in(body, kind, rng)))
        {
            return true;
        }
        let at = graph.at(id);
        if !at.node().domain().is_empty() && at.node().domain() != "ai.onnx"
            || !kind.ops.iter().any(|op| at.is(op))
        {
            continue;
        }
        if let Some(patch) = (kind.rule)(at, rng)
            && !patch.is_empty()
            && graph.apply(patch).is_ok()
        {
            return true;
        }
    }
    false
}

/// Runs two models on the same samples, on one thread for reproducible figures.
fn compare(a: &Model, b: &Model, samples: &mut SampleSet) -> ProofReport {
    let (first, second) = (ModelSource::bytes(bytes(a).unwrap()), ModelSource::bytes(bytes(b).unwrap()));
    let options = ProofOptions {
        load: LoadOptions { threads: 1, ..LoadOptions::default() },
        ..ProofOptions::default()
    };
    prove(&**engine(), &first, &second, samples.batches(32), &options).unwrap()
}

/// The samples of `pare verify`.
fn default_samples(model: &Model) -> SampleSet {
    SampleSet::for_model(model, 0)
}

/// Samples that verification does not use.
fn other_samples(model: &Model) -> SampleSet {
    let specs = input_specs(model);
    let plans = symbol_plans(&specs).len();
    SampleSet::generated(specs, 1_000_003, 3 * default_samples(model).len() / plans)
}

/// The largest difference in units of the noise; infinite if kinds of values differ.
fn effect(report: &ProofReport) -> f64 {
    match &report.outcome {
        Outcome::Differs { output, .. } if output.is_empty() => return f64::INFINITY,
        Outcome::Unproven { why } => panic!("{why}"),
        _ => {}
    }
    let floor = |floor: &Comparison, name: &str| floor.get(name).cloned().unwrap_or_default();
    let of = |(name, by): &(String, Deviation)| {
        let floor = floor(&report.floor, name);
        if by.mismatch.is_some() || by.misplaced > floor.misplaced {
            return f64::INFINITY;
        }
        let Some(dtype) = by.dtype else { return 0.0 };
        if epsilon(dtype) == 0.0 {
            return if by.differing > floor.differing { f64::INFINITY } else { 0.0 };
        }
        // Relative to the maximum of each run, so that a run with large values does not hide the others.
        by.scaled() / floor.scaled().max(epsilon(dtype))
    };
    report.deviation.outputs().iter().map(of).fold(0.0, f64::max)
}

/// A mistake, its effect, and the verdict of verification.
struct Planted {
    kind: &'static str,
    model: String,
    effect: f64,
    caught: bool,
    seconds: f64,
}

/// Plants up to `each` mistakes of every kind into a model.
fn planted(name: &str, model: &Model, each: u64, mut tell: impl FnMut(&Planted)) -> Vec<Planted> {
    let mut all = vec![];
    for kind in KINDS {
        let mut seen = vec![];
        for seed in 0..each {
            let mut rng =
                Rng::with_seed(seed * 7919 + KINDS.iter().position(|k| k.name == kind.name).unwrap() as u64);
            let Some(mutant) = plant(model, kind, &mut rng) else { continue };
            let written = bytes(&mutant).unwrap();
            if seen.contains(&written) {
                continue;
            }
            let start = Instant::now();
            let report = compare(model, &mutant, &mut default_samples(model));
            let seconds = start.elapsed().as_secs_f64();
            let caught = matches!(report.outcome, Outcome::Differs { .. });
            let effect = effect(&compare(model, &mutant, &mut other_samples(model)));
            all.push(Planted { kind: kind.name, model: name.into(), effect, caught, seconds });
            tell(all.last().unwrap());
            seen.push(written);
        }
    }
    all
}

/// Effects above this multiple of the noise count as wrong: right rewrites reach it (the factor of the
/// proof).
const ABOVE: f64 = 10.0;

#[test]
fn catches_wrong_rewrites_and_accepts_right_ones() {
    let mut missed = vec![];
    let mut count = 0;
    for name in QUICK {
        let model = read(name).unwrap();
        for p in planted(name, &model, 1, |_| {}) {
            // Near the limit the effect depends on the samples.
            count += usize::from(p.effect > 2.0 * ABOVE);
            if p.effect > 2.0 * ABOVE && !p.caught {
                missed.push(format!("{name}: {} has {:.1} times the noise", p.kind, p.effect));
            }
        }
        if let Some(pair) = clean::summed_in_another_order(name, &model, 0) {
            let outcome = compare(&pair.a, &pair.b, &mut default_samples(&pair.a)).outcome;
            assert_eq!(outcome, Outcome::Equal, "{}", pair.name);
        }
    }
    assert!(count > 50, "only {count} mistakes matter");
    assert!(missed.is_empty(), "of {count} mistakes these were missed:\n{}", missed.join("\n"));
}

#[test]
#[ignore = "takes an hour; writes tests/tables/mutations.md"]
#[allow(clippy::print_stderr, reason = "how far a long run is")]
fn table() {
    let (mut all, mut clean) = (vec![], Clean::default());
    let only = std::env::var("PARE_MUTATE").ok();
    let csv = root().join("tests/tables/mutations.csv");
    let mut csv = fs::File::create(csv).unwrap();
    writeln!(csv, "model,mistake,effect,caught,seconds").unwrap();
    let names: Vec<_> = TARGETS.iter().filter(|n| only.as_deref().is_none_or(|o| o.contains(**n))).collect();
    for name in &names {
        let Some(model) = read(name) else { panic!("`{name}` is not there: set PARE_MODELS") };
        all.extend(planted(name, &model, number("PARE_MUTANTS", 2), |p| {
            writeln!(csv, "{},\"{}\",{:.3e},{},{:.2}", p.model, p.kind, p.effect, p.caught, p.seconds)
                .unwrap();
            if !p.caught && p.effect > 1.0 {
                eprintln!("missed: {}: {}: {:.2} times the noise", p.model, p.kind, p.effect);
            }
        }));
        let orders = (0..3).filter_map(|seed| clean::summed_in_another_order(name, &model, seed));
        let made: Vec<_> = clean::by_passes(name, &model).into_iter().chain(orders).collect();
        made.iter().for_each(|pair| clean.look_at(pair));
        let Clean { pairs, alarms, .. } = &clean;
        eprintln!("{name}: {} mistakes, {pairs} clean pairs, {} alarms so far", all.len(), alarms.len());
    }
    let left = (number("PARE_CLEAN", 200) as usize).saturating_sub(clean.pairs);
    clean::at_random(0..).take(left).for_each(|pair| clean.look_at(&pair));
    for a in &clean.alarms {
        eprintln!("false alarm: {a}");
    }
    fs::write(root().join("tests/tables/mutations.md"), document(&all, &clean)).unwrap();
    assert!(clean.alarms.is_empty(), "{}", clean.alarms.join("\n"));
}

/// The verdicts on right rewrites.
#[derive(Default)]
struct Clean {
    pairs: usize,
    alarms: Vec<String>,
    /// The largest difference in units of the noise.
    farthest: f64,
}

impl Clean {
    fn look_at(&mut self, pair: &clean::Pair) {
        let report = compare(&pair.a, &pair.b, &mut default_samples(&pair.a));
        self.pairs += 1;
        self.farthest = self.farthest.max(effect(&report));
        if let Outcome::Differs { output, why } = report.outcome {
            self.alarms.push(format!("{}: `{output}`: {why}", pair.name));
        }
    }
}

fn document(all: &[Planted], clean: &Clean) -> String {
    let mut text = String::from(
        "# What default verification catches\n\n<!-- written by `cargo test --workspace --test main mutations::table -- --ignored` -->\n\n",
    );
    let counts = |of: &[&Planted], least: f64| {
        let matter: Vec<_> = of.iter().filter(|p| p.effect > least).collect();
        (matter.iter().filter(|p| p.caught).count(), matter.len())
    };
    let every: Vec<_> = all.iter().collect();
    let ((some, matter), (any, above)) = (counts(&every, ABOVE), counts(&every, 1.0));
    let share = |a: usize, b: usize| 100.0 * a as f64 / b.max(1) as f64;
    writeln!(
        text,
        "{} wrong rewrites of {} kinds in {} models. Of the {matter} whose effect exceeds {ABOVE} times the noise of the \
         model, verification without given samples catches {some}: **{:.1} %**. Of the {above} that exceed the noise at \
         all it catches {any}, {:.1} %. Of {} clean pairs {} are called different; the farthest is off by {:.1} times the \
         noise.\n",
        all.len(),
        KINDS.len(),
        all.iter().map(|p| &p.model).collect::<std::collections::BTreeSet<_>>().len(),
        share(some, matter),
        share(any, above),
        clean.pairs,
        clean.alarms.len(),
        clean.farthest,
    )
    .unwrap();
    let mut by_kind: BTreeMap<&str, Vec<&Planted>> = BTreeMap::new();
    all.iter().for_each(|p| by_kind.entry(p.kind).or_default().push(p));
    text += "| mistake | planted | without effect | within the noise | up to 10 times | above | caught of those | least effect caught |\n|---|---|---|---|---|---|---|---|\n";
    for kind in KINDS {
        let Some(of) = by_kind.get(kind.name) else { continue };
        let between = |low: f64, high: f64| of.iter().filter(|p| p.effect > low && p.effect <= high).count();
        let (caught, above) = counts(of, ABOVE);
        let least = of.iter().filter(|p| p.caught).map(|p| p.effect).fold(f64::INFINITY, f64::min);
        let least = if least.is_finite() { format!("{least:.1}") } else { String::new() };
        writeln!(
            text,
            "| {} | {} | {} | {} | {} | {above} | {caught} | {least} |",
            kind.name,
            of.len(),
            of.iter().filter(|p| p.effect == 0.0).count(),
            between(0.0, 1.0),
            between(1.0, ABOVE),
        )
        .unwrap();
    }
    text
}
