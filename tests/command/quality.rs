//! Tests of the measures of outputs, of masked padding, and of sizes in samples.

use super::{code, fixture, json, model, run, stderr};
use serde_json::Value;
use std::{fs, path::Path};

/// A model of sentences of 6 tokens, whose padding is other tokens in the second file of samples.
const MODEL: &str = "cases/quality_masked_embedding.onnx";
const SAMPLES: [&str; 2] =
    ["cases/quality_masked_embedding.npz", "cases/quality_masked_embedding_padded.npz"];

fn sentences(folder: &Path) {
    [MODEL, SAMPLES[0], SAMPLES[1]].iter().for_each(|name| drop(fixture(folder, name)));
}

/// The metrics of an output in a report.
fn metrics<'r>(report: &'r Value, output: &str) -> &'r Value {
    let all = report["metrics"].as_array().unwrap();
    all.iter().find(|m| m["output"] == output).unwrap_or(&Value::Null)
}

#[test]
fn padding_changes_neither_result_nor_measurement() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sentences(at);
    for passes in [
        "safe,prune-hidden{ratio=0.5,multiple=1}",
        "safe,sparsify{ratio=0.5,cascade=false}",
        "safe,quantize{for=size}",
    ] {
        let made = SAMPLES.map(|samples| {
            let args =
                ["optimize", MODEL, "-o", "made.onnx", "--passes", passes, "--samples", samples, "--json"];
            let made = run(at, &args);
            assert_eq!(code(&made), 0, "{}", stderr(&made));
            (fs::read(at.join("made.onnx")).unwrap(), json(&made)["proof"].clone())
        });
        let [(bytes, proof), (other_bytes, other_proof)] = made;
        assert!(bytes == other_bytes, "{passes}");
        assert!(proof["metrics"] == other_proof["metrics"] && proof["outputs"] == other_proof["outputs"]);
    }
}

#[test]
fn embeddings_are_compared_by_cosine() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sentences(at);
    let prune = |more: &[&str]| {
        let args = ["optimize", MODEL, "-o", "made.onnx", "--samples", SAMPLES[0], "--json", "--passes"];
        run(at, &[&args[..], &["safe,prune-hidden{ratio=0.5}"], more].concat())
    };
    let report = json(&prune(&[]));
    let sentence = metrics(&report["proof"], "sentence");
    assert_eq!(
        (&sentence["measure"], &sentence["why"]),
        (&"cosine".into(), &"its rows have length 1".into())
    );
    assert!(sentence["cosine"].as_f64().unwrap() > 0.9 && sentence["same_nearest"].as_f64().unwrap() > 0.5);
    assert_eq!(metrics(&report["proof"], "tokens")["measure"], "error");
    // The limit of agreement is that of the order of neighbours.
    let refused = prune(&["--min-agreement", "0.999"]);
    let why = "failed: the cosines of pairs in `sentence` have a rank correlation of 0.9";
    assert!(code(&refused) == 1 && stderr(&refused).contains(why), "{}", stderr(&refused));
    let kept = prune(&["--min-agreement", "0.9"]);
    assert_eq!(code(&kept), 0, "{}", stderr(&kept));
    // Without the embedding there is no agreement.
    let refused = prune(&["--min-agreement", "0.9", "--quality", "sentence=ignore"]);
    let why = "no output holds class scores, so agreement cannot be measured";
    assert!(code(&refused) == 1 && stderr(&refused).contains(why), "{}", stderr(&refused));
    let classes = json(&prune(&["--quality", "sentence=classes"]));
    let sentence = metrics(&classes["proof"], "sentence");
    assert_eq!((&sentence["measure"], &sentence["why"]), (&"classes".into(), &"it was set".into()));
}

