use super::*;
use crate::framework::{
    Progress, StepReport, Tools,
    testing::{self, model, read_fixture, tools},
};
use fastrand::Rng;
use pare_graph::{
    Evaluate, EvaluateError, Metrics, Run, Samples, Setting, Tensor, evaluate::quality::OutputMeasure,
};
use std::{
    ops::Range,
    path::PathBuf,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Random inputs, the same for the same sample.
struct Random {
    count: usize,
    shape: Vec<usize>,
}

impl Samples for Random {
    fn len(&self) -> usize {
        self.count
    }

    fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
        let size: usize = self.shape.iter().product();
        let value = |rng: &mut Rng| (0..4).map(|_| rng.f32() - 0.5).sum::<f32>();
        let sample = |i: usize| {
            let mut rng = Rng::with_seed(i as u64 + 1);
            (0..size).map(move |_| value(&mut rng))
        };
        let values: Vec<f32> = range.clone().flat_map(sample).collect();
        let shape: Vec<_> = std::iter::once(range.len()).chain(self.shape.iter().copied()).collect();
        Ok(vec![("x".into(), Tensor::from_slice(&shape, &values).unwrap())])
    }
}

fn random(count: usize, shape: &[usize]) -> Random {
    Random { count, shape: shape.to_vec() }
}

/// Trains `student` towards `teacher`.
fn distilled(
    pass: &Distill,
    teacher: &Model,
    student: &Model,
    with: Tools<'_>,
) -> Result<(Model, StepReport), PassError> {
    let mut model = student.clone();
    let mut cx = testing::context(Tools { teacher: Some(teacher), ..with });
    pass.run(&mut model, &mut cx)?;
    model.check().unwrap();
    Ok((model, cx.report))
}

fn figure(report: &StepReport, name: &str) -> f64 {
    let found = report.figures().find(|(known, _)| *known == name);
    found.unwrap_or_else(|| panic!("no figure `{name}`: {:?}", report.declined().collect::<Vec<_>>())).1.value
}

fn values(model: &Model, name: &str) -> Vec<f32> {
    model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap().to_vec().unwrap()
}

const TEACHER: &str = "g (float[N,3] x) => (float[N,2] y) <
    float[3,4] a = {1, -1, 0.5, 0.25, 0.5, 1, -0.5, 1, -1, 0.75, 1, -0.5}, float[4] b = {0.1, -0.1, 0.2, 0},
    float[4,2] c = {1, -1, 0.5, 1, -0.75, 0.5, 1, 1}> {
    h = MatMul(x, a) s = Add(h, b) r = Relu(s) y = MatMul(r, c) }";
/// The teacher with other numbers in the last layer.
const STUDENT: &str = "g (float[N,3] x) => (float[N,2] y) <
    float[3,4] a = {1, -1, 0.5, 0.25, 0.5, 1, -0.5, 1, -1, 0.75, 1, -0.5}, float[4] b = {0.1, -0.1, 0.2, 0},
    float[4,2] c = {0.5, -0.5, 0.1, 0.5, -0.25, 0.1, 0.5, 0.25}> {
    h = MatMul(x, a) s = Add(h, b) r = Relu(s) y = MatMul(r, c) }";

#[test]
fn recovers_the_outputs_of_the_teacher() {
    let samples = random(600, &[3]);
    for optimizer in [Optimizer::Adamw, Optimizer::Sgd] {
        let pass = Distill { epochs: Some(60.0), optimizer, ..Distill::default() };
        let with = Tools { samples: Some(&samples), ..tools() };
        let (_, report) = distilled(&pass, &model(TEACHER), &model(STUDENT), with).unwrap();
        let (before, after) =
            (figure(&report, "held-out drift before"), figure(&report, "held-out drift after"));
        assert!(before > 0.1 && after < before / 50.0, "{optimizer:?}: {before} {after}");
    }
}

