//! On a trained network with its calibration images: every option does what it says, and what cannot be done is refused.

mod quantized;

use super::{PruneChannels, Repair, Scope};
use crate::{
    analysis::{calibration::Sampling, evaluation::HeldOut},
    framework::{Pass, PassError, Tools, testing::tools},
    transforms::channels::{PruneHeads, PruneHidden, order::Criterion},
};
use pare_graph::{Evaluate, EvaluateError, Model, Run, Samples, Setting, Tensor, onnx, ops::Bindings};
use pare_runtime::{SampleLimits, SharedSamples, input_specs};
use std::{ops::Range, path::Path};

fn fixture(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures").join(name)
}

fn read(name: &str) -> Model {
    let mut model = onnx::read(fixture(name), &onnx::ReadOptions::default()).unwrap();
    model.infer().unwrap();
    model
}

fn digits() -> Model {
    read("digits-cnn.onnx")
}

fn samples(file: &str) -> SharedSamples {
    let port = |spec: pare_runtime::InputSpec| pare_runtime::Port { name: spec.name, kind: spec.kind };
    let ports: Vec<_> = input_specs(&digits()).into_iter().map(port).collect();
    pare_runtime::SampleSet::open(&fixture(file), &ports, SampleLimits::default()).unwrap().into()
}

/// The first so many samples, with their labels or without; at some place NaN if `spoilt`.
struct Part<'s> {
    all: &'s SharedSamples,
    count: usize,
    spoilt: bool,
}

impl Samples for Part<'_> {
    fn len(&self) -> usize {
        self.count
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let mut feeds = Samples::batch(self.all, range)?;
        if self.spoilt {
            for (_, tensor) in &mut feeds {
                let mut values = tensor.to_vec::<f32>().unwrap();
                values[0] = f32::NAN;
                *tensor = Tensor::from_slice(tensor.shape(), &values).unwrap();
            }
        }
        Ok(feeds)
    }

    fn labels(&self) -> Option<&[i64]> {
        Samples::labels(self.all)
    }
}

fn pruned(pass: &PruneChannels, with: Tools<'_>) -> Result<(Model, crate::framework::StepReport), PassError> {
    let mut model = digits();
    let mut cx = crate::framework::testing::context(with);
    pass.run(&mut model, &mut cx)?;
    model.check().unwrap();
    model.infer().unwrap();
    Ok((model, cx.report))
}

fn macs(model: &Model) -> f64 {
    model.cost(&Bindings::default()).macs as f64
}

