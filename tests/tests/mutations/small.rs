//! Small models: right rewrites that are refused, and wrong ones that are accepted.
//!
//! `tests/small_models.py FOLDER 2000` writes the models; `PARE_SMALL_MODELS=FOLDER cargo test --workspace --test
//! main small_models -- --ignored` judges `safe` on each, and a planted mistake in every third.

use super::{ABOVE, KINDS, compare, default_samples, effect, other_samples, plant};
use crate::support::after;
use fastrand::Rng;
use pare_graph::{Model, onnx};
use pare_runtime::Outcome;
use std::{env, fs, path::PathBuf};

/// A mistake is planted into one model of this many.
const PLANTED_EACH: usize = 3;

#[derive(Default)]
struct Tally {
    rewritten: usize,
    alarms: Vec<String>,
    unproven: Vec<String>,
    mistakes: usize,
    /// Mistakes above [`ABOVE`] times the noise.
    above: usize,
    missed: Vec<String>,
}

impl Tally {
    fn rewrite(&mut self, name: &str, model: &Model) {
        let Ok((result, report)) = after(&"safe".parse().unwrap(), model) else {
            return self.alarms.push(format!("{name}: `safe` fails"));
        };
        if report.patches() == 0 {
            return;
        }
        self.rewritten += 1;
        match compare(model, &result, &mut default_samples(model)).outcome {
            Outcome::Equal => {}
            Outcome::Differs { output, why } => self.alarms.push(format!("{name}: `{output}`: {why}")),
            Outcome::Unproven { why } => self.unproven.push(format!("{name}: {why}")),
        }
    }

    fn plant(&mut self, name: &str, model: &Model, seed: u64) {
        let mut rng = Rng::with_seed(seed);
        let mut kinds: Vec<_> = KINDS.iter().collect();
        rng.shuffle(&mut kinds);
        let Some((kind, mutant)) = kinds.into_iter().find_map(|k| Some((k, plant(model, k, &mut rng)?)))
        else {
            return;
        };
        let outcome = compare(model, &mutant, &mut default_samples(model)).outcome;
        if matches!(outcome, Outcome::Unproven { .. }) {
            return;
        }
        self.mistakes += 1;
        let effect = effect(&compare(model, &mutant, &mut other_samples(model)));
        self.above += usize::from(effect > ABOVE);
        if effect > ABOVE && outcome == Outcome::Equal {
            self.missed.push(format!("{name}: {}: {effect:.1} times the noise", kind.name));
        }
    }
}

#[test]
#[ignore = "needs the models of tests/small_models.py"]
#[allow(clippy::print_stderr, reason = "the figures of a long run")]
fn small_models() {
    let folder = env::var_os("PARE_SMALL_MODELS").map(PathBuf::from).expect("PARE_SMALL_MODELS is set");
    let mut paths: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let mut tally = Tally::default();
    for (index, path) in paths.iter().enumerate() {
        let name = path.file_stem().unwrap().to_str().unwrap();
        let mut model = onnx::read(path, &onnx::ReadOptions::default()).unwrap();
        if let Err(error) = model.infer() {
            tally.unproven.push(format!("{name}: {error}"));
            continue;
        }
        tally.rewrite(name, &model);
        if index % PLANTED_EACH == 0 {
            tally.plant(name, &model, index as u64);
        }
    }
    let Tally { rewritten, alarms, unproven, mistakes, above, missed } = &tally;
    eprintln!(
        "{} models, {rewritten} rewritten, {} refused, {} not proven; {mistakes} mistakes, {above} above {ABOVE} times \
         the noise, {} of them missed",
        paths.len(),
        alarms.len(),
        unproven.len(),
        missed.len()
    );
    let all = [alarms, unproven, missed].map(|lines| lines.join("\n"));
    assert!(alarms.is_empty() && missed.len() * 100 <= *above, "{}", all.join("\n\n"));
    eprintln!("{}", all.join("\n\n"));
}