#[test]
fn trains_with_each_loss() {
    let scores = |text: &str| {
        let text =
            text.replace("float[N,2] y", "float[N,2] p").replace("(r, c) }", "(r, c) p = Softmax(y) }");
        model(&text)
    };
    let samples = random(400, &[3]);
    for loss in [DistillLoss::Error, DistillLoss::Divergence, DistillLoss::Cosine] {
        let pass = Distill { epochs: Some(15.0), loss: Some(loss), ..Distill::default() };
        let with = Tools { samples: Some(&samples), ..tools() };
        let (_, report) = distilled(&pass, &scores(TEACHER), &scores(STUDENT), with).unwrap();
        let (before, after) =
            (figure(&report, "held-out drift before"), figure(&report, "held-out drift after"));
        // The direction of logits does not say how far apart the classes are.
        let factor = if loss == DistillLoss::Cosine { 1.0 } else { 10.0 };
        assert!(after < before / factor, "{loss:?}: {before} {after}");
    }
}

#[test]
fn inner_values_become_those_of_the_teacher() {
    // Four units and two outputs: many first layers give the same outputs.
    let student = STUDENT.replace("{1, -1, 0.5, 0.25,", "{0.2, -0.4, 1, 0.25,");
    let samples = random(600, &[3]);
    let with = Tools { samples: Some(&samples), ..tools() };
    let error = |features: &[&str]| {
        let features: Vec<_> = features.iter().map(|&name| name.into()).collect();
        let pass = Distill { epochs: Some(40.0), rate: Some(1e-2), features, ..Distill::default() };
        let (result, report) = distilled(&pass, &model(TEACHER), &model(&student), with).unwrap();
        let (before, after) =
            (figure(&report, "held-out drift before"), figure(&report, "held-out drift after"));
        assert!(after < before / 10.0, "{before} {after}");
        let pairs = values(&result, "a").into_iter().zip(values(&model(TEACHER), "a"));
        let compared = report.figures().find(|(name, _)| *name == "inner values compared");
        (pairs.map(|(a, b)| (a - b).powi(2)).sum::<f32>(), compared.map(|(_, figure)| figure.value))
    };
    let (alone, compared) = error(&[]);
    assert_eq!(compared, None);
    let (with, compared) = error(&["h", "s*"]);
    assert_eq!(compared, Some(2.0));
    assert!(with < alone / 10.0, "{with} {alone}");
}

#[test]
fn features_are_streams_or_values_of_the_same_shape() {
    let source = "g (float[N,3] x) => (float[N,3] y) <
        float[3,WIDTH] a = {A}, float[WIDTH,3] b = {B}, float[3,3] c = {1, 2, 0, 1, -1, 0.5, 0, 1, 1}> {
        h = MatMul(x, a) r = Relu(h) d = MatMul(r, b) v = Add(x, d) y = MatMul(v, c) }";
    let of = |width: usize| {
        let source = source.replace("WIDTH", &width.to_string());
        let source = source.replace("{A}", &format!("{{{}}}", testing::numbers(3 * width, 1)));
        model(&source.replace("{B}", &format!("{{{}}}", testing::numbers(3 * width, 2))))
    };
    let samples = random(200, &[3]);
    let with = Tools { samples: Some(&samples), ..tools() };
    let trained = |features: &str| {
        let pass = Distill { steps: Some(20), features: vec![features.into()], ..Distill::default() };
        distilled(&pass, &of(4), &of(3), with)
    };
    let (_, report) = trained("blocks").unwrap();
    assert_eq!(figure(&report, "inner values compared"), 1.0);
    // The hidden layer is narrower, and the output is compared anyway.
    for name in ["h", "y", "nothing"] {
        let why = trained(name).unwrap_err().to_string();
        assert!(why.starts_with("the original computes no value of `features`"), "{why}");
    }
}

#[test]
fn a_student_that_equals_its_teacher_stays_as_it_is() {
    let samples = random(100, &[3]);
    let with = Tools { samples: Some(&samples), ..tools() };
    let teacher = model(TEACHER);
    let (result, report) = distilled(&Distill::default(), &teacher, &teacher, with).unwrap();
    assert_eq!(values(&result, "c"), values(&teacher, "c"));
    let why = report.declined().next().unwrap().0;
    assert!(why.starts_with("training does not improve the held-out samples by more than chance"), "{why}");
}

