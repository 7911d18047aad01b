//! Rescaling of channels between a layer and the products that read it, before activations are quantized.

use crate::{
    analysis::{
        calibration::{floats, observe},
        linear::Linear,
        samples::Split,
        weighted_layers::WeightedLayer,
    },
    framework::{Context, Counter, Pass, PassError},
    pass,
};
use pare_graph::{Graph, Model, NodeId, Patch, Tensor, ValueId, ValueRef, ops::axis_of};

pass! {
    /// Move outliers of activations into weights.
    ///
    /// `W·x = (W·diag(s))·(diag(s)⁻¹·x)`, with `s_k = max|x_k|^alpha / max|W_k|^(1 - alpha)` for channel `k` of
    /// the samples: a single scale for all channels, which `quantize` gives to activations, then rounds each of
    /// them less. `diag(s)⁻¹` becomes part of the normalization or layer that produces `x`, if need be through a
    /// ReLU. Each `s_k` is a power of two, so that no number is rounded again.
    ///
    /// Run it before `quantize`. Declines if something else reads `x`, if weights have other users, and if the error
    /// of rounding to eight bits would not be less. Fails without samples.
    #[pass("smooth-activations", Rounding)]
    pub struct SmoothActivations {
        /// The share of the outliers that weights take over, from 0 to 1.
        pub alpha: f64 = 0.5,
    }
}

impl Pass for SmoothActivations {
    fn validate(&self) -> Result<(), String> {
        if (0.0..=1.0).contains(&self.alpha) {
            Ok(())
        } else {
            Err(format!("`alpha` is a share from 0 to 1, not {}", self.alpha))
        }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        let sites = sites(&model.graph, cx);
        if sites.is_empty() {
            if cx.report.declined.is_empty() {
                cx.decline("no product with a matrix reads a normalization or layer");
            }
            return Ok(());
        }
        let split = Split::required(cx.tools, None)?;
        let wanted: Vec<_> = sites.iter().map(|site| site.value).collect();
        let mut statistics: Vec<_> = sites.iter().map(|site| Channels::new(site.channels)).collect();
        observe(cx.tools, model, &wanted, split.statistics(), "channels", &mut |_, values| {
            for (channels, value) in statistics.iter_mut().zip(values) {
                channels.add(&floats(value)?);
            }
            Ok(())
        })?;
        for (site, channels) in sites.iter().zip(&statistics) {
            let name = model.graph.value(site.value).name.clone();
            if !channels.largest.iter().all(|x| x.is_finite()) {
                return Err(PassError::refused(format!("`{name}` is not finite on the samples")));
            }
            let Some(users) = site.layers(&model.graph) else { continue };
            let scales = scales(channels, &users, self.alpha);
            let (before, after) = (
                channels.rounding_error(&users, &vec![1.0; site.channels]),
                channels.rounding_error(&users, &scales),
            );
            if !(after < before) {
                cx.decline(format!("`{name}` would not be rounded less"));
                continue;
            }
            let Some(patch) = site.rescaled(&model.graph, &users, &scales) else {
                cx.decline(format!("the producer of `{name}` cannot be scaled"));
                continue;
            };
            if cx.apply(&mut model.graph, patch).is_some() {
                cx.count(Counter::new("activation smoothed", "activations smoothed"), 1);
            }
        }
        Ok(())
    }
}

/// A value whose channels can be rescaled.
struct Site {
    value: ValueId,
    channels: usize,
    producer: Producer,
    /// The products that read it.
    users: Vec<NodeId>,
}

/// The node that absorbs the reciprocal scales.
enum Producer {
    /// A normalization, with its scale and, if there is one, its shift.
    Normalization(NodeId, Vec<usize>),
    /// A layer.
    Layer(NodeId),
}

/// Returns the values that only products with matrices of their own read, and whose producers can be rescaled.
fn sites(graph: &Graph, cx: &mut Context<'_>) -> Vec<Site> {
    let mut sites: Vec<Site> = vec![];
    for &node in graph.nodes().iter() {
        let Some(linear) = matrix(graph, node) else { continue };
        if sites.iter().any(|site| site.value == linear.input) {
            continue;
        }
        let value = graph.value_ref(linear.input);
        let Some(producer) = producer(graph, value, linear.channels) else { continue };
        let users = value.users();
        let is_user = |id| matrix(graph, id).is_some_and(|user| user.input == value.id);
        let other = users.iter().find(|(at, _)| !is_user(at.id));
        if let Some((other, _)) = other.filter(|_| !value.value().is_output()) {
            cx.decline(format!("{} reads `{}` too", other.describe(), value.name()));
        } else if value.value().is_output() {
            cx.decline(format!("`{}` is an output", value.name()));
        } else {
            let users = users.iter().map(|(at, _)| at.id).collect();
            sites.push(Site { value: value.id, channels: linear.channels, producer, users });
        }
    }
    sites
}

