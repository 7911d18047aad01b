//! Numbers of kept channels under engines whose kernels compute blocks. The engines here report a time that
//! is computed from the model, so that no test depends on the machine.

use super::{
    super::{Multiple, PruneChannels},
    Clock, mac_clock, macs, run_on_generated, untimed,
};
use crate::{
    analysis::{
        groups::{Group, Groups, cost::CostModel},
        prepare::prepare,
    },
    framework::{
        Pass, PassError, StepReport, Tools,
        testing::{self, model, numbers},
    },
    transforms::channels::PruneHidden,
};
use pare_graph::{Evaluate, Model, NodeId, ops::Bindings};
use std::{collections::HashSet, sync::Mutex};

const BLOCK: usize = 16;

/// The seconds of an engine that computes channels in blocks of 16, and depthwise convolutions of a partial block
/// `penalty` times as slowly.
fn block_seconds(model: &Model, penalty: f64) -> f64 {
    let graph = &model.graph;
    let padded = |n: usize| (n.div_ceil(BLOCK) * BLOCK) as f64 / n as f64;
    let of = |id: NodeId, macs: u64| {
        let at = graph.at(id);
        let weight = at.input(1).ok().and_then(|w| w.shape().map(<[_]>::to_vec));
        let sizes: Vec<_> = weight.iter().flatten().filter_map(pare_graph::Dim::size).collect();
        let [outputs, inputs, ..] = sizes[..] else { return macs as f64 };
        let depthwise = at.int("group", 1) > 1;
        let slow = if depthwise && outputs % BLOCK > 0 { penalty } else { 1.0 };
        macs as f64 * padded(outputs) * if depthwise { slow } else { padded(inputs) }
    };
    let nodes = graph.cost(&Bindings::default()).nodes;
    1e-9 * nodes.into_iter().map(|n| of(n.id, n.macs.unwrap_or(0))).sum::<f64>() + 1e-9
}

fn block_clock(penalty: f64) -> Clock<impl Fn(&Model) -> f64 + Send + Sync> {
    Clock(move |model: &Model| block_seconds(model, penalty))
}

/// A convolution to `wide` channels, with `depthwise` a depthwise one on these, a convolution to `narrow`
/// channels, and one to 8.
fn network(wide: usize, narrow: usize, depthwise: bool) -> Model {
    let middle = if depthwise {
        format!("d = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1], group = {wide}>(r, k) s = Relu(d)")
    } else {
        "s = Identity(r)".into()
    };
    let mut network = model(&format!(
        "g (float[N,4,6,6] x) => (float[N,8,6,6] y) <float[{wide},4,1,1] a = {{{}}}, float[{wide},1,3,3] k = {{{}}},
            float[{narrow},{wide},1,1] b = {{{}}}, float[8,{narrow},1,1] c = {{{}}}> {{
            h = Conv(x, a) r = Relu(h) {middle} p = Conv(s, b) q = Relu(p) y = Conv(q, c) }}",
        numbers(4 * wide, 1),
        numbers(9 * wide, 2),
        numbers(wide * narrow, 3),
        numbers(8 * narrow, 4),
    ));
    network.infer().unwrap();
    network
}

fn run(pass: &dyn Pass, original: &Model, engine: &dyn Evaluate) -> Result<(Model, StepReport), PassError> {
    run_on_generated(pass, original, "", Tools { engine: Some(engine), ..Tools::default() })
}

/// The widths of the groups that can lose units, in the order of the graph.
fn widths(model: &Model) -> Vec<usize> {
    Groups::of(&model.graph).prunable().map(|(_, group)| group.width).collect()
}

fn keeping(macs: f64) -> PruneChannels {
    PruneChannels { macs: Some(macs), ..PruneChannels::default() }
}

#[test]
fn channels_are_multiples_of_the_measured_block() {
    let clock = block_clock(8.0);
    for (depthwise, kind) in [(false, "step of dense convolutions"), (true, "step of depthwise convolutions")]
    {
        let original = network(96, 64, depthwise);
        let (changed, report) = run(&keeping(0.6), &original, &clock).unwrap();
        assert_eq!(report.figure(kind), Some(16.0), "{:?}", report.figures);
        let widths = widths(&changed);
        assert!(widths.iter().all(|w| w % BLOCK == 0) && widths.iter().sum::<usize>() < 160, "{widths:?}");
        assert!(macs(&changed) <= 0.6 * macs(&original));
        assert!(block_seconds(&changed, 8.0) < 0.65 * block_seconds(&original, 8.0));
    }
}

