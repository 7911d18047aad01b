//! Fuzzing of everything that reads foreign data: no panic, no unbounded time or memory.
//!
//! A quick run takes a second per target. `PARE_FUZZ_SECONDS=10` sets the time, `PARE_FUZZ_RUNS=N` a number
//! of runs instead, `PARE_FUZZ=pipeline` selects one target, `PARE_SEED=17` sets the first seed, and
//! `PARE_FUZZ_KEEP=folder` keeps the models that passes changed. Under `ulimit -v 4000000` an allocation that
//! trusts a size in the file ends the process. Inputs that failed before are stored in `fixtures/fuzz` as
//! `TARGET-….bin` and are run first.
//!
//! Lossy passes run on random models in the style of exporters, with samples: they change a model into a valid
//! one, or refuse it.

use crate::support::{number, root, tools};
use fastrand::Rng;
use pare_graph::{Model, onnx, ops::Bindings, text};
use pare_passes::{Effect, PassError, Pipeline, RunError, RunOptions, Tools, registry, run};
use pare_runtime::{Port, PortDim, SampleLimits, SampleSet, SharedSamples, input_specs};
use pare_tests::{
    fuzz::{mutate, mutate_message},
    random,
};
use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

struct Target {
    name: &'static str,
    seeds: fn() -> Vec<Vec<u8>>,
    change: Change,
    feed: fn(&[u8]),
}

/// The kind of change applied to seeds.
enum Change {
    /// Changes of bytes, with these words inserted.
    Bytes(&'static [&'static str]),
    /// Changes of protobuf fields; the result is still a message.
    Fields,
}

const TARGETS: &[Target] = &[
    Target {
        name: "protobuf",
        seeds: models,
        change: Change::Bytes(&[]),
        feed: |bytes| drop(onnx::read_bytes(bytes.to_vec(), None)),
    },
    Target { name: "model", seeds: models, change: Change::Bytes(&[]), feed: through_safe },
    Target { name: "graph", seeds: graphs, change: Change::Fields, feed: through_a_pass },
    Target {
        name: "text",
        seeds: texts,
        change: Change::Bytes(&[
            "<",
            ">",
            "(",
            ")",
            "{",
            "}",
            "float",
            "[",
            "If",
            "=",
            "\"",
            "9223372036854775808",
            "e99",
            "-",
            "@",
        ]),
        feed: |bytes| drop(text::parse_graph(&String::from_utf8_lossy(bytes), 18)),
    },
    Target {
        name: "pipeline",
        seeds: pipelines,
        change: Change::Bytes(&[
            "(",
            ")*",
            "{",
            "}",
            "=",
            ",",
            "safe",
            "fold-bn",
            "prune-channels",
            "ratio",
            "[",
            "1e999",
            "\"",
        ]),
        feed: |bytes| drop(String::from_utf8_lossy(bytes).parse::<Pipeline>()),
    },
    Target {
        name: "toml",
        seeds: || {
            vec![
                b"[[step]]\npass = \"safe\"\n[[step]]\nrepeat = [{pass = \"fold-bn\", max_scale = 2.0}]\n"
                    .to_vec(),
            ]
        },
        change: Change::Bytes(&["[[step]]\n", "repeat = ", "[", "{", "pass = ", "\"", "="]),
        feed: |bytes| drop(Pipeline::from_toml(&String::from_utf8_lossy(bytes))),
    },
    Target {
        name: "tensor",
        seeds: tensors,
        change: Change::Bytes(&[]),
        feed: |bytes| drop(onnx::tensor_from_bytes(bytes)),
    },
    Target {
        name: "npz",
        seeds: arrays,
        change: Change::Bytes(&["PK", "NUMPY", "descr", "'<f4'", "(", ",", "True"]),
        feed: samples,
    },
];

fn models() -> Vec<Vec<u8>> {
    let folders = fs::read_dir(root().join("fixtures/nodes")).unwrap();
    let mut paths: Vec<_> =
        folders.map(|e| e.unwrap().path().join("model.onnx")).filter(|p| p.is_file()).collect();
    paths.sort();
    paths.push(root().join("fixtures/digits-fold.onnx"));
    paths.iter().map(|p| fs::read(p).unwrap()).collect()
}

