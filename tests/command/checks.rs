//! Tests of `verify`, `reduce` and `optimize --prove each`.

use super::{code, fixture, json, model, run, stderr};

#[test]
fn matches_outputs_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    model(at, "a.onnx", "g (float[2] x, float[2] z) => (float[2] p, float[2] q) { p = Relu(x) q = Neg(z) }");
    model(at, "b.onnx", "g (float[2] z, float[2] x) => (float[2] q, float[2] p) { q = Neg(z) p = Relu(x) }");
    let same = run(at, &["verify", "a.onnx", "b.onnx", "--json"]);
    assert_eq!(code(&same), 0, "{}", stderr(&same));
    let notes = json(&same)["notes"].to_string();
    assert!(
        notes.contains("the inputs are in another order") && notes.contains("the outputs are"),
        "{notes}"
    );
}

/// A script can tell a result that was written but not proven.
#[test]
fn unproven_results_have_their_own_exit_code() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let random =
        "g (float[N,4] x) => (float[N,4] y) { i = Identity(x) r = RandomNormalLike(i) y = Add(i, r) }";
    model(at, "random.onnx", random);
    let made = run(at, &["optimize", "random.onnx", "-o", "made.onnx"]);
    assert_eq!(code(&made), 3, "{}", stderr(&made));
    assert!(at.join("made.onnx").is_file() && stderr(&made).contains("hint: "), "{}", stderr(&made));
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(text.contains("not proven on") && text.contains("`y` is random"), "{text}");
    let allowed = run(at, &["optimize", "random.onnx", "-o", "made.onnx", "--allow-unproven"]);
    assert_eq!(code(&allowed), 0, "{}", stderr(&allowed));
    // Without a change there is nothing to prove.
    let unchanged = run(at, &["optimize", "made.onnx", "-o", "again.onnx"]);
    assert_eq!(code(&unchanged), 0, "{}", stderr(&unchanged));
}

/// The time of a comparison is bounded unless limits or test samples need all of it.
#[test]
fn comparisons_end_when_their_time_is_over() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["digits-fold.onnx", "digits-calibration.npz", "digits.npz"] {
        fixture(at, name);
    }
    let compared = |more: &[&str]| {
        let arguments =
            ["optimize", "digits-fold.onnx", "-o", "out.onnx", "--samples", "digits-calibration.npz"];
        let made = run(at, &[&arguments[..], &["--prove-time", "0s", "--no-time", "--json"], more].concat());
        assert_eq!(code(&made), 0, "{}", stderr(&made));
        let proof = &json(&made)["proof"];
        (proof["samples"].as_u64().unwrap(), proof["notes"].to_string())
    };
    let (samples, notes) = compared(&[]);
    assert!(
        samples < 512 && notes.contains(&format!("{samples} samples were compared in 0 s, not all")),
        "{notes}"
    );
    for more in [&["--test", "digits.npz"][..], &["--max-deviation", "0.1"]] {
        let (samples, notes) = compared(more);
        assert!(samples >= 500 && !notes.contains("not all"), "{more:?}: {samples} {notes}");
    }
}

/// An engine that violates the declaration of the original is no reason to refuse a result that keeps it.
#[test]
fn wrong_shapes_of_the_engine_are_not_differences() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fixture(at, "cases/tract_empty_slice.onnx");
    let made = run(at, &["optimize", "cases/tract_empty_slice.onnx", "-o", "made.onnx", "--engine", "tract"]);
    assert_eq!(code(&made), 3, "{}", stderr(&made));
    let text = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(
        text.contains("in this engine `concat6` of the original is float[1, 9], declared float[N, 8]"),
        "{text}"
    );
}

/// Operators restrict sizes and indices beyond what types declare: the engine's messages name them.
#[test]
fn generated_samples_adapt_to_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let table = |n: usize| (0..n).map(|i| i.to_string()).collect::<Vec<_>>().join(",");
    let texts = [
        format!(
            "g (float[N,L] x) => (float[N,M] y) <float[97] w = {{{}}}> {{ i = Identity(x) y = Add(i, w) }}",
            table(97)
        ),
        format!(
            "g (int64[N,L] x) => (float[N,M] y) <float[8] w = {{{}}}, int64[1] k = {{3}}> {{
                i = Identity(x) j = Mul(i, k) y = Gather(w, j) }}",
            table(8)
        ),
        "g (float[N,8,L] x) => (float[N,8,M] y) <int64[3] s = {0,8,-1}, int64[4] t = {0,8,50,-1}> {
            i = Identity(x) a = Reshape(i, t) y = Reshape(a, s) }"
            .to_owned(),
        format!(
            "g (float[N,A,B] x) => (float[N,A,4] y) <float[33,4] w = {{{}}}> {{ i = Identity(x) y = MatMul(i, w) }}",
            table(132)
        ),
    ];
    for (index, text) in texts.iter().enumerate() {
        model(at, "m.onnx", text);
        let made = run(at, &["optimize", "m.onnx", "-o", "made.onnx", "--json"]);
        let outcome = json(&made)["proof"]["outcome"].as_str().map(str::to_owned);
        assert_eq!((code(&made), outcome.as_deref()), (0, Some("equal")), "{index}: {}", stderr(&made));
    }
}