#[test]
fn zeros_of_sparse_weights_and_excluded_weights_stay() {
    let samples = random(300, &[3]);
    let with = Tools { samples: Some(&samples), ..tools() };
    let student = model(&STUDENT.replace("0.1, 0.5,", "0, 0.5,"));
    let pass = Distill { except: vec!["a".into()], epochs: Some(10.0), ..Distill::default() };
    let (result, _) = distilled(&pass, &model(TEACHER), &student, with).unwrap();
    assert_eq!(values(&result, "a"), values(&student, "a"));
    let (old, new) = (values(&student, "c"), values(&result, "c"));
    for (old, new) in old.iter().zip(&new) {
        assert_eq!(*old == 0.0, *new == 0.0);
        assert!(*old == 0.0 || old != new);
    }
}

#[test]
fn models_of_a_fixed_batch_size_add_up_gradients() {
    let fixed = |text: &str| model(&text.replace("float[N,", "float[4,"));
    let samples = random(400, &[3]);
    let with = Tools { samples: Some(&samples), ..tools() };
    let pass = Distill { epochs: Some(10.0), batch: 16, rate: Some(0.01), ..Distill::default() };
    let (_, report) = distilled(&pass, &fixed(TEACHER), &fixed(STUDENT), with).unwrap();
    let (_, open) = distilled(&pass, &model(TEACHER), &model(STUDENT), with).unwrap();
    let after = |report: &StepReport| figure(report, "held-out drift after");
    // The same steps but for rounding and the parts of the held-out samples.
    assert!((after(&report) / after(&open) - 1.0).abs() < 0.5, "{} {}", after(&report), after(&open));
}

#[test]
fn augmented_images_are_run_through_the_teacher() {
    let teacher = read_fixture("digits-cnn.onnx");
    let samples = testing::samples("digits-calibration.npz", &teacher);
    let mut student = teacher.clone();
    let first = student.graph.initializers().into_iter().find_map(|v| {
        let tensor = student.graph.value(v).tensor().filter(|t| t.rank() == 4)?.clone();
        Some((v, tensor.scaled(1, &[0.5]).ok()?))
    });
    let (id, halved) = first.unwrap();
    let mut patch = pare_graph::Patch::anchored(student.graph.nodes()[0]);
    patch.set_data(id, halved);
    student.graph.apply(patch).unwrap();
    let with = Tools { samples: Some(&samples), ..tools() };
    let augment = vec![Augmentation::Shift];
    let pass = Distill { steps: Some(30), rate: Some(1e-3), augment, ..Distill::default() };
    let (_, report) = distilled(&pass, &teacher, &student, with).unwrap();
    assert!(figure(&report, "held-out drift after") < figure(&report, "held-out drift before"));
}

/// Half of the channels are removed and nothing is repaired.
const CUT: &str = "prune-channels{ratio=0.5,criterion=l2,repair=none}";

#[test]
fn a_pruned_network_gets_better_on_other_images() {
    let teacher = read_fixture("digits-cnn.onnx");
    let (fit, test) = ("digits-calibration.npz", "digits.npz");
    let [fit, test] = [fit, test].map(|file| testing::samples(file, &teacher));
    let with = Tools { samples: Some(&fit), ..tools() };
    let mut student = teacher.clone();
    testing::context(with).run_nested(CUT, &mut student).unwrap();
    let (result, report) = distilled(&Distill::default(), &teacher, &student, with).unwrap();
    assert_eq!(report.declined().collect::<Vec<_>>(), []);
    let divergence = |changed: &Model| {
        let feeds = Samples::batch(&test, 0..256).unwrap();
        let feeds: Vec<_> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        let engine = tools().engine.unwrap();
        let run = |model: &Model| engine.load(model, Setting::PLAIN).unwrap().run(&feeds).unwrap().remove(0);
        let mut metrics = Metrics::new(OutputMeasure::CLASSES);
        metrics.add(&run(&teacher), &run(changed), None);
        metrics.mean_kl().unwrap()
    };
    let (before, after) = (divergence(&student), divergence(&result));
    assert!(after < 0.7 * before, "{before} {after}");
}

