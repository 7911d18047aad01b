//! Pruning of a trained network with calibration images.

mod quantized;
mod steps;
mod strangers;

use super::{Multiple, PruneChannels, PruneRepair, PruneScope};
use crate::{
    analysis::{calibration::Sampling, evaluation::HeldOut},
    framework::{
        Pass, PassError, StepReport, Tools,
        testing::{self, read_fixture, tools},
    },
    transforms::channels::{PruneHeads, PruneHidden, importance::Importance},
};
use pare_graph::{Evaluate, EvaluateError, Model, Run, Samples, Setting, Tensor, ops::Bindings};
use pare_runtime::{SampleSet, SharedSamples, input_specs};
use std::ops::Range;

fn digits() -> Model {
    read_fixture("digits-cnn.onnx")
}

fn samples(file: &str) -> SharedSamples {
    testing::samples(file, &digits())
}

/// The first `count` samples; the first element of each batch is NaN if `invalid`.
struct Prefix<'s> {
    all: &'s SharedSamples,
    count: usize,
    invalid: bool,
}

impl Samples for Prefix<'_> {
    fn len(&self) -> usize {
        self.count
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let mut feeds = Samples::batch(self.all, range)?;
        if self.invalid {
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

fn pruned(pass: &PruneChannels, with: Tools<'_>) -> Result<(Model, StepReport), PassError> {
    let mut model = digits();
    let mut cx = testing::context(with);
    pass.run(&mut model, &mut cx)?;
    model.check().unwrap();
    model.infer().unwrap();
    Ok((model, cx.report))
}

fn macs(model: &Model) -> f64 {
    model.cost(&Bindings::default()).macs as f64
}

/// An engine that reports the seconds that a function computes from the model, so that no test depends on the
/// machine.
struct Clock<F>(F);

struct ClockRun {
    run: Box<dyn Run>,
    seconds: f64,
}

impl<F: Fn(&Model) -> f64 + Send + Sync> Evaluate for Clock<F> {
    fn name(&self) -> String {
        "clock".into()
    }

    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError> {
        let run = tools().engine.unwrap().load(model, setting)?;
        let mut model = model.clone();
        model.infer().unwrap();
        Ok(Box::new(ClockRun { run, seconds: self.0(&model) }))
    }
}

impl Run for ClockRun {
    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EvaluateError> {
        self.run.run(feeds)
    }

    fn time(&mut self, _: &[(&str, &Tensor)], runs: usize) -> Result<Vec<f64>, EvaluateError> {
        Ok(vec![self.seconds; runs])
    }
}

/// A clock that takes one nanosecond for each multiply-accumulate.
fn mac_clock() -> Clock<impl Fn(&Model) -> f64 + Send + Sync> {
    Clock(|model: &Model| 1e-9 * macs(model))
}

/// Runs the pipeline `prepare` and then a pass with generated samples. Both models run in the engine, on inputs
/// of equal types.
fn run_on_generated(
    pass: &dyn Pass,
    original: &Model,
    prepare: &str,
    with: Tools<'_>,
) -> Result<(Model, StepReport), PassError> {
    let mut changed = original.clone();
    changed.infer().unwrap();
    let samples = SharedSamples::from(SampleSet::generated(input_specs(&changed), 0, 32));
    let mut cx = testing::context(Tools { samples: Some(&samples), ..with });
    cx.run_nested(prepare, &mut changed)?;
    pass.run(&mut changed, &mut cx)?;
    changed.check().unwrap();
    changed.infer().unwrap();
    pare_tests::fixtures::Reference::new(&changed, 2).unwrap().check_equal(&changed, true).unwrap();
    Ok((changed, cx.report))
}

fn refused(pass: &PruneChannels, with: Tools<'_>) -> String {
    match pruned(pass, with) {
        Err(error @ PassError::Refused { .. }) => error.to_string(),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it ran"),
    }
}

/// Options under which no time decides: any number of channels is permitted.
fn untimed() -> PruneChannels {
    PruneChannels { multiple: Multiple::Of(1), ..PruneChannels::default() }
}

fn half() -> PruneChannels {
    PruneChannels { macs: Some(0.6), ..untimed() }
}

#[test]
fn activation_criteria_are_better_than_random() {
    let calibration = samples("digits-calibration.npz");
    let few = Prefix { all: &calibration, count: 160, invalid: false };
    let with = Tools { samples: Some(&few), ..tools() };
    let held_out = HeldOut::new(with, &digits(), 128..160).unwrap();
    let drift = |criterion| {
        let pass = PruneChannels {
            criterion: Some(criterion),
            scope: Some(PruneScope::Uniform),
            repair: Some(PruneRepair::Patch),
            ..half()
        };
        let (model, _) = pruned(&pass, with).unwrap();
        assert!(macs(&model) <= 0.6 * macs(&digits()) && macs(&model) > 0.4 * macs(&digits()));
        held_out.drift(&model).unwrap()
    };
    use Importance::{
        Apoz, BnScale, Energy, Entropy, Fpgm, L1, L2, Obd, Obs, Random, Sensitivity, Skeleton, Variance,
        Wanda,
    };
    let random = drift(Random);
    for criterion in [L1, L2, BnScale, Fpgm, Apoz, Variance, Entropy] {
        assert!(drift(criterion).is_finite(), "{criterion:?}");
    }
    for criterion in [Wanda, Obd, Energy, Obs, Skeleton, Sensitivity] {
        let drift = drift(criterion);
        assert!(drift < random, "{criterion:?}: {drift} is not below that of random order, {random}");
    }
}

#[test]
fn repairs_reduce_the_drift() {
    let calibration = samples("digits-calibration.npz");
    let some = Prefix { all: &calibration, count: 256, invalid: false };
    let with = Tools { samples: Some(&some), ..tools() };
    let held_out = HeldOut::new(with, &digits(), 205..256).unwrap();
    let drift = |repair| {
        let pass = PruneChannels { scope: Some(PruneScope::Uniform), repair: Some(repair), ..half() };
        held_out.drift(&pruned(&pass, with).unwrap().0).unwrap()
    };
    let none = drift(PruneRepair::None);
    let drifts = [
        PruneRepair::Mean,
        PruneRepair::Moments,
        PruneRepair::Merge,
        PruneRepair::Patch,
        PruneRepair::Readers,
        PruneRepair::Sequential,
    ]
    .map(drift);
    assert!(drifts.iter().all(|d| *d < none), "{none} {drifts:?}");
    let [_, moments, _, patch, readers, sequential] = drifts;
    assert!(readers < patch && sequential < patch && sequential < moments, "{none} {drifts:?}");
}

#[test]
fn meets_targets_of_params_macs_and_latency() {
    let calibration = samples("digits-calibration.npz");
    let some = Prefix { all: &calibration, count: 160, invalid: false };
    let with = Tools { samples: Some(&some), threads: 1, ..tools() };
    let original = digits().cost(&Bindings::default());
    let params = PruneChannels { params: Some(0.5), streams: true, ..untimed() };
    let (model, _) = pruned(&params, with).unwrap();
    assert!(model.cost(&Bindings::default()).params as f64 <= 0.5 * original.params as f64);
    let multiple = PruneChannels { multiple: Multiple::Of(4), min_kept: 8, ..half() };
    let (model, report) = pruned(&multiple, with).unwrap();
    let groups = crate::analysis::groups::Groups::of(&model.graph);
    assert!(groups.prunable().all(|(_, g)| g.width.is_multiple_of(4) && g.width >= 8));
    assert!(report.figure("MACs").unwrap() <= 0.6 && report.count("channels removed") > 0);
    let latency = PruneChannels { latency: Some(0.9), ..PruneChannels::default() };
    let (model, report) = pruned(&latency, Tools { engine: Some(&mac_clock()), ..with }).unwrap();
    assert!(report.figure("latency").unwrap() <= 0.9);
    assert!(macs(&model) < macs(&digits()));
    let share = macs(&model) / macs(&digits());
    assert!((0.6..=0.9).contains(&share), "{share}");
    assert!((report.figure("latency").unwrap() - share).abs() < 1e-6, "{:?}", report.figures);
    // At these widths even channel counts are nearly free.
    let step = report.figure("step of dense convolutions").unwrap();
    assert!((1.0..=2.0).contains(&step), "{:?}", report.figures);
}

#[test]
fn removes_as_much_as_limits_allow() {
    let calibration = samples("digits-calibration.npz");
    let some = Prefix { all: &calibration, count: 240, invalid: false };
    let with = Tools { samples: Some(&some), ..tools() };
    let held_out = HeldOut::new(with, &digits(), 192..240).unwrap();
    let reach = |limit: f64| {
        let pass = PruneChannels { max_drift: Some(limit), ..untimed() };
        let (model, _) = pruned(&pass, with).unwrap();
        assert!(held_out.drift(&model).unwrap() <= limit);
        macs(&model) / macs(&digits())
    };
    let (near, far) = (reach(0.01), reach(0.2));
    assert!(far < near && near < 1.0, "{near} {far}");
    let none = PruneChannels { max_drift: Some(0.0), ..untimed() };
    assert!(refused(&none, with).starts_with("nothing can be removed within the limits"));
    let both = PruneChannels { max_drift: Some(1e-9), ..half() };
    assert!(refused(&both, with).contains("is more than 0.000000001"));
    let unlabelled = PruneChannels { max_accuracy_drop: Some(0.1), ..half() };
    assert_eq!(refused(&unlabelled, with), "`max_accuracy_drop` needs labels");
    let labelled = samples("digits.npz");
    let with = Tools { samples: Some(&labelled), ..tools() };
    let pass = PruneChannels { max_accuracy_drop: Some(0.02), ..half() };
    assert!(macs(&pruned(&pass, with).unwrap().0) <= 0.6 * macs(&digits()));
}

/// All pruning passes share targets and limits.
#[test]
fn prunes_heads_and_hidden_units_to_limits() {
    let calibration = samples("digits-calibration.npz");
    let some = Prefix { all: &calibration, count: 160, invalid: false };
    let with = Tools { samples: Some(&some), ..tools() };
    let original = read_fixture("digits-vit.onnx");
    let held_out = HeldOut::new(with, &original, 128..160).unwrap();
    // One head per layer is a third of the attention.
    let heads = PruneHeads {
        max_drift: Some(0.2),
        scope: Some(PruneScope::Uniform),
        repair: Some(PruneRepair::Patch),
        multiple: Multiple::Of(1),
        ..PruneHeads::default()
    };
    let hidden = PruneHidden {
        max_drift: Some(0.05),
        scope: Some(PruneScope::Uniform),
        repair: Some(PruneRepair::Patch),
        multiple: Multiple::Of(1),
        ..PruneHidden::default()
    };
    let share = |pass: &dyn Pass, limit: f64| {
        let mut model = original.clone();
        pass.run(&mut model, &mut testing::context(with)).unwrap();
        model.infer().unwrap();
        assert!(held_out.drift(&model).unwrap() <= limit);
        macs(&model) / macs(&original)
    };
    let shares = [share(&heads, 0.2), share(&hidden, 0.05)];
    assert!(shares[0] < 1.0 && shares[1] < 0.8, "{shares:?}");
    let both = PruneHidden { macs: Some(0.9), params: Some(0.9), ..PruneHidden::default() };
    assert!(both.validate().unwrap_err().starts_with("only one of `macs`"));
}

#[test]
fn uses_merged_statistics_without_samples() {
    let calibration = samples("digits-calibration.npz");
    let with = Tools { samples: Some(&calibration), ..tools() };
    let mut prepared = digits();
    crate::analysis::prepare::prepare(&mut prepared, &mut testing::context(Tools::default())).unwrap();
    // All positions of all samples, so both halves together cover the same rows.
    let sampling = Sampling { positions: 64, seed: 0 };
    let collect =
        |range| crate::analysis::calibration::collect_statistics(with, &prepared, range, sampling).unwrap();
    let all = collect(0..400);
    let mut merged = collect(0..128);
    merged.merge(collect(128..400)).unwrap();
    assert_eq!(merged.rows(), all.rows());
    let model = |statistics| {
        let pass = half();
        let with = Tools { statistics: Some(statistics), ..Tools::default() };
        pruned(&pass, with).unwrap().0
    };
    let held_out = HeldOut::new(with, &digits(), 400..512).unwrap();
    let [a, b] = [&all, &merged].map(|s| held_out.drift(&model(s)).unwrap());
    // The same units are removed; weights differ by rounding.
    assert!((a - b).abs() < 1e-4 * a, "{a} {b}");
    let without = held_out.drift(&pruned(&half(), Tools::default()).unwrap().0).unwrap();
    assert!(a < without / 5.0, "{a}, without statistics {without}");
}

#[test]
fn rejects_unusable_samples_and_targets() {
    let calibration = samples("digits-calibration.npz");
    let some = |count, invalid| Prefix { all: &calibration, count, invalid };
    let (few, bad, good) = (some(9, false), some(64, true), some(64, false));
    let with = |s| Tools { samples: Some(s), ..tools() };
    assert_eq!(refused(&half(), with(&few)), "9 samples are too few");
    let why = refused(&half(), with(&bad));
    assert!(why.ends_with("is not finite on the samples"), "{why}");
    let moments = PruneChannels {
        criterion: Some(Importance::L2),
        scope: Some(PruneScope::Uniform),
        repair: Some(PruneRepair::Moments),
        ..half()
    };
    assert!(refused(&moments, with(&bad)).ends_with("the sums over the samples are not finite"));
    let unreachable = PruneChannels { macs: Some(0.01), ..untimed() };
    let why = refused(&unreachable, with(&good));
    assert!(
        why.starts_with("the target cannot be reached: at least 0.") && why.contains("most of it in `"),
        "{why}"
    );
    let typo = PruneChannels { only: vec!["*Conv*".into(), "cnov1".into()], ..half() };
    assert_eq!(refused(&typo, with(&good)), "no group has a name that matches `cnov1`");
    assert_eq!(refused(&PruneChannels::default(), with(&good)), "a target is required");
    let unsampled = PruneChannels { criterion: Some(Importance::Apoz), ..half() };
    assert_eq!(refused(&unsampled, tools()), "it needs samples, and an engine to run them");
}