#[test]
fn measures_nothing_without_a_run() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    model(at, "a.onnx", "g (float[2] x) => (float[2] y) { y = Relu(x) }");
    model(at, "b.onnx", "g (float[2] x) => (float[2] z) { z = Relu(x) }");
    let renamed = run(at, &["verify", "a.onnx", "b.onnx"]);
    assert_eq!((code(&renamed), &*renamed.stdout), (1, &b"the models differ\n"[..]));
    assert!(stderr(&renamed).contains("output 1 is `z` instead of `y`"), "{}", stderr(&renamed));
}

/// ONNX Runtime ignores a wrong declared shape, whether it infers one or not. A correct one must be kept.
#[test]
fn accepts_the_removal_of_wrong_declared_shapes_only() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = |y: &str, op: &str| {
        format!("g (float[2,3] x) => ({y} y) {{ s = Shape(x) t = {op}(s) r = Relu(x) y = Reshape(r, t) }}")
    };
    // ONNX Runtime infers the rank after `Abs`, and nothing after `Unique`.
    for (op, kind) in [("Abs", "float[?, ?]"), ("Unique", "float")] {
        for (name, y) in [
            ("wrong.onnx", "float[7]"),
            ("taller.onnx", "float[7,3]"),
            ("right.onnx", "float[2,3]"),
            ("open.onnx", "float[]"),
        ] {
            model(at, name, &text(y, op));
        }
        for wrong in ["wrong.onnx", "taller.onnx"] {
            let made = run(at, &["optimize", wrong, "-o", "made.onnx", "--json"]);
            assert_eq!(
                (code(&made), json(&made)["after"]["nodes"].as_u64()),
                (0, Some(1)),
                "{}",
                stderr(&made)
            );
        }
        assert_eq!(code(&run(at, &["verify", "taller.onnx", "open.onnx"])), 0);
        let lost = run(at, &["verify", "right.onnx", "open.onnx"]);
        assert_eq!(code(&lost), 1);
        let why = format!("output `y` is {kind} instead of float[2, 3]");
        assert!(stderr(&lost).contains(&why), "{}", stderr(&lost));
    }
}

/// Exporters often make the batch symbolic at the inputs only; ONNX Runtime runs such models with a warning.
#[test]
fn ignores_a_batch_of_one_declared_by_outputs_only() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = "g (float[N,3,4] x) => (float[1,12] y, float[12,N] z)
        <int64 i = {0}, int64[1] o = {0}, int64[1] l = {12}> {
            a = Identity(x) s = Shape(a) n = Gather(s, i) u = Unsqueeze(n, o) t = Concat<axis = 0>(u, l)
            y = Reshape(a, t) z = Reshape(x, t) }";
    model(at, "a.onnx", text);
    let made = run(at, &["optimize", "a.onnx", "-o", "made.onnx", "--json"]);
    assert_eq!(
        (code(&made), json(&made)["proof"]["outcome"].as_str()),
        (0, Some("equal")),
        "{}",
        stderr(&made)
    );
    assert_eq!(json(&made)["after"]["nodes"], 2);
}

/// Each of six steps multiplies an error by up to five; ONNX Runtime does not optimize inside of loops.
#[test]
fn tolerates_rounding_amplified_by_a_loop() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = |weights: &str, step: &str| {
        format!(
            "g (float[N,1] x) => (float[N,1] y) <int64 n = {{6}}, bool c = {{1}}, {weights}> {{
                y = Loop(n, c, x) <body = b (int64 i, bool k, float[N,1] h) => (bool l, float[N,1] o) {{
                    l = Identity(k) {step} o = Sin(m)
                }}>
            }}"
        )
    };
    model(at, "a.onnx", &text("float[1,1] w = {5.3}", "m = MatMul(h, w)"));
    let halves = |second: &str| {
        let weights = format!("float[1,1] u = {{1.7}}, float[1,1] v = {{{second}}}");
        text(&weights, "t = MatMul(h, u) m = MatMul(t, v)")
    };
    model(at, "right.onnx", &halves("3.117647058"));
    model(at, "wrong.onnx", &halves("3.12"));
    let right = run(at, &["verify", "a.onnx", "right.onnx", "--json"]);
    assert_eq!(code(&right), 0, "{}", stderr(&right));
    let output = &json(&right)["outputs"][0];
    let (off, floor) = (output["max_abs"].as_f64().unwrap(), output["floor_abs"].as_f64().unwrap());
    assert!(off > 32.0 * f64::from(f32::EPSILON) && floor > off / 10.0, "{off} {floor}");
    assert_eq!(code(&run(at, &["verify", "a.onnx", "wrong.onnx"])), 1);
}