/// Every number is as good as any other where the time is that of the multiply-accumulates.
#[test]
fn engines_without_blocks_permit_more_numbers() {
    let original = network(96, 64, false);
    let (changed, report) = run(&keeping(0.6), &original, &mac_clock()).unwrap();
    assert!(report.figure("step of dense convolutions").unwrap() <= 4.0, "{:?}", report.figures);
    assert!(macs(&changed) > 0.57 * macs(&original));
}

/// With one block of 16 channels there is nothing to gain, unless the engine is faster on part of a block.
#[test]
fn small_groups_lose_channels_where_that_is_faster() {
    let original = network(16, 96, false);
    let pass = PruneChannels { only: vec!["h".into()], ..keeping(0.6) };
    let smaller_step = |engine: &dyn Evaluate| {
        let (changed, report) = run(&pass, &original, engine).unwrap();
        assert!(widths(&changed)[0] < 12 && macs(&changed) <= 0.6 * macs(&original));
        report.figure("share of the step").is_some()
    };
    assert!(smaller_step(&block_clock(1.0)));
    assert!(!smaller_step(&mac_clock()));
}

#[test]
fn targets_between_the_steps_are_met_with_smaller_ones() {
    let original = network(24, 24, false);
    let clock = block_clock(1.0);
    let (changed, report) = run(&keeping(0.3), &original, &clock).unwrap();
    assert!(macs(&changed) <= 0.3 * macs(&original));
    assert!(report.figure("share of the step").unwrap() <= 0.5, "{:?}", report.figures);
}

/// A group loses or keeps one step: without samples too, the target is missed by less than that.
#[test]
fn targets_are_missed_by_less_than_one_step() {
    for (fixture, streams) in
        [("digits-cnn", false), ("digits-cnn", true), ("digits-init", true), ("cifar-mbv2", false)]
    {
        let mut original = testing::read_fixture(&format!("{fixture}.onnx"));
        prepare(&mut original, &mut testing::context(Tools::default())).unwrap();
        original.infer().unwrap();
        let groups = Groups::of(&original.graph);
        let cost = CostModel::macs(&original.graph, &groups, &Bindings::default());
        let step_of = |(g, group): (usize, &Group)| {
            let part = cost.of(g);
            part.at(&|_| 0) - part.at(&|at| if at == g { BLOCK.min(group.width - 1) } else { 0 })
        };
        let largest = groups.prunable().map(step_of).fold(0.0, f64::max);
        for share in [0.8, 0.667] {
            let mut changed = original.clone();
            let pass = PruneChannels { streams, ..keeping(share) };
            pass.run(&mut changed, &mut testing::context(Tools::default())).unwrap();
            changed.infer().unwrap();
            let (kept, wanted) = (macs(&changed), share * macs(&original));
            assert!(
                kept <= wanted && kept > wanted - largest,
                "{fixture} {streams}: {kept} {wanted} {largest}"
            );
        }
    }
}

/// Neither smaller steps nor groups of equal shape need further measurements.
#[test]
fn groups_of_equal_shape_are_timed_once() {
    let (mut weights, mut nodes) = (vec![], vec!["r0 = Identity(x)".to_owned()]);
    for i in 0..6 {
        weights.push(format!("float[24,24,1,1] w{i} = {{{}}}", numbers(24 * 24, i)));
        nodes.push(format!("h{i} = Conv(r{i}, w{i}) r{} = Relu(h{i})", i + 1));
    }
    let mut original = model(&format!(
        "g (float[N,24,6,6] x) => (float[N,24,6,6] r6) <{}> {{ {} }}",
        weights.join(", "),
        nodes.join(" ")
    ));
    original.infer().unwrap();
    let timed = Mutex::new(vec![]);
    let shapes = |model: &Model| {
        let shape =
            |id: &NodeId| format!("{:?}", model.graph.at(*id).input(1).map(|w| w.shape().map(<[_]>::to_vec)));
        model.graph.nodes().iter().map(shape).collect::<Vec<_>>()
    };
    let clock = Clock(|model: &Model| {
        timed.lock().unwrap().push(shapes(model));
        block_seconds(model, 1.0)
    });
    let with = Tools { engine: Some(&clock), ..Tools::default() };
    let (mut changed, mut cx) = (original.clone(), testing::context(with));
    keeping(0.2).run(&mut changed, &mut cx).unwrap();
    assert!(cx.report.figure("share of the step").unwrap() <= 0.5);
    assert!(macs(&changed) <= 0.2 * macs(&original));
    let timed = timed.into_inner().unwrap();
    assert_eq!(timed.len(), timed.iter().collect::<HashSet<_>>().len(), "{timed:?}");
}