/// The product of a node with a matrix that has no other user.
fn matrix(graph: &Graph, node: NodeId) -> Option<Linear> {
    Linear::owned(graph, node).filter(|linear| !linear.is_conv())
}

/// The producer of a value whose last axis has this many channels.
fn producer(graph: &Graph, value: ValueRef<'_>, channels: usize) -> Option<Producer> {
    let at = value.producer()?;
    if at.is("LayerNormalization") || at.is("RMSNormalization") {
        let is_last = value.rank().is_ok_and(|rank| axis_of(at).is_ok_and(|axis| axis + 1 == rank));
        let slots: Vec<_> = [1, 2].into_iter().filter(|&slot| at.optional(slot).is_some()).collect();
        let fits = |&slot: &usize| {
            at.optional(slot).and_then(|v| v.constant().ok()).is_some_and(|t| t.len() == channels)
        };
        let is_first = at.output().is_ok_and(|y| y.id == value.id);
        let can = is_last && is_first && slots.iter().all(fits);
        return can.then_some(Producer::Normalization(at.id, slots));
    }
    // ReLU(x / s) = ReLU(x) / s.
    let output = if at.is("Relu") { at.input(0).ok().filter(|x| x.sole_use().is_ok())? } else { value };
    let end = output.producer()?;
    let inner = || end.inputs().into_iter().flatten().filter_map(ValueRef::producer).map(|at| at.id);
    let node = std::iter::once(end.id).chain(inner()).find(|&id| {
        let scales = |layer: &Linear| layer.output == output.id && layer.outputs == channels;
        // A constant of another shape is not a bias of the outputs.
        let is_known = |layer: &Linear| layer.takes_bias() || graph.at(id).optional(2).is_none();
        matrix(graph, id).is_some_and(|layer| scales(&layer) && is_known(&layer))
    })?;
    Some(Producer::Layer(node))
}

impl Site {
    /// The products that read the value, with their weights; they may have changed as producers of another.
    fn layers(&self, graph: &Graph) -> Option<Vec<WeightedLayer>> {
        self.users.iter().map(|&node| layer(graph, node)).collect()
    }

    /// The patch that divides the producer by the scales, and multiplies the weights of the users.
    fn rescaled(&self, graph: &Graph, users: &[WeightedLayer], scales: &[f64]) -> Option<Patch> {
        let mut patch = match &self.producer {
            Producer::Normalization(node, slots) => {
                let (at, mut patch) = (graph.at(*node), Patch::anchored(*node));
                for &slot in slots {
                    let old = at.optional(slot)?;
                    let tensor = old.constant().ok()?;
                    let values = tensor.to_f64()?.into_iter().zip(scales).map(|(v, s)| v / s);
                    let values: Vec<_> = values.collect();
                    let tensor = Tensor::from_f64(tensor.dtype(), tensor.shape(), &values).ok()?;
                    patch.set_constant(*node, slot, old.name(), tensor);
                }
                patch
            }
            Producer::Layer(node) => {
                let WeightedLayer { linear, mut weights, mut bias, .. } = layer(graph, *node)?;
                let mut patch = Patch::anchored(*node);
                for (i, s) in scales.iter().enumerate() {
                    weights[0].row_mut(i).iter_mut().for_each(|w| *w /= s);
                    bias[i] /= s;
                }
                linear.store(graph, &mut patch, &weights, &bias)?;
                patch
            }
        };
        for user in users {
            let mut weights = user.weights.clone();
            for (k, s) in scales.iter().enumerate() {
                weights[0].col_mut(k).iter_mut().for_each(|w| *w *= s);
            }
            user.linear.store(graph, &mut patch, &weights, &user.bias)?;
        }
        Some(patch)
    }
}