#[test]
fn checks_tolerances_and_measures_per_output() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = |w: &str| {
        format!(
            "g (float[4,3] x) => (float[4,3] p, float[4,3] q) <float w = {{{w}}}> {{ p = Mul(x, w) q = Neg(x) }}"
        )
    };
    model(at, "a.onnx", &text("1"));
    model(at, "b.onnx", &text("1.001"));
    let verify = |more: &[&str]| {
        let done = run(at, &[&["verify", "a.onnx", "b.onnx"], more].concat());
        (code(&done), stderr(&done))
    };
    assert_eq!(verify(&[]).0, 1);
    assert_eq!(verify(&["--tolerance", "p=10"]).0, 0);
    assert_eq!(verify(&["--tolerance", "q=10"]).0, 1);
    let (code, message) = verify(&["--tolerance", "r=10"]);
    assert!(
        code == 2 && message.contains("there is no output `r`") && message.contains("the outputs are p, q"),
        "{message}"
    );
    assert_eq!(verify(&["--metric", "cosine=0.999", "--metric", "snr=50"]).0, 0);
    let (code, message) = verify(&["--metric", "snr=70"]);
    assert!(code == 1 && message.contains("`p`: snr is") && message.contains("less than 70"), "{message}");
    assert_eq!(verify(&["--metric", "max-rel=0.002"]).0, 0);
    assert_eq!(verify(&["--metric", "rmse=0"]).0, 1);
    let (code, message) = verify(&["--metric", "cosinus=1"]);
    assert!(code == 2 && message.contains("there is no measure `cosinus`"), "{message}");
}

#[test]
fn limits_disagreement_with_confidence() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["digits-cnn.onnx", "digits-fold.onnx", "digits.npz"] {
        fixture(at, name);
    }
    let verify = |other: &str, limit: &str| {
        let args = [
            "verify",
            "digits-cnn.onnx",
            other,
            "--samples",
            "digits.npz",
            "--max-disagreement",
            limit,
            "--json",
        ];
        let done = run(at, &args);
        (code(&done), json(&done)["metrics"][0].clone(), stderr(&done))
    };
    // None of 500: 1 - 0.05^(1/500).
    let (code, metrics, _) = verify("digits-cnn.onnx", "0.006");
    assert!(
        code == 0 && (metrics["disagreement_limit"].as_f64().unwrap() - 0.005_974).abs() < 1e-6,
        "{metrics}"
    );
    // Too few samples for this limit.
    assert_eq!(verify("digits-cnn.onnx", "0.005").0, 1);
    let (code, metrics, message) = verify("digits-fold.onnx", "0.006");
    assert!(code == 1 && message.contains("of 500 samples change class in `logits`"), "{message}");
    assert!(metrics["reference_accuracy"].as_f64() > metrics["candidate_accuracy"].as_f64(), "{metrics}");
}

#[test]
fn carries_state_over_steps() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    // The models differ from the second step on, when the state differs.
    let right = "g (float[2] x, float[2] state) => (float[2] y, float[2] stateN) { y = Add(x, state) stateN = Abs(x) }";
    model(at, "a.onnx", right);
    model(at, "b.onnx", &right.replace("stateN = Abs(x)", "s = Abs(x) stateN = Neg(s)"));
    let tolerated = ["verify", "a.onnx", "b.onnx", "--tolerance", "stateN=1e9"];
    assert_eq!(code(&run(at, &tolerated)), 0);
    let steps = run(at, &[&tolerated[..], &["--steps", "3", "--json"]].concat());
    assert_eq!(code(&steps), 1);
    let report = json(&steps);
    assert!(
        report["notes"].to_string().contains("3 steps, state carried on: `state` from `stateN`"),
        "{report}"
    );
    let named = run(at, &[&tolerated[..], &["--steps", "2", "--state", "state=y"]].concat());
    assert_eq!(code(&named), 0, "{}", stderr(&named));
    let wrong = run(at, &[&tolerated[..], &["--steps", "2", "--state", "state=z"]].concat());
    assert!(code(&wrong) == 2 && stderr(&wrong).contains("there is no output `z`"), "{}", stderr(&wrong));
}

