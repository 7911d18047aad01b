//! Tests of execution providers.

use super::{code, fixture, json, run, stderr};

#[test]
fn a_missing_provider_is_an_error_that_lists_the_others() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fixture(at, "digits-cnn.onnx");
    fixture(at, "digits-calibration.npz");
    let model = "digits-cnn.onnx";
    for args in [
        &["optimize", model, "-o", "out.onnx", "--no-prove", "--no-time"][..],
        &["verify", model, model],
        &["bench", model],
        &[
            "search",
            model,
            "-o",
            "out.onnx",
            "--samples",
            "digits-calibration.npz",
            "--min-agreement",
            "0.9",
            "--budget",
            "1s",
        ],
    ] {
        let run = run(at, &[args, &["--provider", "cann,device_id=1"]].concat());
        assert_eq!(code(&run), 2, "{}", stderr(&run));
        let text = stderr(&run);
        assert!(text.contains(" has no execution provider `cann,device_id=1`, only "), "{text}");
        assert!(text.contains("cpu") && text.contains("\nhint: "), "{text}");
        assert!(!at.join("out.onnx").exists());
    }
}

#[test]
#[ignore = "needs the folder of the library in the Python package onnxruntime-openvino, in PARE_ORT_OPENVINO"]
fn openvino_verifies_measures_and_reaches_goals_of_latency() {
    let library = std::env::var("PARE_ORT_OPENVINO").unwrap();
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["digits-cnn.onnx", "digits-calibration.npz", "digits.npz"] {
        fixture(at, name);
    }
    let on = |args: &[&str], provider: &str| {
        run(at, &[args, &["--json", "--ort-library", &library, "--provider", provider]].concat())
    };
    let optimized = on(
        &[
            "optimize",
            "digits-cnn.onnx",
            "-o",
            "small.onnx",
            "--passes",
            // Little of the time of so small a model depends on its channels.
            "safe,prune-channels{latency=0.95}",
            "--samples",
            "digits-calibration.npz",
            "--test",
            "digits.npz",
            "--min-agreement",
            "0.9",
        ],
        "openvino,device_type=CPU",
    );
    assert_eq!(code(&optimized), 0, "{}", stderr(&optimized));
    let report = json(&optimized);
    assert_eq!(report["latency"]["provider"], "openvino,device_type=CPU");
    assert!(report["proof"]["engine"].as_str().unwrap().ends_with("on openvino,device_type=CPU"), "{report}");
    let safe = on(&["optimize", "digits-cnn.onnx", "-o", "safe.onnx"], "openvino");
    assert_eq!(json(&safe)["proof"]["outcome"], "equal", "{}", stderr(&safe));
    let verified = on(&["verify", "digits-cnn.onnx", "safe.onnx", "--samples", "digits.npz"], "openvino");
    assert_eq!((code(&verified), json(&verified)["verdict"].clone()), (0, "agree".into()));
    let measured = on(&["bench", "digits-cnn.onnx", "small.onnx", "--time", "0.5"], "openvino");
    assert_eq!(json(&measured)["provider"], "openvino", "{}", stderr(&measured));
    let wrong = on(&["bench", "digits-cnn.onnx"], "openvino,no_such_option=1");
    let text = stderr(&wrong);
    assert!(text.contains("the execution provider `openvino,no_such_option=1` cannot be used: "), "{text}");
}