#[test]
fn results_slower_than_the_original_are_refused() {
    let original = network(16, 16, true);
    let clock = block_clock(8.0);
    let Err(PassError::Refused { why, hint: Some(hint) }) = run(&keeping(0.5), &original, &clock) else {
        panic!("it is not refused")
    };
    assert!(why.starts_with("the result takes ") && why.ends_with(" times as long as the original"), "{why}");
    assert!(hint.to_string().contains("`multiple=1`"), "{hint}");
    let (changed, _) = run(&PruneChannels { macs: Some(0.5), ..untimed() }, &original, &clock).unwrap();
    assert!(macs(&changed) <= 0.5 * macs(&original));
}

/// A width that is timed wrongly leads to a slower result; more measurements show it.
#[test]
fn slower_results_are_searched_for_again_with_more_measurements() {
    let original = network(16, 96, false);
    let loads = Mutex::new(0);
    let clock = Clock(|model: &Model| {
        let is_slow = widths(model).contains(&12);
        let penalty = if is_slow {
            let mut loads = loads.lock().unwrap();
            *loads += 1;
            if *loads == 1 { 0.1 } else { 8.0 }
        } else {
            1.0
        };
        penalty * 1e-9 * macs(model)
    });
    let pass = PruneChannels { only: vec!["h".into()], ..keeping(0.9) };
    let (changed, _) = run(&pass, &original, &clock).unwrap();
    assert_eq!(widths(&changed)[0], 8);
    // Once to be chosen, twice to be refused, and four times to be found slow; others ran samples.
    assert!(*loads.lock().unwrap() >= 7);
}

#[test]
fn without_an_engine_the_step_is_that_of_common_kernels() {
    let kept = |wide, narrow, depthwise, ratio| {
        let mut changed = network(wide, narrow, depthwise);
        changed.infer().unwrap();
        let pass = PruneChannels { ratio: Some(ratio), ..PruneChannels::default() };
        pass.run(&mut changed, &mut testing::context(Tools::default())).unwrap();
        changed.infer().unwrap();
        widths(&changed)
    };
    assert_eq!(kept(96, 64, false, 0.4), [64, 48]);
    assert_eq!(kept(96, 64, true, 0.4), [64, 48]);
    assert_eq!(kept(96, 64, true, 0.45), [56, 48]);
    // Less than two steps: halves of the step.
    assert_eq!(kept(24, 12, false, 0.5), [16, 8]);
    let mut hidden = model(&format!(
        "g (float[N,6] x) => (float[N,4] y) <float[6,40] a = {{{}}}, float[40,4] b = {{{}}}> {{
            h = MatMul(x, a) r = Relu(h) y = MatMul(r, b) }}",
        numbers(240, 5),
        numbers(160, 6)
    ));
    hidden.infer().unwrap();
    let pass = PruneHidden { ratio: Some(0.3), ..PruneHidden::default() };
    pass.run(&mut hidden, &mut testing::context(Tools::default())).unwrap();
    assert_eq!(macs(&hidden), 320.0);
}

#[test]
fn the_option_is_a_number_or_auto() {
    let parse =
        |text: &str| text.parse::<crate::Pipeline>().map(|p| p.to_string()).map_err(|e| e.to_string());
    assert_eq!(
        parse("prune-channels{macs=0.5,multiple=auto}").unwrap(),
        "prune-channels{macs=0.5,multiple=auto}"
    );
    assert!(parse("prune-channels{macs=0.5,multiple=8}").is_ok());
    for wrong in ["0", "-3", "1.5", "many"] {
        let why = parse(&format!("prune-channels{{macs=0.5,multiple={wrong}}}")).unwrap_err();
        assert!(why.contains("`multiple` is `auto` or a number of at least 1"), "{why}");
    }
    assert_eq!(PruneChannels::default().multiple, Multiple::Auto);
}