/// A product with its weights and bias.
fn layer(graph: &Graph, node: NodeId) -> Option<WeightedLayer> {
    let linear = matrix(graph, node)?;
    let weight = linear.weight(graph, 0).filter(|w| w.is_all_finite())?;
    let (name, bias) = (graph.value(linear.weight).name.clone(), linear.bias(graph)?);
    Some(WeightedLayer { node, name, linear, weights: vec![weight], bias })
}

/// `s_k`, as powers of two whose median is 1: a common factor changes nothing.
fn scales(channels: &Channels, users: &[WeightedLayer], alpha: f64) -> Vec<f64> {
    let largest = |k: usize| {
        let weights = users.iter().flat_map(|user| user.weights[0].col(k).iter());
        weights.fold(0.0_f64, |m, w| m.max(w.abs()))
    };
    let exponent = |(k, &x): (usize, &f64)| {
        let w = largest(k);
        (x > 0.0 && w > 0.0).then(|| alpha * x.log2() - (1.0 - alpha) * w.log2())
    };
    let exponents: Vec<_> = channels.largest.iter().enumerate().map(exponent).collect();
    let mut known: Vec<_> = exponents.iter().copied().flatten().collect();
    known.sort_by(f64::total_cmp);
    let median = known.get(known.len() / 2).copied().unwrap_or_default();
    // Channels that are always zero need no scale. The bounds keep numbers away from the ends of their type.
    exponents.iter().map(|e| e.map_or(1.0, |e| (e - median).round().clamp(-20.0, 20.0).exp2())).collect()
}

/// The channels of a value on the samples.
struct Channels {
    /// `max|x_k|`
    largest: Vec<f64>,
    /// `Σx_k²`
    squares: Vec<f64>,
    rows: f64,
}

impl Channels {
    fn new(count: usize) -> Self {
        Self { largest: vec![0.0; count], squares: vec![0.0; count], rows: 0.0 }
    }

    fn add(&mut self, values: &[f32]) {
        for row in values.chunks_exact(self.largest.len()) {
            for ((largest, square), &x) in self.largest.iter_mut().zip(&mut self.squares).zip(row) {
                let x = f64::from(x);
                // NaN is larger than everything.
                if !(x.abs() <= *largest) {
                    *largest = x.abs();
                }
                *square += x * x;
            }
            self.rows += 1.0;
        }
    }