#[test]
fn labels_train_a_network_from_its_initialization() {
    let start = read_fixture("digits-init.onnx");
    let samples = testing::samples("digits.npz", &start);
    let with = Tools { samples: Some(&samples), ..tools() };
    let pass =
        Distill { loss: Some(DistillLoss::Labels), steps: Some(60), rate: Some(3e-3), ..Distill::default() };
    let (_, report) = distilled(&pass, &start, &start, with).unwrap();
    let (before, after) = (figure(&report, "held-out drift before"), figure(&report, "held-out drift after"));
    // Chance is ln 10 = 2.3.
    assert!(before > 2.0 && after < 1.0, "{before} {after}");
}

#[test]
fn quantized_weights_get_better_integers() {
    let teacher = read_fixture("digits-cnn.onnx");
    let samples = testing::samples("digits-calibration.npz", &teacher);
    let with = Tools { samples: Some(&samples), ..tools() };
    let mut student = teacher.clone();
    testing::context(with).run_nested(&format!("safe,{CUT},quantize{{for=size}}"), &mut student).unwrap();
    let pass = Distill { steps: Some(60), rate: Some(1e-3), ..Distill::default() };
    let (result, report) = distilled(&pass, &teacher, &student, with).unwrap();
    let (before, after) = (figure(&report, "held-out drift before"), figure(&report, "held-out drift after"));
    assert!(after < 0.8 * before, "{before} {after}");
    let integers = |model: &Model| -> Vec<(String, Tensor)> {
        let all = model.graph.initializers().into_iter().map(|v| model.graph.value(v));
        let all = all.filter_map(|v| Some((v.name.clone(), v.tensor()?.clone())));
        all.filter(|(_, tensor)| tensor.dtype() == pare_graph::DataType::Int8 && tensor.rank() > 1).collect()
    };
    let (old, new) = (integers(&student), integers(&result));
    assert_eq!(old.len(), new.len());
    assert!(old.iter().zip(&new).any(|(old, new)| old != new));
}

#[test]
fn units_at_equilibrium_save_a_part_of_the_backward_pass() {
    let samples = random(600, &[3]);
    let with = Tools { samples: Some(&samples), ..tools() };
    let train = |freeze| {
        let pass = Distill { freeze, epochs: Some(60.0), rate: Some(0.01), ..Distill::default() };
        distilled(&pass, &model(TEACHER), &model(STUDENT), with).unwrap().1
    };
    let saved = |report: &StepReport| figure(report, "backward MACs saved");
    let after = |report: &StepReport| figure(report, "held-out drift after");
    let plain = train(None);
    assert!(plain.figures().all(|(name, _)| name != "backward MACs saved"));
    // Nothing is slower than this, and everything slower than that.
    let (none, some, all) = (train(Some(1e-30)), train(Some(1e-5)), train(Some(10.0)));
    assert!(saved(&none) < 0.05 && after(&none) / after(&plain) < 2.0, "{} {}", saved(&none), after(&none));
    assert!(saved(&some) > saved(&none) && saved(&some) < saved(&all), "{}", saved(&some));
    // Velocities are known after two of sixteen parts. Then all weights and biases rest and nothing is computed, until
    // training ends after thirteen, five of the second half without a gain.
    assert!((saved(&all) - 11.0 / 13.0).abs() < 0.02 && after(&all) > after(&plain), "{}", saved(&all));
}

