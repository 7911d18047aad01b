//! Pruning of a quantized network: scales and zero points are cut with the weights, and only biases are
//! repaired.

use super::{
    super::{PruneChannels, PruneRepair, PruneScope},
    untimed,
};
use crate::{
    analysis::evaluation::HeldOut,
    framework::{
        Effect, Pass, Tools,
        testing::{check, model, same, tools},
    },
    transforms::channels::{PruneHeads, PruneHidden, importance::Importance},
};
use pare_graph::{Model, text};
use pare_runtime::{SampleSet, SharedSamples, input_specs};

/// Two convolutions with four channels between them. Channel 0 is zero because its weights equal the zero
/// point, channel 2 because its weights are 0; both biases are zero. Channels 1 and 3 have small integers,
/// but large scales.
fn network(kept: &[usize]) -> String {
    let constants = constants(kept);
    format!(
        "main (float[1,2,3,3] x) => (float[1,2,3,3] y)
         <float s = {{0.02}}, uint8 z = {{128}}, float t = {{0.02}}, uint8 o = {{0}}, {constants}> {{
           xq = QuantizeLinear(x, s, z)
           xd = DequantizeLinear(xq, s, z)
           w1 = DequantizeLinear<axis = 0>(w1q, w1s, w1z)
           b1 = DequantizeLinear<axis = 0>(b1q, b1s, b1z)
           h = Conv<kernel_shape = [1, 1]>(xd, w1, b1)
           a = Relu(h)
           aq = QuantizeLinear(a, t, o)
           ad = DequantizeLinear(aq, t, o)
           w2 = DequantizeLinear<axis = 0>(w2q, w2s, w2z)
           b2 = DequantizeLinear<axis = 0>(b2q, b2s, b2z)
           y = Conv<kernel_shape = [3, 3], pads = [1, 1, 1, 1]>(ad, w2, b2)
         }}",
    )
}

fn row(values: impl IntoIterator<Item = i64>) -> String {
    values.into_iter().map(|v| v.to_string()).collect::<Vec<_>>().join(", ")
}

/// The constants of the network restricted to some of its four channels.
fn constants(kept: &[usize]) -> String {
    let k = kept.len();
    let pick = |values: [&str; 4]| kept.iter().map(|&c| values[c]).collect::<Vec<_>>().join(", ");
    let w2 = (0..2).flat_map(|o| kept.iter().flat_map(move |&c| (0..9).map(move |t| 7 * o + t - c as i64)));
    format!(
        "int8[{k},2,1,1] w1q = {{{}}}, float[{k}] w1s = {{{}}}, int8[{k}] w1z = {{{}}}, \
         int32[{k}] b1q = {{{}}}, float[{k}] b1s = {{{}}}, int32[{k}] b1z = {{{}}}, \
         int8[2,{k},3,3] w2q = {{{}}}, float[2] w2s = {{0.01, 0.02}}, int8[2] w2z = {{0, 0}}, \
         int32[2] b2q = {{10, -20}}, float[2] b2s = {{0.0002, 0.0004}}, int32[2] b2z = {{0, 0}}",
        pick(["100, 100", "3, -5", "0, 0", "9, 4"]),
        pick(["0.001", "0.2", "0.001", "0.1"]),
        pick(["100", "0", "0", "0"]),
        pick(["0", "30", "0", "25"]),
        pick(["0.00002", "0.004", "0.00002", "0.002"]),
        pick(["0", "0", "0", "0"]),
        row(w2),
    )
}

#[test]
fn cuts_scales_with_channels_and_preserves_outputs_without_zeros() {
    let pass = PruneChannels { ratio: Some(0.5), ..untimed() };
    check(pass.clone(), &network(&[0, 1, 2, 3]), &network(&[1, 3]));
    let original = model(&network(&[0, 1, 2, 3]));
    let mut changed = original.clone();
    pass.run(&mut changed, &mut crate::framework::testing::context(tools())).unwrap();
    same(&original, &changed, Effect::Rounding);
}

#[test]
fn repairs_biases_by_the_mean_and_keeps_weights() {
    let mut original = model(&network(&[0, 1, 2, 3]));
    original.infer().unwrap();
    let samples = SharedSamples::from(SampleSet::generated(input_specs(&original), 0, 64));
    let with = Tools { samples: Some(&samples), ..tools() };
    let held_out = HeldOut::new(with, &original, 0..64).unwrap();
    let pruned = |repair, criterion| -> Model {
        let pass = PruneChannels {
            ratio: Some(0.75),
            scope: Some(PruneScope::Uniform),
            criterion,
            repair,
            ..untimed()
        };
        let mut changed = original.clone();
        pass.run(&mut changed, &mut crate::framework::testing::context(with)).unwrap();
        changed
    };
    let (none, mean) = (pruned(Some(PruneRepair::None), None), pruned(Some(PruneRepair::Mean), None));
    let drifts = [&none, &mean].map(|m| held_out.drift(m).unwrap());
    assert!(drifts[1] < 0.8 * drifts[0], "{drifts:?}");
    let tensor = |model: &Model, name: &str| {
        model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap().clone()
    };
    for name in ["w1q", "w2q", "w1s", "w2s", "b2s", "b1q"] {
        assert_eq!(tensor(&none, name), tensor(&mean, name), "{name}");
    }
    assert_ne!(tensor(&none, "b2q"), tensor(&mean, "b2q"));
    // The default repair is the same here: weights are quantized.
    assert_eq!(text::print_graph(&pruned(None, Some(Importance::Obs)).graph), text::print_graph(&mean.graph));
}

#[test]
fn rejects_models_without_prunable_groups() {
    let refused = |pass: &dyn Pass, source: &str| {
        let mut model = model(source);
        pass.run(&mut model, &mut crate::framework::testing::context(Tools::default()))
            .unwrap_err()
            .to_string()
    };
    let pass = PruneChannels { ratio: Some(0.5), ..untimed() };
    let one =
        "main (float[1,2] x) => (float[1,3] y) <float[2,3] w = {1, 2, 3, 4, 5, 6}> { y = MatMul(x, w) }";
    assert_eq!(
        refused(&pass, one),
        "`main` has no group that can lose channels: `w` is skipped: it is the input `x`; \
         `y` is skipped: it is the output `y`"
    );
    let heads = PruneHeads { ratio: Some(0.5), ..PruneHeads::default() };
    assert_eq!(
        refused(&heads, &network(&[0, 1, 2, 3])),
        "`main` has no group that can lose heads: `h` is a group of channels; \
         `w1q` is skipped: it is the input `x`; `y` is skipped: it is the output `y`"
    );
    let none = PruneHidden::default();
    assert_eq!(refused(&none, one), "a target is required");
}