    /// The expected squared error of the products if activations are rounded with one scale, and weights with one
    /// for each output: the error of rounding with a step `d` is `d²/12`.
    fn rounding_error(&self, users: &[WeightedLayer], scales: &[f64]) -> f64 {
        let step = |largest: f64| (2.0 * largest / 255.0).powi(2) / 12.0;
        let largest = self.largest.iter().zip(scales).fold(0.0_f64, |m, (x, s)| m.max(x / s));
        let squares =
            self.squares.iter().zip(scales).map(|(x, s)| x / (s * s)).sum::<f64>() / self.rows.max(1.0);
        let rows = users.iter().flat_map(|user| (0..user.linear.outputs).map(|i| user.row(i)));
        let error = |row: Vec<f64>| {
            let scaled = row.iter().zip(scales).map(|(w, s)| w * s);
            let (most, sum) = scaled.fold((0.0_f64, 0.0), |(m, sum), w| (m.max(w.abs()), sum + w * w));
            step(largest) * sum + step(most) * squares
        };
        rows.map(error).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::{
        Effect, Tools,
        testing::{context, model, numbers, run_pass_with, same, tools},
    };
    use pare_graph::{EvaluateError, Samples};
    use std::ops::Range;

    /// Samples of `x`.
    struct Inputs;

    impl Samples for Inputs {
        fn len(&self) -> usize {
            40
        }

        fn batch(&self, range: Range<usize>) -> Result<Vec<(String, Tensor)>, EvaluateError> {
            let mut rng = fastrand::Rng::with_seed(range.start as u64);
            let values: Vec<f32> = (0..range.len() * 24).map(|_| rng.f32() * 2.0 - 1.0).collect();
            Ok(vec![("x".into(), Tensor::from_slice(&[range.len(), 3, 8], &values).unwrap())])
        }
    }

    fn smoothed(source: &str) -> (Model, Model, Vec<String>) {
        let original = model(source);
        let mut changed = original.clone();
        let tools = Tools { samples: Some(&Inputs), ..tools() };
        let report = run_pass_with(SmoothActivations::default(), &mut changed, tools);
        same(&original, &changed, Effect::Rounding);
        (original, changed, report.steps[0].declined.keys().cloned().collect())
    }

    fn values(model: &Model, name: &str) -> Vec<f64> {
        model.graph.value(model.graph.find(name).unwrap()).tensor().unwrap().to_f64().unwrap()
    }

    /// The largest activation of a channel is 64 times that of the others.
    const OUTLIER: &str = "float[8] scale = {1, 1, 1, 64, 1, 1, 1, 1}";

    #[test]
    fn scales_normalizations() {
        let (original, changed, declined) = smoothed(&format!(
            "g (float[N,3,8] x) => (float[N,3,4] y, float[N,3,5] z)
             <{OUTLIER}, float[8] shift = {{{}}}, float[8,4] a = {{{}}}, float[8,5] b = {{{}}}, float[5] c = {{{}}}> {{
                n = LayerNormalization(x, scale, shift) y = MatMul(n, a) m = MatMul(n, b) z = Add(m, c) }}",
            numbers(8, 1),
            numbers(32, 2),
            numbers(40, 3),
            numbers(5, 4)
        ));
        assert_eq!(declined, [""; 0]);
        let at = |model: &Model, name: &str, k: usize| values(model, name)[k];
        // α = 0.5 moves a factor of about 8 from the activations to the weights.
        let constants = changed.graph.initializers();
        let scale = constants.iter().map(|&v| changed.graph.value(v)).find(|v| v.name.starts_with("scale"));
        let scale = scale.unwrap().tensor().unwrap().to_f64().unwrap();
        let factor = 64.0 / scale[3];
        assert!([4.0, 8.0, 16.0].contains(&factor), "{scale:?}");
        assert_eq!(at(&changed, "a", 12), factor * at(&original, "a", 12));
    }

    #[test]
    fn scales_layers_through_relu_and_bias() {
        let outlier: Vec<_> = (0..64).map(|k| if k % 8 == 5 { "40" } else { "0.5" }).collect();
        for layer in ["m = MatMul(x, a) s = Add(m, b)", "s = MatMul(x, a)"] {
            let (original, changed, declined) = smoothed(&format!(
                "g (float[N,3,8] x) => (float[N,3,4] y)
                 <float[8,8] a = {{{}}}, float[8] b = {{{}}}, float[8,4] c = {{{}}}> {{
                    {layer} r = Relu(s) y = MatMul(r, c) }}",
                outlier.join(","),
                numbers(8, 1),
                numbers(32, 2)
            ));
            assert_eq!(declined, [""; 0]);
            let factor = values(&original, "a")[5] / values(&changed, "a")[5];
            assert!(factor >= 4.0, "{factor}");
            assert_eq!(values(&changed, "c")[20], factor * values(&original, "c")[20]);
        }
    }

    #[test]
    fn declines_what_is_read_elsewhere_or_even() {
        let declined = |rest: &str, scale: &str| {
            let source = format!(
                "g (float[N,3,8] x) => (float[N,3,8] y) <{scale}, float[8,8] a = {{{}}}> {{
                    n = LayerNormalization(x, scale) {rest} }}",
                numbers(64, 2)
            );
            smoothed(&source).2
        };
        assert_eq!(declined("m = MatMul(n, a) y = Add(m, n)", OUTLIER), ["Add producing `y` reads `n` too"]);
        let even = "float[8] scale = {1, 1, 1, 1, 1, 1, 1, 1}";
        assert_eq!(declined("y = MatMul(n, a)", even), ["`n` would not be rounded less"]);
        assert_eq!(
            declined("m = Relu(n) y = MatMul(m, a)", OUTLIER),
            ["no product with a matrix reads a normalization or layer"]
        );
    }

    #[test]
    fn needs_samples() {
        let source = format!(
            "g (float[N,3,8] x) => (float[N,3,8] y) <{OUTLIER}, float[8,8] a = {{{}}}> {{
                n = LayerNormalization(x, scale) y = MatMul(n, a) }}",
            numbers(64, 2)
        );
        let mut model = model(&source);
        model.infer().unwrap();
        let error = SmoothActivations::default().run(&mut model, &mut context(Tools::default()));
        assert_eq!(error.unwrap_err().to_string(), "it needs samples, and an engine to run them");
    }
}