fn texts() -> Vec<Vec<u8>> {
    let all = models();
    let read = all.iter().filter_map(|bytes| onnx::read_bytes(bytes.clone(), None).ok());
    let print = |model: Model| {
        text::print_graph_with(&model.graph, text::PrintOptions { max_elements: Some(20) }).into_bytes()
    };
    read.map(print).collect()
}

fn pipelines() -> Vec<Vec<u8>> {
    [
        "safe",
        "(fold-bn,drop-noops)*,safe",
        "safe,prune-channels{ratio=0.3, macs=0.5}",
        "fold-bn{max_scale=1e6}",
    ]
    .map(|t| t.as_bytes().to_vec())
    .to_vec()
}

fn tensors() -> Vec<Vec<u8>> {
    let folder = root().join("fixtures/nodes");
    let mut all = vec![];
    for entry in fs::read_dir(folder).unwrap() {
        let set = entry.unwrap().path().join("test_data_set_0");
        all.extend(fs::read_dir(set).into_iter().flatten().map(|e| fs::read(e.unwrap().path()).unwrap()));
    }
    all.sort();
    all
}

fn arrays() -> Vec<Vec<u8>> {
    let npz = fs::read(root().join("fixtures/digits.npz")).unwrap();
    // A single array: the header and some rows.
    let header =
        b"\x93NUMPY\x01\x00\x4c\x00{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 8, 8), }          \n";
    vec![npz, [&header[..], &[0; 512]].concat()]
}

/// Models and random graphs: all kinds of operators, subgraphs and functions.
fn graphs() -> Vec<Vec<u8>> {
    let random = (0..200).filter_map(|seed| {
        let (source, opset) = random::graph(seed);
        onnx::to_bytes(&Model::of(text::parse_graph(&source, opset).ok()?)).ok()
    });
    models().into_iter().chain(random).collect()
}

/// Everything that happens to a model before an engine loads it.
fn through_safe(bytes: &[u8]) {
    if let Some(e @ RunError::Broken { .. }) = through(bytes, "safe") {
        panic!("{e}");
    }
}

fn through(bytes: &[u8], pipeline: &str) -> Option<RunError> {
    let mut model = onnx::read_bytes(bytes.to_vec(), None).ok()?;
    let ran = run(&pipeline.parse().unwrap(), &mut model, RunOptions::default(), &mut ());
    if let Err(e @ RunError::Panicked { .. }) = ran {
        panic!("{e}");
    }
    // Cost, text and input specifications, which any model is asked for.
    let _ = (model.cost(&Bindings::default()), text::print_graph(&model.graph), input_specs(&model));
    if let (Ok(report), Some(folder)) = (&ran, std::env::var_os("PARE_FUZZ_KEEP"))
        && report.patches() > 0
    {
        fs::write(PathBuf::from(folder).join(format!("{}.onnx", sum(bytes))), bytes).unwrap();
    }
    ran.err()
}

/// A hash that selects the pass.
fn sum(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_mul(31).wrapping_add(byte.into()))
}

/// Runs `safe` or another pass that needs no samples. A contradiction in a mutated model may show only after
/// a pass has removed what hid it, so here a pass may return an invalid model.
fn through_a_pass(bytes: &[u8]) {
    const LOSSY: &[&str] = &[
        "prune-channels{ratio=0.5,criterion=l2,repair=none}",
        "prune-channels{ratio=0.3,criterion=random,repair=none,streams=true}",
        "prune-hidden{ratio=0.5,criterion=l2,repair=none}",
        "prune-heads{ratio=0.5,criterion=l2,repair=none}",
        "sparsify{ratio=0.5,criterion=magnitude}",
        "quantize{activations=false}",
        "merge-tokens{r=2}",
    ];
    let exact =
        registry::PASSES.iter().filter(|p| p.effect < Effect::Lossy && p.has_defaults()).map(|p| p.name);
    const INTERFACE: &[&str] = &[
        "free-dims{batch=Q}",
        "free-dims{*.1=Q}",
        "set-dims{*.0=2}",
        "add-outputs{only=*}",
        "extract{outputs=*}",
    ];
    let requested = LOSSY.iter().chain(INTERFACE).copied();
    let pipelines: Vec<&str> = exact.chain(requested).collect();
    let number = sum(bytes);
    let pipeline = if number.is_multiple_of(2) { "safe" } else { pipelines[number / 2 % pipelines.len()] };
    let _ = through(bytes, pipeline);
}