#[test]
fn costs_are_those_of_the_sizes_in_samples() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sentences(at);
    let inspected =
        |more: &[&str]| json(&run(at, &[&["inspect", MODEL, "--json"], more].concat()))["macs"].clone();
    // Four products by 8·8 and two by 8·16 for each of 6 tokens, and two with all tokens.
    let macs = |tokens: i64| Value::from(tokens * (4 * 64 + 2 * 128) + 2 * tokens * tokens * 8);
    assert_eq!((inspected(&[]), inspected(&["--samples", SAMPLES[0]])), (macs(1), macs(6)));
    assert_eq!(inspected(&["--samples", SAMPLES[0], "--dim", "sequence=3"]), macs(3));
    let made = run(at, &["optimize", MODEL, "-o", "made.onnx", "--samples", SAMPLES[0], "--json"]);
    assert_eq!(json(&made)["before"]["macs"], macs(6));
    // A target is a share of the cost at these sizes, of which attention has its share.
    let pruned = run(
        at,
        &[
            "optimize",
            MODEL,
            "-o",
            "made.onnx",
            "--samples",
            SAMPLES[0],
            "--json",
            "--passes",
            "prune-hidden{macs=0.7}",
        ],
    );
    let report = json(&pruned);
    let share = report["after"]["macs"].as_f64().unwrap() / report["before"]["macs"].as_f64().unwrap();
    assert!((0.6..=0.7).contains(&share), "{share}");
}

#[test]
fn detectors_are_compared_by_error() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let detector = |factor: f32| {
        format!(
            "g (float[N,5,4] x) => (float[N,5,3] scores, float[N,5,4] boxes, int64[N,5] kind)
             <float[4,3] w = {{1,2,3,-1,2,1,0,1,2,{factor},1,1}}, float s = {{{factor}}}> {{
                z = MatMul(x, w) scores = Softmax<axis = -1>(z) boxes = Mul(x, s)
                kind = ArgMax<axis = -1, keepdims = 0>(z) }}"
        )
    };
    model(at, "a.onnx", &detector(1.0));
    model(at, "b.onnx", &detector(1.25));
    let verified = run(at, &["verify", "a.onnx", "b.onnx", "--metric", "kl=1", "--json"]);
    let report = json(&verified);
    let measure = |output: &str| metrics(&report, output)["measure"].clone();
    assert_eq!(
        (measure("scores"), measure("boxes"), measure("kind")),
        ("error".into(), "error".into(), "exact".into())
    );
    // Agreement is defined for the integers only.
    let agreement = metrics(&report, "kind")["agreement"].as_f64().unwrap();
    assert!(agreement > 0.0 && agreement < 1.0, "{agreement}");
    assert!(report["failures"][0] == "kl is not defined for any output", "{report}");
    assert!(["scores", "boxes"].iter().all(|output| metrics(&report, output)["drift"].is_number()));
}

#[test]
fn measures_and_masks_that_do_not_fit_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sentences(at);
    for (args, why) in [
        (["--quality", "word=ignore"], "there is no output `word`"),
        (["--quality", "tokens=kl"], "there is no measure `kl`"),
        (["--mask", "tokens"], "there is no input `tokens`"),
    ] {
        let refused = run(at, &[&["verify", MODEL, MODEL], &args[..]].concat());
        assert!(code(&refused) == 2 && stderr(&refused).contains(why), "{}", stderr(&refused));
    }
    model(at, "m.onnx", "g (float[N,4,4] x) => (float[N,4,4] y) { y = Relu(x) }");
    let refused = run(at, &["verify", "m.onnx", "m.onnx", "--mask", "x"]);
    let why = "`x` masks no tokens: it takes float[N,4,4], not [samples, tokens]";
    assert!(code(&refused) == 2 && stderr(&refused).contains(why), "{}", stderr(&refused));
}

#[test]
fn projects_set_measures_and_masks() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    sentences(at);
    let build = |quality: &str| {
        let project = format!(
            "[[model]]\ninput = \"{MODEL}\"\noutput = \"made.onnx\"\nsamples = \"{}\"\nmask = \"attention_mask\"\n
             pipeline = \"safe,prune-hidden{{ratio=0.5}}\"\nlimits = {{ min_agreement = 0.9 }}\n{quality}",
            SAMPLES[0]
        );
        fs::write(at.join("pare.toml"), project).unwrap();
        run(at, &["optimize", "--config", "pare.toml"])
    };
    assert_eq!(code(&build("quality = { tokens = \"ignore\" }")), 0);
    let refused = build("quality = { sentence = \"error\", tokens = \"ignore\" }");
    assert!(
        code(&refused) == 1 && stderr(&refused).contains("no output holds class scores"),
        "{}",
        stderr(&refused)
    );
    let unknown = build("quality = { sentence = \"kl\" }");
    assert!(
        code(&unknown) == 2 && stderr(&unknown).contains("there is no measure `kl`"),
        "{}",
        stderr(&unknown)
    );
}