#[test]
fn compares_strings_sequences_and_optional_values() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for name in ["string_concat", "sequence_insert_at_back", "if_opt", "identity_opt", "identity_sequence"] {
        let file = super::root().join("fixtures/nodes").join(name).join("model.onnx");
        let file = file.to_str().unwrap();
        let same = run(at, &["verify", file, file]);
        assert_eq!(code(&same), 0, "{name}: {}", stderr(&same));
    }
    let words = |order: &str| {
        format!("g (string[3] a, string[3] b) => (string[3] y) {{ y = StringConcat({order}) }}")
    };
    for (name, order) in [("a.onnx", "a, b"), ("b.onnx", "b, a")] {
        let graph = pare_graph::text::parse_graph(&words(order), 20).unwrap();
        std::fs::write(at.join(name), pare_graph::onnx::to_bytes(&pare_graph::Model::of(graph)).unwrap())
            .unwrap();
    }
    let swapped = run(at, &["verify", "a.onnx", "b.onnx"]);
    assert!(code(&swapped) == 1 && stderr(&swapped).contains("values differ"), "{}", stderr(&swapped));
}

#[test]
fn proves_each_pass_and_reduces_failures_only() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fixture(at, "digits-fold.onnx");
    let done = run(at, &["optimize", "digits-fold.onnx", "-o", "out.onnx", "--prove", "each", "--json"]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    let each = json(&done)["proof"]["each"].clone();
    let each = each.as_array().unwrap();
    assert!(each.len() >= 2 && each.iter().all(|e| e["outcome"] == "equal"), "{each:?}");
    let done = run(at, &["reduce", "digits-fold.onnx", "-o", "small.onnx"]);
    assert!(code(&done) == 0 && !at.join("small.onnx").exists(), "{}", stderr(&done));
}

/// The path of a file in `fixtures/cases`.
fn case(name: &str) -> String {
    super::root().join("fixtures/cases").join(name).display().to_string()
}

#[test]
fn rejects_labels_beyond_the_classes() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let (model, samples) = (case("words_labels_none.onnx"), case("words_labels_none.npz"));
    for passes in ["prune-channels{max_accuracy_drop=0.01}", "prune-channels{macs=0.5}", "safe"] {
        let args = ["optimize", &model, "-o", "made.onnx", "--passes", passes, "--samples", &samples];
        let refused = run(at, &args);
        assert_eq!(code(&refused), 2, "{passes}");
        let why = "error: label 99 of sample 0 is not one of the 4 classes of `gemm5`, 0 to 3";
        assert!(stderr(&refused).contains(why), "{}", stderr(&refused));
    }
}

#[test]
fn hints_name_the_inputs_of_the_model() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let samples = case("int8_bias_saturates.npz");
    model(at, "m.onnx", "g (float[N,16] pixels) => (float[N,16] y) { y = Relu(pixels) }");
    let refused = run(at, &["optimize", "m.onnx", "-o", "made.onnx", "--samples", &samples]);
    let hint = "hint: `numpy.savez(file, pixels=array, …)` names the arrays";
    assert!(code(&refused) == 2 && stderr(&refused).contains(hint), "{}", stderr(&refused));
}

#[test]
fn groups_are_listed_for_the_model_that_follows() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let model = case("words_labels_none.onnx");
    for args in [["inspect", "--groups", &model], ["inspect", &model, "--groups=Gemm*"]] {
        let listed = run(at, &args);
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(code(&listed) == 0 && text.contains("Gemm_0"), "{text}{}", stderr(&listed));
    }
}

#[test]
fn optimize_measures_the_latency_of_changed_models() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fixture(at, "digits-fold.onnx");
    let latency = |more: &[&str]| {
        let run = run(at, &[&["optimize", "digits-fold.onnx", "-o", "out.onnx", "--json"], more].concat());
        assert_eq!(code(&run), 0, "{}", stderr(&run));
        json(&run)["latency"].clone()
    };
    for (more, batch, threads) in [(&[][..], 1, 1), (&["--batch", "3", "--threads", "2"], 3, 2)] {
        let found = latency(more);
        assert_eq!((&found["batch"], &found["threads"]), (&batch.into(), &threads.into()), "{found}");
        assert!(found["rounds"].as_u64().unwrap() > 0, "{found}");
        for of in ["before", "after", "speed"] {
            let [low, median, high] = ["low", "median", "high"].map(|key| found[of][key].as_f64().unwrap());
            assert!(0.0 < low && low <= median && median <= high, "{found}");
        }
    }
    for more in [&["--no-time"][..], &["--no-prove"], &["--passes", "merge-transposes"]] {
        assert!(latency(more).is_null(), "{more:?}");
    }
}