fn samples(bytes: &[u8]) {
    let file = tempfile::NamedTempFile::new_in(memory()).unwrap();
    fs::write(file.path(), bytes).unwrap();
    let dims = [PortDim::Unknown, PortDim::Fixed(1), PortDim::Fixed(8), PortDim::Fixed(8)];
    let ports = [Port::tensor("image", pare_graph::DataType::Float, &dims)];
    let limits = SampleLimits { total: 64 << 20, memory: 16 << 20 };
    if let Ok(mut samples) = SampleSet::open(file.path(), &ports, limits) {
        let _ = samples.batch(0..4);
    }
}

/// A folder in memory, if there is one.
fn memory() -> PathBuf {
    let shm = PathBuf::from("/dev/shm");
    if shm.is_dir() { shm } else { std::env::temp_dir() }
}

/// The lossy passes, with options under which they have something to do.
const LOSSY: &[&str] = &[
    "prune-channels{macs=0.7}",
    "prune-channels{ratio=0.4,streams=true,criterion=l2,repair=merge}",
    "prune-channels{max_drift=0.5,scope=uniform,repair=moments}",
    "prune-channels{params=0.6,criterion=skeleton,repair=mean}",
    "prune-hidden{ratio=0.5}",
    "prune-heads{ratio=0.5}",
    "quantize",
    "quantize{for=size}",
    "quantize{method=weights}",
    "quantize{method=dynamic,for=size}",
    "quantize{for=size,attention=true,max_drift=0.1}",
    "quantize{for=size,ranges=percentile,correct_bias=false}",
    "quantize-weights{bits=4,block=16}",
    "quantize-weights{bits=8,symmetric=true,form=standard,opset=raise}",
    "convert-precision{to=fp16}",
    "convert-precision{to=bf16,keep_io=false}",
    "sparsify{ratio=0.5}",
    "sparsify{ratio=0.5,criterion=magnitude,cascade=true}",
    "drop-blocks{count=1}",
    "remove-activations{count=1}",
    "crop-kernels",
    "merge-tokens{r=1}",
    "distill{steps=2,rate=0.001,batch=4}",
    "learn-slopes{count=1,steps=4,batch=4}",
    "add-early-exit{agreement=0.5,allow_interface_change=true}",
];

/// Runs a lossy pass on the exported model of a seed, which may refuse it. Half of the models are optimized
/// before. Returns whether the pass changed the model.
fn through_a_lossy_pass(seed: u64) -> Result<bool, String> {
    let pass = LOSSY[seed as usize % LOSSY.len()];
    let source = random::exported_model(seed / LOSSY.len() as u64);
    let original = text::parse_model(&source).map_err(|e| format!("{e}\n{source}"))?;
    let mut sized = original.clone();
    sized.infer().map_err(|e| format!("{e}\n{source}"))?;
    let samples = SharedSamples::from(SampleSet::generated(input_specs(&sized), seed, 16));
    let tools = Tools { samples: Some(&samples), seed, ..tools() };
    let pipeline = if seed.is_multiple_of(2) { format!("safe,{pass}") } else { pass.to_owned() };
    let mut changed = original.clone();
    match run(&pipeline.parse().unwrap(), &mut changed, RunOptions::new(tools), &mut ()) {
        Ok(report) => {
            let steps = report.steps.iter();
            let lossy = steps.filter(|s| s.effect == Some(Effect::Lossy)).map(|s| s.patches).sum::<u64>();
            let mut inferred = changed.clone();
            let valid = changed.check().map_err(|e| e.to_string());
            let valid = valid.and_then(|()| inferred.infer().map_err(|e| e.to_string()));
            valid.map(|()| lossy > 0).map_err(|e| format!("{pipeline}: {e}\n{source}"))
        }
        Err(RunError::Pass { error: PassError::Refused { .. } | PassError::Evaluate(_), .. }) => Ok(false),
        Err(e) => Err(format!("{pipeline}: {e}\n{source}")),
    }
}