fn refused(pass: &PruneChannels, with: Tools<'_>) -> String {
    match pruned(pass, with) {
        Err(error @ PassError::Refused { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it ran"),
    }
}

fn half() -> PruneChannels {
    PruneChannels { macs: Some(0.6), ..PruneChannels::default() }
}

/// Each criterion gives an order, and those that look at activations give a better one than chance does.
#[test]
fn every_criterion_orders_the_units() {
    let calibration = samples("digits-calibration.npz");
    let few = Part { all: &calibration, count: 160, spoilt: false };
    let with = Tools { samples: Some(&few), ..tools() };
    let trial = HeldOut::new(with, &digits(), 128..160).unwrap();
    let drift = |criterion| {
        let pass = PruneChannels {
            criterion: Some(criterion),
            scope: Some(Scope::Uniform),
            repair: Some(Repair::Patch),
            ..half()
        };
        let (model, _) = pruned(&pass, with).unwrap();
        assert!(macs(&model) <= 0.6 * macs(&digits()) && macs(&model) > 0.4 * macs(&digits()));
        trial.drift(&model).unwrap()
    };
    use Criterion::{
        Apoz, BnScale, Energy, Entropy, Fpgm, L1, L2, Obd, Obs, Random, Sensitivity, Skeleton, Variance,
        Wanda,
    };
    let chance = drift(Random);
    for criterion in [L1, L2, BnScale, Fpgm, Apoz, Variance, Entropy] {
        assert!(drift(criterion).is_finite(), "{criterion:?}");
    }
    for criterion in [Wanda, Obd, Energy, Obs, Skeleton, Sensitivity] {
        let drift = drift(criterion);
        assert!(drift < chance, "{criterion:?}: {drift} is no better than chance, {chance}");
    }
}

#[test]
fn every_repair_comes_nearer_to_the_original_than_none() {
    let calibration = samples("digits-calibration.npz");
    let some = Part { all: &calibration, count: 256, spoilt: false };
    let with = Tools { samples: Some(&some), ..tools() };
    let trial = HeldOut::new(with, &digits(), 205..256).unwrap();
    let drift = |repair| {
        let pass = PruneChannels { scope: Some(Scope::Uniform), repair: Some(repair), ..half() };
        trial.drift(&pruned(&pass, with).unwrap().0).unwrap()
    };
    let none = drift(Repair::None);
    let drifts = [Repair::Mean, Repair::Moments, Repair::Merge, Repair::Patch, Repair::Sequential].map(drift);
    assert!(drifts.iter().all(|d| *d < none), "{none} {drifts:?}");
    assert!(drifts[4] < drifts[3] && drifts[4] < drifts[1], "{none} {drifts:?}");
}

#[test]
fn targets_are_met_in_every_currency() {
    let calibration = samples("digits-calibration.npz");
    let some = Part { all: &calibration, count: 160, spoilt: false };
    let with = Tools { samples: Some(&some), threads: 1, ..tools() };
    let whole = digits().cost(&Bindings::default());
    let params = PruneChannels { params: Some(0.5), streams: true, ..PruneChannels::default() };
    let (model, _) = pruned(&params, with).unwrap();
    assert!(model.cost(&Bindings::default()).params as f64 <= 0.5 * whole.params as f64);
    let multiple = PruneChannels { multiple: 4, min_kept: 8, ..half() };
    let (model, report) = pruned(&multiple, with).unwrap();
    let groups = crate::analysis::groups::Groups::of(&model.graph);
    assert!(groups.prunable().all(|(_, g)| g.width.is_multiple_of(4) && g.width >= 8));
    assert!(report.figure("kept").unwrap() <= 0.6 && report.count("channels removed") > 0);
    let latency = PruneChannels { latency: Some(0.9), ..PruneChannels::default() };
    let (model, report) = pruned(&latency, Tools { engine: Some(&Counting), ..with }).unwrap();
    assert!(report.figure("latency").unwrap() <= 0.9 && report.figure("channel step").unwrap() >= 1.0);
    assert!(macs(&model) < macs(&digits()));
    let share = macs(&model) / macs(&digits());
    assert!((0.6..=0.9).contains(&share), "{share}");
    assert!((report.figure("latency").unwrap() - share).abs() < 1e-6, "{:?}", report.figures);
    // At these widths an even number of channels costs next to nothing more.
    assert!(report.figure("channel step").unwrap() <= 2.0, "{:?}", report.figures);
}

/// An engine by whose clock a run takes a nanosecond for each multiply-accumulate, whatever else the machine does.
struct Counting;

struct Counted {
    run: Box<dyn Run>,
    seconds: f64,
}

impl Evaluate for Counting {
    fn name(&self) -> String {
        "counting".into()
    }

    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError> {
        let run = tools().engine.unwrap().load(model, setting)?;
        let mut model = model.clone();
        model.infer().unwrap();
        Ok(Box::new(Counted { run, seconds: 1e-9 * macs(&model) }))
    }
}

impl Run for Counted {
    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EvaluateError> {
        self.run.run(feeds)
    }

    fn time(&mut self, _: &[(&str, &Tensor)], runs: usize) -> Result<Vec<f64>, EvaluateError> {
        Ok(vec![self.seconds; runs])
    }
}

#[test]
fn limits_alone_are_gone_to_and_not_beyond() {
    let calibration = samples("digits-calibration.npz");
    let some = Part { all: &calibration, count: 240, spoilt: false };
    let with = Tools { samples: Some(&some), ..tools() };
    let trial = HeldOut::new(with, &digits(), 192..240).unwrap();
    let reach = |limit: f64| {
        let pass = PruneChannels { max_drift: Some(limit), ..PruneChannels::default() };
        let (model, _) = pruned(&pass, with).unwrap();
        assert!(trial.drift(&model).unwrap() <= limit);
        macs(&model) / macs(&digits())
    };
    let (near, far) = (reach(0.01), reach(0.2));
    assert!(far < near && near < 1.0, "{near} {far}");
    let none = PruneChannels { max_drift: Some(0.0), ..PruneChannels::default() };
    assert!(refused(&none, with).starts_with("nothing can go within the limits"));
    let both = PruneChannels { max_drift: Some(1e-9), ..half() };
    assert!(refused(&both, with).contains("is more than 0.000000001"));
    let unlabelled = PruneChannels { max_accuracy_drop: Some(0.1), ..half() };
    assert_eq!(refused(&unlabelled, with), "`max_accuracy_drop` needs labels");
    let labelled = samples("digits.npz");
    let with = Tools { samples: Some(&labelled), ..tools() };
    let pass = PruneChannels { max_accuracy_drop: Some(0.02), ..half() };
    assert!(macs(&pruned(&pass, with).unwrap().0) <= 0.6 * macs(&digits()));
}

/// All passes that remove units have the same targets and limits; each finds its own units.
#[test]
fn heads_and_hidden_units_go_as_far_as_a_limit_allows() {
    let calibration = samples("digits-calibration.npz");
    let some = Part { all: &calibration, count: 160, spoilt: false };
    let with = Tools { samples: Some(&some), ..tools() };
    let original = read("digits-vit.onnx");
    let trial = HeldOut::new(with, &original, 128..160).unwrap();
    // A head of each layer is a third of the attention.
    let heads = PruneHeads {
        max_drift: Some(0.2),
        scope: Some(Scope::Uniform),
        repair: Some(Repair::Patch),
        ..PruneHeads::default()
    };
    let hidden = PruneHidden {
        max_drift: Some(0.05),
        scope: Some(Scope::Uniform),
        repair: Some(Repair::Patch),
        ..PruneHidden::default()
    };
    let share = |pass: &dyn Pass, limit: f64| {
        let mut model = original.clone();
        pass.run(&mut model, &mut crate::framework::testing::context(with)).unwrap();
        model.infer().unwrap();
        assert!(trial.drift(&model).unwrap() <= limit);
        macs(&model) / macs(&original)
    };
    let shares = [share(&heads, 0.2), share(&hidden, 0.05)];
    assert!(shares[0] < 1.0 && shares[1] < 0.8, "{shares:?}");
    let both = PruneHidden { macs: Some(0.9), params: Some(0.9), ..PruneHidden::default() };
    assert!(both.validate().unwrap_err().starts_with("only one of `macs`"));
}

#[test]
fn statistics_from_files_do_as_well_as_samples() {
    let calibration = samples("digits-calibration.npz");
    let with = Tools { samples: Some(&calibration), ..tools() };
    let mut prepared = digits();
    crate::analysis::prepare::prepare(
        &mut prepared,
        &mut crate::framework::testing::context(Tools::default()),
    )
    .unwrap();
    // All places of all samples, so that halves see what the whole sees.
    let sampling = Sampling { positions: 64, seed: 0 };
    let of =
        |range| crate::analysis::calibration::collect_statistics(with, &prepared, range, sampling).unwrap();
    let whole = of(0..400);
    let mut halves = of(0..128);
    halves.merge(of(128..400)).unwrap();
    assert_eq!(halves.rows(), whole.rows());
    let model = |statistics| {
        let pass = half();
        let with = Tools { statistics: Some(statistics), ..Tools::default() };
        pruned(&pass, with).unwrap().0
    };
    let trial = HeldOut::new(with, &digits(), 400..512).unwrap();
    let [a, b] = [&whole, &halves].map(|s| trial.drift(&model(s)).unwrap());
    // The same units go; weights differ in rounding.
    assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    let plain = trial.drift(&pruned(&half(), Tools::default()).unwrap().0).unwrap();
    assert!(a < plain / 5.0, "{a}, without statistics {plain}");
}

#[test]
fn what_cannot_be_done_is_refused_in_one_sentence() {
    let calibration = samples("digits-calibration.npz");
    let some = |count, spoilt| Part { all: &calibration, count, spoilt };
    let (few, bad, good) = (some(9, false), some(64, true), some(64, false));
    let with = |s| Tools { samples: Some(s), ..tools() };
    assert_eq!(refused(&half(), with(&few)), "9 samples are too few");
    let why = refused(&half(), with(&bad));
    assert!(why.ends_with("is not finite on the samples"), "{why}");
    let moments = PruneChannels {
        criterion: Some(Criterion::L2),
        scope: Some(Scope::Uniform),
        repair: Some(Repair::Moments),
        ..half()
    };
    assert!(refused(&moments, with(&bad)).ends_with("the sums over the samples are not finite"));
    let unreachable = PruneChannels { macs: Some(0.01), ..PruneChannels::default() };
    let why = refused(&unreachable, with(&good));
    assert!(why.starts_with("the target cannot be reached: 0.") && why.contains("most of it by `"), "{why}");
    let typo = PruneChannels { only: vec!["*Conv*".into(), "cnov1".into()], ..half() };
    assert_eq!(refused(&typo, with(&good)), "no group has a name that matches `cnov1`");
    assert_eq!(refused(&PruneChannels::default(), with(&good)), "it needs a target");
    let unsampled = PruneChannels { criterion: Some(Criterion::Apoz), ..half() };
    assert_eq!(refused(&unsampled, tools()), "it needs samples, and an engine to run them");
}
