use super::{
    head::{Prediction, allowed_errors, threshold},
    *,
};
use crate::{
    analysis::calibration::floats,
    framework::{
        Report, RunError, Tools,
        testing::{self, model, read_fixture, tools, try_pass},
    },
};
use pare_graph::evaluate::quality::top;
use pare_runtime::SharedSamples;

fn samples() -> SharedSamples {
    testing::samples("digits-calibration.npz", &read_fixture("digits-cnn.onnx"))
}

fn add_exit(pass: AddEarlyExit, model: &mut Model) -> Result<Report, RunError> {
    let samples = samples();
    let tools = Tools { samples: Some(&samples), threads: 1, ..tools() };
    try_pass(pass, model, tools)
}

/// The logits of the first samples, computed one at a time.
fn logits(model: &Model, count: usize) -> Vec<Vec<f32>> {
    let samples = samples();
    let tools = Tools { samples: Some(&samples), threads: 1, ..tools() };
    let mut rows = vec![];
    for i in 0..count {
        observe(tools, model, model.graph.outputs(), i..i + 1, "", &mut |_, values| {
            rows.push(floats(&values[0])?.into_owned());
            Ok(())
        })
        .unwrap();
    }
    rows
}

#[test]
fn easy_samples_exit_early_and_others_are_unchanged() {
    for name in ["digits-cnn.onnx", "digits-vit.onnx"] {
        let original = read_fixture(name);
        let mut changed = original.clone();
        let pass = AddEarlyExit { allow_interface_change: true, ..AddEarlyExit::default() };
        let report = add_exit(pass, &mut changed).unwrap();
        let step = &report.steps[0];
        assert!(step.figure("share of samples exiting early").unwrap() > 0.1, "{name} {step:?}");
        assert!(step.figure("mean MACs relative to the original").unwrap() < 1.0, "{name} {step:?}");
        let changes: Vec<_> = step.interface.iter().map(ToString::to_string).collect();
        assert_eq!(changes, ["the model takes one sample at a time"]);
        let shape = changed.graph.value(changed.graph.inputs()[0]).fact.fixed_shape();
        assert_eq!(shape.unwrap(), [1, 1, 8, 8]);
        let (full, early) = (logits(&original, 200), logits(&changed, 200));
        let same = full.iter().zip(&early).filter(|(a, b)| top(a) == top(b)).count();
        let unchanged = full
            .iter()
            .zip(&early)
            .filter(|(a, b)| a.iter().zip(b.iter()).all(|(a, b)| (a - b).abs() <= 1e-4 * (1.0 + a.abs())));
        let unchanged = unchanged.count();
        // Samples that do not exit get the logits of the original.
        let message = format!("{name}: {same} of 200 keep their class, {unchanged} do not exit");
        assert!(same >= 197 && unchanged > 0 && unchanged < 190, "{message}");
    }
}

#[test]
fn thresholds_bound_errors_and_do_not_separate_ties() {
    let prediction = |confidence, agrees| Prediction { confidence, agrees };
    let predictions = |n: usize, wrong: &[usize]| -> Vec<_> {
        (0..n).map(|i| prediction(1.0 - i as f32 / 1000.0, !wrong.contains(&i))).collect()
    };
    // P(X ≤ 1) = 4 % and P(X ≤ 2) = 12 % for n = 99 and a rate of 5 %.
    let allowed = [(99, 0.05), (99, 0.001), (10_000, 0.005)].map(|(n, rate)| allowed_errors(n, rate));
    assert_eq!(allowed, [1, 0, 40]);
    let found = threshold(predictions(99, &[50, 70]), 0.95).unwrap();
    assert_eq!((found.exiting, found.agreement), (70.0 / 99.0, 1.0 - 1.0 / 99.0));
    assert!(found.confidence < 1.0 - 0.069 && found.confidence > 1.0 - 0.070);
    let tied = [prediction(0.9, true), prediction(0.9, false), prediction(0.8, true)];
    assert_eq!(threshold(tied.to_vec(), 0.9), None);
    assert_eq!(threshold(predictions(10, &[0]), 0.99), None);
}

#[test]
fn refuses_batches_other_outputs_and_unknown_tensors() {
    let cnn = read_fixture("digits-cnn.onnx");
    let why = |pass: AddEarlyExit, model: &Model| add_exit(pass, &mut model.clone()).unwrap_err().to_string();
    assert_eq!(
        why(AddEarlyExit::default(), &cnn),
        "`add-early-exit`: `image` has batch size `N`, and an early exit needs batch size 1"
    );
    let open = AddEarlyExit { allow_interface_change: true, ..AddEarlyExit::default() };
    let four = model("g (float[4,1,8,8] image) => (float[4,64] y) { y = Flatten(image) }");
    assert_eq!(
        why(open.clone(), &four),
        "`add-early-exit`: `image` has batch size 4, and an early exit needs batch size 1"
    );
    let maps = model("g (float[1,1,8,8] image) => (float[1,1,8,8] y) { y = Relu(image) }");
    assert_eq!(why(open.clone(), &maps), "`add-early-exit`: `y` does not hold class scores");
    let nowhere = AddEarlyExit { at: "nowhere".into(), ..open };
    assert_eq!(why(nowhere, &cnn), "`add-early-exit`: there is no tensor `nowhere`");
    assert!(AddEarlyExit { agreement: 1.5, ..AddEarlyExit::default() }.validate().is_err());
}