/// Without a time or a number, every pass runs on a few models.
#[test]
#[allow(clippy::print_stderr, reason = "how many runs there were")]
fn lossy_passes_change_or_refuse_exported_models() {
    let lossy = registry::PASSES.iter().filter(|p| p.effect == Effect::Lossy).map(|p| p.name);
    let is_run = |name: &str| LOSSY.iter().any(|p| p.split('{').next() == Some(name));
    // `apply-mask` takes a file of a mask.
    assert_eq!(lossy.filter(|name| !is_run(name)).collect::<Vec<_>>(), ["apply-mask"]);
    let time = Duration::from_secs(number("PARE_FUZZ_SECONDS", 0));
    let runs = number("PARE_FUZZ_RUNS", if time.is_zero() { 4 * LOSSY.len() as u64 } else { u64::MAX });
    let time = if time.is_zero() { Duration::MAX } else { time };
    let (start, first, next) = (Instant::now(), number("PARE_SEED", 0), AtomicU64::new(0));
    let (changed, failures) = (AtomicU64::new(0), Mutex::new(vec![]));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while start.elapsed() < time {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= runs {
                        break;
                    }
                    match through_a_lossy_pass(first + seed) {
                        Ok(did) => drop(changed.fetch_add(u64::from(did), Ordering::Relaxed)),
                        Err(why) => {
                            // At once: the engine may end the process before the last run.
                            eprintln!("seed {}: {}", first + seed, why.lines().next().unwrap_or_default());
                            failures.lock().unwrap().push((first + seed, why));
                        }
                    }
                }
            });
        }
    });
    let (runs, changed) = (next.into_inner().min(runs), changed.into_inner());
    eprintln!("lossy: {runs} runs in {:.1} s, {changed} changed the model", start.elapsed().as_secs_f64());
    let failures = failures.into_inner().unwrap();
    let seeds: Vec<_> = failures.iter().map(|(seed, _)| *seed).collect();
    let shortest = failures.iter().map(|(_, why)| why).min_by_key(|why| why.len());
    assert!(failures.is_empty(), "seeds {seeds:?}\n{}", shortest.unwrap());
    assert!(changed > 0, "no pass changed a model");
}

#[test]
#[allow(clippy::print_stderr, reason = "how many runs there were")]
fn malformed_input_is_rejected_with_one_sentence() {
    let only = std::env::var("PARE_FUZZ").ok();
    let runs = number("PARE_FUZZ_RUNS", u64::MAX);
    let time =
        if runs == u64::MAX { Duration::from_secs(number("PARE_FUZZ_SECONDS", 1)) } else { Duration::MAX };
    for target in TARGETS.iter().filter(|t| only.as_deref().is_none_or(|only| only == t.name)) {
        let feed = |bytes: &[u8], what: &str| {
            let start = Instant::now();
            let fed = catch_unwind(AssertUnwindSafe(|| (target.feed)(bytes)));
            let slow = start.elapsed() > Duration::from_secs(20);
            if fed.is_err() || slow {
                let path = std::env::temp_dir().join(format!("{}-{what}.bin", target.name));
                let _ = fs::write(&path, bytes);
                panic!(
                    "{}: {what} {}, see {}",
                    target.name,
                    if slow { "takes long" } else { "panics" },
                    path.display()
                );
            }
        };
        let known = fs::read_dir(root().join("fixtures/fuzz")).into_iter().flatten().flatten();
        for entry in known.filter(|e| e.file_name().to_string_lossy().starts_with(target.name)) {
            feed(&fs::read(entry.path()).unwrap(), &entry.file_name().to_string_lossy());
        }
        let seeds = (target.seeds)();
        let (start, first) = (Instant::now(), number("PARE_SEED", 0));
        let mut done = 0;
        while done < runs && start.elapsed() < time {
            let rng = &mut Rng::with_seed(first + done);
            let bytes = match target.change {
                Change::Bytes(words) => mutate(&seeds, words, rng),
                Change::Fields => mutate_message(&seeds, rng),
            };
            feed(&bytes, &format!("seed-{}", first + done));
            done += 1;
        }
        eprintln!("{}: {done} runs in {:.1} s", target.name, start.elapsed().as_secs_f64());
    }
}