#[test]
fn blocks_that_collapse_cost_less_to_drop() {
    let original = read_fixture("digits-cnn.onnx");
    let [fit, test] = ["digits-calibration.npz", "digits.npz"].map(|file| testing::samples(file, &original));
    let with = Tools { samples: Some(&fit), ..tools() };
    let pass = Distill { collapse: Some(1.0), steps: Some(100), rate: Some(1e-3), ..Distill::default() };
    let (collapsed, report) = distilled(&pass, &original, &original, with).unwrap();
    let (before, after) =
        (figure(&report, "distance of blocks before"), figure(&report, "distance of blocks after"));
    assert!(after < 0.5 * before, "{before} {after}");
    let engine = tools().engine.unwrap();
    let outputs = |model: &Model| {
        let feeds = Samples::batch(&test, 0..256).unwrap();
        let feeds: Vec<_> = feeds.iter().map(|(n, t)| (n.as_str(), t)).collect();
        engine.load(model, Setting::PLAIN).unwrap().run(&feeds).unwrap().remove(0)
    };
    let cost = |model: &Model| {
        let mut dropped = model.clone();
        let drop = "drop-blocks{count=2,one_shot=true,criterion=wasserstein,repair=none}";
        testing::context(with).run_nested(drop, &mut dropped).unwrap();
        let mut metrics = Metrics::new(OutputMeasure::CLASSES);
        metrics.add(&outputs(&original), &outputs(&dropped), None);
        metrics.mean_kl().unwrap()
    };
    let (plain, collapsed) = (cost(&original), cost(&collapsed));
    assert!(collapsed < 0.8 * plain, "{plain} {collapsed}");
}

#[test]
fn only_changed_weights_are_trained() {
    let samples = random(600, &[3]);
    let with = Tools { samples: Some(&samples), ..tools() };
    let pass = Distill { train: TrainedWeights::Changed, epochs: Some(20.0), ..Distill::default() };
    let (teacher, student) = (model(TEACHER), model(STUDENT));
    let (result, report) = distilled(&pass, &teacher, &student, with).unwrap();
    for name in ["a", "b"] {
        assert_eq!(values(&result, name), values(&student, name));
    }
    assert!(figure(&report, "held-out drift after") < 0.1 * figure(&report, "held-out drift before"));
    // A change of the first layer is one of the second too.
    let first = model(&TEACHER.replace("a = {1,", "a = {0.5,"));
    let (result, _) = distilled(&pass, &teacher, &first, with).unwrap();
    for name in ["a", "b", "c"] {
        assert_ne!(values(&result, name), values(&first, name));
    }
    let (_, report) = distilled(&pass, &teacher, &teacher, with).unwrap();
    let why = report.declined().next().unwrap().0;
    assert_eq!(why, "no weight differs from the original's or depends on one that does");
}

#[test]
fn training_is_reproducible() {
    let samples = random(200, &[3]);
    let with = Tools { samples: Some(&samples), threads: 1, ..tools() };
    let train = |seed| {
        let with = Tools { seed, ..with };
        values(&distilled(&Distill::default(), &model(TEACHER), &model(STUDENT), with).unwrap().0, "c")
    };
    assert_eq!(train(1), train(1));
    assert_ne!(train(1), train(2));
}

/// An engine that fails after a number of runs, as if the process was killed.
struct Failing<'e> {
    engine: &'e dyn Evaluate,
    left: &'static AtomicUsize,
}

struct FailingRun(Box<dyn Run>, &'static AtomicUsize);

impl Evaluate for Failing<'_> {
    fn name(&self) -> String {
        self.engine.name()
    }

    fn load(&self, model: &Model, setting: Setting) -> Result<Box<dyn Run>, EvaluateError> {
        Ok(Box::new(FailingRun(self.engine.load(model, setting)?, self.left)))
    }
}

impl Run for FailingRun {
    fn run(&mut self, feeds: &[(&str, &Tensor)]) -> Result<Vec<Tensor>, EvaluateError> {
        let ended = self.1.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err();
        if ended { Err(EvaluateError::new("killed")) } else { self.0.run(feeds) }
    }

    fn time(&mut self, feeds: &[(&str, &Tensor)], runs: usize) -> Result<Vec<f64>, EvaluateError> {
        self.0.time(feeds, runs)
    }
}

