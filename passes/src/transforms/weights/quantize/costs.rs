//! The cost of rounding of each layer, in quality and in time.

use super::{Quantize, SpeedSearch, candidates::normalized, limits::ranked};
use crate::{
    analysis::{evaluation::HeldOut, samples::Split},
    framework::{Context, PassError},
};
use pare_graph::Model;

/// The cost of rounding of a layer.
#[derive(Clone, Debug, PartialEq)]
pub struct RoundingCost {
    /// The name of its weights; of a product of two activations, that of its output.
    pub name: String,
    /// The operator.
    pub operator: String,
    /// The signal of the weights over the noise of their rounding, in dB.
    pub weight_snr: Option<f64>,
    /// The drift of the outputs, if only this layer is in integers.
    pub drift: f64,
    /// The part of the latency of float that integers save here beside all other layers in integers; negative if
    /// they are slower. Layers of equal shape share it equally.
    pub saved: f64,
}

/// Returns what `quantize` costs in each layer, the one with the most drift first.
///
/// # Errors
/// Those of the pass: if the model is quantized, if there are too few samples, or if no layer can be quantized.
pub fn rounding_costs(model: &Model, cx: &mut Context<'_>) -> Result<Vec<RoundingCost>, PassError> {
    super::check_unquantized(&model.graph)?;
    let split = Split::required(cx.tools, None)?;
    let pass = Quantize::default();
    let mut raised = model.clone();
    pass.ensure_opset(&mut raised, cx)?;
    let plain = normalized(&raised)?;
    let candidates = pass.candidates(&plain, &split, true, cx)?;
    let all = vec![true; candidates.count()];
    let samples = HeldOut::new(cx.tools, &plain, split.held_out.clone())?;
    // Enough for parts of one layer each.
    let parts = ranked(&candidates, &all, &samples, 4 * candidates.count(), cx)?;
    let speed =
        SpeedSearch { candidates: &candidates, sizes: cx.tools.sizes(&plain.graph), products_earn: false };
    let saved = speed.saved(&all, cx)?;
    let cost = |unit: usize, drift: f64| {
        let weights = candidates.layers.get(unit).zip(candidates.weights.get(unit));
        RoundingCost {
            name: candidates.name(unit).into(),
            operator: plain.graph.node(candidates.node(unit)).op.clone(),
            weight_snr: weights.map(|(layer, weights)| {
                let (signal, noise) = weights.energy(layer);
                10.0 * (signal / f64::max(noise, f64::MIN_POSITIVE)).log10()
            }),
            drift,
            saved: saved[unit],
        }
    };
    Ok(parts.iter().flat_map(|part| part.units.iter().map(|&unit| cost(unit, part.drift))).collect())
}