#[test]
fn a_killed_training_resumes_to_the_same_result() {
    static LEFT: AtomicUsize = AtomicUsize::new(0);
    let path: PathBuf = std::env::temp_dir().join(format!("pare-distill-{}.safetensors", std::process::id()));
    let samples = random(300, &[3]);
    let with = Tools { samples: Some(&samples), threads: 1, ..tools() };
    let (teacher, student) = (model(TEACHER), model(STUDENT));
    let (whole, _) = distilled(&Distill::default(), &teacher, &student, with).unwrap();
    let pass = Distill { checkpoint: path.to_str().unwrap().into(), ..Distill::default() };
    let failing = Failing { engine: tools().engine.unwrap(), left: &LEFT };
    let (mut kills, mut runs) = (0, 120);
    let resumed = loop {
        LEFT.store(runs, Ordering::Relaxed);
        match distilled(&pass, &teacher, &student, Tools { engine: Some(&failing), ..with }) {
            Ok((model, _)) => break model,
            Err(error) => assert_eq!(error.to_string(), "killed"),
        }
        // Setting up takes runs too, so each try gets further.
        (kills, runs) = (kills + 1, runs + 20);
    };
    assert!(kills >= 3, "{kills}");
    assert_eq!(values(&resumed, "c"), values(&whole, "c"));
    assert!(!path.exists());
}

/// Asks to end after a number of steps.
struct Ending(AtomicUsize);

impl Progress for Ending {
    fn step(&self, _: &str, _: u64, _: u64) {}

    fn is_ending(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_err()
    }
}

#[test]
fn an_interrupt_keeps_the_best_so_far() {
    let samples = random(600, &[3]);
    let with = |progress| Tools { samples: Some(&samples), progress, ..tools() };
    let pass = Distill { steps: Some(1_000_000), rate: Some(1e-2), ..Distill::default() };
    let ending = Ending(AtomicUsize::new(0));
    let (_, report) = distilled(&pass, &model(TEACHER), &model(STUDENT), with(&ending)).unwrap();
    assert_eq!(report.declined().count(), 1);
    // Evaluations are far apart in so long a training, so the last state is evaluated too.
    let ending = Ending(AtomicUsize::new(200));
    let (_, report) = distilled(&pass, &model(TEACHER), &model(STUDENT), with(&ending)).unwrap();
    assert!(figure(&report, "held-out drift after") < figure(&report, "held-out drift before"));
}

#[test]
fn refuses_what_cannot_be_trained() {
    let refused = |pass: &Distill, teacher: &str, student: &str, with: Tools<'_>| {
        distilled(pass, &model(teacher), &model(student), with).unwrap_err().to_string()
    };
    let (few, samples) = (random(10, &[3]), random(100, &[3]));
    let pass = Distill::default();
    assert_eq!(refused(&pass, TEACHER, STUDENT, tools()), "it needs samples, and an engine to run them");
    let with = Tools { samples: Some(&few), ..tools() };
    assert_eq!(refused(&pass, TEACHER, STUDENT, with), "10 samples are too few");
    let with = Tools { samples: Some(&samples), ..tools() };
    let other = STUDENT.replace(" y)", " z)").replace("y = MatMul", "z = MatMul");
    assert_eq!(
        refused(&pass, TEACHER, &other, with),
        "no float output is the same in the original, so there is nothing to train towards"
    );
    let nothing = "g (float[N,3] x) => (float[N,3] y) { y = Relu(x) }";
    let (_, report) = distilled(&pass, &model(nothing), &model(nothing), with).unwrap();
    assert_eq!(report.declined().next().unwrap().0, "there are no float weights to train");
}

#[test]
fn refuses_options_that_contradict() {
    let error = |text: &str| text.parse::<crate::Pipeline>().unwrap_err().to_string();
    for (text, why) in [
        ("distill{epochs=1,steps=2}", "`epochs` and `steps` exclude each other"),
        ("distill{rate=0}", "`rate` is a positive number, not 0"),
        ("distill{freeze=0}", "`freeze` is a positive number, not 0"),
        ("distill{collapse=-1}", "`collapse` is a positive number, not -1"),
        ("distill{train=some}", "unknown variant `some`"),
        ("distill{freeze=0.1,checkpoint=a}", "`freeze` and `checkpoint` exclude each other"),
        ("distill{batch=0}", "`steps` and `batch` are at least 1"),
        ("distill{loss=l1}", "unknown variant `l1`"),
    ] {
        assert!(error(text).contains(why), "{}", error(text));
    }
}
