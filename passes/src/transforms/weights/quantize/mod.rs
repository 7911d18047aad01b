//! The pass: quantization of weights and activations, and correction of biases.

mod candidates;
mod costs;
mod dynamic;
mod emit;
mod limits;
mod plan;
mod ranges;
mod speed;
#[cfg(test)]
mod tests;
mod weights;

pub use costs::{RoundingCost, rounding_costs};
pub use ranges::Ranges;

use crate::{
    analysis::{
        calibration::open_inputs,
        evaluation::{HeldOut, QualityLimits},
        opset::OpsetPolicy,
        samples::Split,
        timing::has_known_sizes,
        weighted_layers::{NameFilter, WeightedLayer, layers},
    },
    framework::{Context, Counter, Pass, PassError, Tools},
    pass,
};
use candidates::{Candidates, Choice, normalized};
use limits::QualitySearch;
use pare_graph::{
    DataType, Graph, Model, NodeId, ValueRef,
    ops::{GemmView, Trait},
};
use ranges::calibrate;
use serde::{Deserialize, Serialize};
use speed::{SpeedSearch, is_faster};
use std::collections::BTreeMap;
use weights::{Codes, IntegerWeights};

/// The form of a quantized model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// Activations have ranges from samples.
    Static,
    /// The inputs of products are quantized while the model runs.
    Dynamic,
    /// Only weights are stored in integers.
    Weights,
}

/// The purpose of integers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// Less time: layers that are slower in integers stay in float.
    Speed,
    /// Less memory: all layers are quantized.
    Size,
}

/// The choice of products of two activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "toml::Value", try_from = "toml::Value")]
pub enum Attention {
    /// Quantized where that saves time.
    Auto,
    /// Quantized like layers, or not at all.
    Is(bool),
}

pass! {
    /// Quantize weights and activations to eight bits.
    ///
    /// Weights become int8 with a scale per output, `w ≈ s_o·q`; activations become uint8 with one scale, `x
    /// ≈ s·(q - z)`. `method=static` calibrates them on samples: `QuantizeLinear` and `DequantizeLinear` surround
    /// the operators for which ONNX Runtime has integer kernels (QDQ), and biases become int32. `dynamic` computes
    /// them from the inputs of each product in every run, with `MatMulInteger`; convolutions stay in float.
    /// `weights` computes in floats: a quarter of the size, but not faster. Biases are corrected for the mean error
    /// of rounding, layer by layer.
    ///
    /// Layers stay in float where the limits need them, measured on held-out samples, and with `for=speed` where
    /// the engine is not slower in float on this machine.
    ///
    /// Run it last. Fails on quantized models, if the limits permit no layer, and if the operator set is too old and
    /// cannot be raised.
    #[pass("quantize", Lossy)]
    pub struct Quantize {
        /// `static`, which needs samples, `dynamic`, or `weights`.
        pub method: Method = Method::Static,
        /// Without activations, `static` is `weights`.
        pub activations: bool = true,
        /// `speed`: layers that are not faster in integers stay in float, if there is an engine to measure it, with
        /// one thread unless a number is given. `size`: all are quantized.
        pub r#for: Purpose = Purpose::Speed,
        /// Largest drift: mean KL divergence of class scores, squared error over variance of other outputs.
        pub max_drift: Option<f64> = None,
        /// Smallest share of samples whose predicted class is unchanged.
        pub min_agreement: Option<f64> = None,
        /// Largest loss of accuracy; needs labels.
        pub max_accuracy_drop: Option<f64> = None,
        /// Quantize products of two activations, as in attention: `auto` where that saves time, `true` like layers, or
        /// `false`. Only with `method=static`.
        pub attention: Attention = Attention::Auto,
        /// The choice of ranges: `minmax`, `percentile` or `mse`, the least squared error.
        pub ranges: Ranges = Ranges::Mse,
        /// For `percentile`: the percentage of values inside the range.
        pub percentile: f64 = 99.99,
        /// Let weights use all codes from -127 to 127. Otherwise their scales leave room for the sum of two products in
        /// 16 bits, with which processors without VNNI instructions compute: there, ONNX Runtime saturates silently.
        pub full_range: bool = false,
        /// Correct biases for the mean error of rounding. Needs samples.
        pub correct_bias: bool = true,
        /// Only layers whose weights have a name that matches one of these patterns, `*` for any text.
        pub only: Vec<String> = vec![],
        /// Skip layers whose weights have a name that matches one of these patterns.
        pub except: Vec<String> = vec![],
        /// For models before operator set 13, or 11 with `dynamic`: `raise` it, or `keep` it and fail.
        pub opset: OpsetPolicy = OpsetPolicy::Raise,
    }
}

/// Samples that order layers by the cost of their rounding.
const RANKING: usize = 64;

impl Pass for Quantize {
    fn validate(&self) -> Result<(), String> {
        if !(self.percentile > 50.0 && self.percentile <= 100.0) {
            return Err("`percentile` is more than 50 and at most 100".into());
        }
        if !self.activations && self.method == Method::Dynamic {
            return Err("`method=dynamic` quantizes activations".into());
        }
        self.limits().validate()
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        if cx.stopped() {
            return Ok(());
        }
        check_unquantized(&model.graph)?;
        let needs_samples = self.method() == Method::Static || self.limits().any();
        if needs_samples && !is_sampled(cx.tools) {
            let otherwise = (!self.limits().any()).then_some("method=weights");
            Split::required(cx.tools, otherwise)?;
        }
        self.ensure_opset(model, cx)?;
        let split = Split::of(cx.tools);
        let plain = normalized(model)?;
        let is_timed = self.is_timed(&plain, cx);
        let candidates = self.candidates(&plain, &split, is_timed, cx)?;
        let measure = || HeldOut::new(cx.tools, &plain, split.held_out.clone());
        let held_out = if self.limits().any() { Some(measure()?) } else { None };
        let Some(choice) = self.choose(&candidates, held_out.as_ref(), &split, is_timed, cx)? else {
            return Ok(());
        };
        let result = self.corrected(&candidates, &choice, held_out, &split, cx)?;
        if cx.permit() {
            report(&candidates, &choice, cx);
            *model = result;
        }
        Ok(())
    }
}

/// Returns true if there are samples and an engine to run them.
fn is_sampled(tools: Tools<'_>) -> bool {
    tools.samples.is_some_and(|s| !s.is_empty()) && tools.engine.is_some()
}

impl Quantize {
    fn method(&self) -> Method {
        if self.activations { self.method } else { Method::Weights }
    }

    fn limits(&self) -> QualityLimits {
        QualityLimits {
            max_drift: self.max_drift,
            min_agreement: self.min_agreement,
            max_accuracy_drop: self.max_accuracy_drop,
        }
    }

    /// Returns whether choices are timed: weights alone are not faster by construction.
    fn is_timed(&self, plain: &Model, cx: &mut Context<'_>) -> bool {
        let wants = self.r#for == Purpose::Speed && self.method() != Method::Weights;
        if !wants || cx.tools.engine.is_none() {
            return false;
        }
        let is_known = has_known_sizes(&plain.graph, &cx.tools.sizes(&plain.graph));
        if !is_known {
            let names = open_inputs(&plain.graph).into_iter().map(|v| plain.graph.value(v).name.clone());
            let names = names.collect::<Vec<_>>().join("`, `");
            let why = format!("not timed: the sizes of `{names}` are not known without samples");
            cx.report.notes.push(why);
        }
        is_known
    }

    /// The layers and products that may be quantized, with their ranges and weights.
    fn candidates<'m>(
        &self,
        plain: &'m Model,
        split: &Split,
        is_timed: bool,
        cx: &mut Context<'_>,
    ) -> Result<Candidates<'m>, PassError> {
        let method = self.method();
        let layers = self.layers(plain, cx)?;
        let wants_products =
            self.attention == Attention::Is(true) || self.attention == Attention::Auto && is_timed;
        let products =
            if method == Method::Static && wants_products { products(&plain.graph) } else { vec![] };
        let is_whole = self.full_range || method == Method::Weights;
        let codes = if is_whole { Codes::All } else { Codes::Pairs };
        let weights = layers.iter().map(|layer| IntegerWeights::new(&plain.graph, layer, self.ranges, codes));
        let weights = weights.collect::<Result<_, _>>()?;
        let mut candidates = Candidates { plain, layers, products, method, grids: BTreeMap::new(), weights };
        let plan = candidates.plan(&vec![true; candidates.count()]);
        candidates.grids =
            calibrate(cx.tools, plain, &plan, split.statistics(), self.ranges, self.percentile)?;
        Ok(candidates)
    }

    /// Returns the units that are quantized, or notes why there are none.
    fn choose(
        &self,
        candidates: &Candidates<'_>,
        held_out: Option<&HeldOut<'_>>,
        split: &Split,
        is_timed: bool,
        cx: &mut Context<'_>,
    ) -> Result<Option<Choice>, PassError> {
        let mut choice = vec![true; candidates.count()];
        let limits = self.limits();
        let ranking = split.fit.start..split.fit.end.min(split.fit.start + RANKING);
        let ranking = held_out.map(|_| HeldOut::new(cx.tools, candidates.plain, ranking)).transpose()?;
        let search = held_out.zip(ranking.as_ref()).map(|(held_out, ranking)| QualitySearch {
            candidates,
            limits,
            held_out,
            ranking,
        });
        if let Some(search) = &search {
            choice = search.hold(choice, cx)?;
        }
        if !is_timed {
            return Ok(Some(choice));
        }
        let sizes = cx.tools.sizes(&candidates.plain.graph);
        let products_earn = self.attention == Attention::Auto;
        let speed = SpeedSearch { candidates, sizes, products_earn };
        let timed = speed.choose(choice.clone(), cx)?;
        let (mut fast, mut latency) = (timed.choice, timed.latency);
        if let Some(search) = search.filter(|_| fast != choice && fast.contains(&true)) {
            let held = search.hold(fast.clone(), cx)?;
            if held != fast {
                (latency, fast) = (speed.latency(&held, cx)?, held);
            }
        }
        if !is_faster(&latency) {
            let why = if latency.median > 1.0 {
                "integers are slower than float"
            } else {
                "integers are not faster than float"
            };
            cx.report.notes.push(format!("no layer is quantized: {why} on this machine"));
            return Ok(None);
        }
        let slow =
            (0..choice.len()).filter(|&unit| choice[unit] && !fast[unit] && !candidates.is_product(unit));
        let slow: Vec<_> = slow.map(|unit| format!("`{}`", candidates.name(unit))).collect();
        if !slow.is_empty() {
            let layers =
                if slow.len() == 1 { "1 layer stays" } else { &format!("{} layers stay", slow.len()) };
            let names = slow.join(", ");
            cx.report.notes.push(format!("{layers} in float, where integers are slower: {names}"));
        }
        cx.share("latency", latency.median);
        Ok(Some(fast))
    }

    /// Builds the chosen model. Biases are corrected if that reduces the drift on held-out samples and keeps the
    /// limits.
    fn corrected(
        &self,
        candidates: &Candidates<'_>,
        choice: &Choice,
        held_out: Option<HeldOut<'_>>,
        split: &Split,
        cx: &mut Context<'_>,
    ) -> Result<Model, PassError> {
        let rounded = candidates.build(choice)?;
        let held_out = match held_out {
            Some(held_out) => held_out,
            None if self.correct_bias && is_sampled(cx.tools) => {
                HeldOut::new(cx.tools, candidates.plain, split.held_out.clone())?
            }
            None => return Ok(rounded),
        };
        // Both are measured as the engine computes them, in integers.
        let before = held_out.measure(&rounded)?;
        let mut result = (rounded, before);
        if self.correct_bias {
            let corrected = candidates.build_corrected(choice, cx.tools, split.statistics())?;
            let after = held_out.measure(&corrected)?;
            cx.figure("drift before bias correction", before.drift);
            cx.figure("drift after bias correction", after.drift);
            if after.drift < before.drift && self.limits().broken(&after).is_none() {
                result = (corrected, after);
            }
        }
        if self.limits().any()
            && let Some(agreement) = result.1.agreement
        {
            cx.share("agreement", agreement);
        }
        Ok(result.0)
    }
}

/// Reports the layers and values that are quantized.
fn report(candidates: &Candidates<'_>, choice: &Choice, cx: &mut Context<'_>) {
    let (mut layers, mut signal, mut noise) = (0, 0.0, 0.0);
    for (layer, weights) in candidates.chosen(choice) {
        let (s, n) = weights.energy(layer);
        (layers, signal, noise) = (layers + 1, signal + s, noise + n);
    }
    let counter = Counter::new("layer quantized", "layers quantized");
    match candidates.layers.len() as u64 {
        all if layers < all => cx.count_of(counter, layers, all),
        _ => cx.count(counter, layers),
    }
    let products = choice[candidates.layers.len()..].iter().filter(|chosen| **chosen).count();
    cx.count(
        Counter::new("product of activations quantized", "products of activations quantized"),
        products as u64,
    );
    let values = candidates.plan(choice).values.len();
    cx.count(Counter::new("activation quantized", "activations quantized"), values as u64);
    cx.figure("weight SNR in dB", 10.0 * (signal / f64::max(noise, f64::MIN_POSITIVE)).log10());
    if candidates.method == Method::Weights {
        cx.report.notes.push(
            "only weights are stored in eight bits: ONNX Runtime computes in floats and is not faster".into(),
        );
    }
}

/// The products of two activations.
fn products(graph: &Graph) -> Vec<NodeId> {
    let is_product = |&node: &NodeId| {
        let at = graph.at(node);
        let operands = [at.optional(0), at.optional(1)];
        let is_activation = |v: &Option<ValueRef<'_>>| {
            v.is_some_and(|v| {
                !v.is_constant() && v.dtype() == Some(DataType::Float) && v.rank().is_ok_and(|r| r > 1)
            })
        };
        at.is("MatMul") && at.node().domain().is_empty() && operands.iter().all(is_activation)
    };
    graph.nodes().iter().copied().filter(is_product).collect()
}

impl Quantize {
    /// Returns the layers that are quantized: those with weights in float. Others are declined.
    fn layers(&self, model: &Model, cx: &mut Context<'_>) -> Result<Vec<WeightedLayer>, PassError> {
        let graph = &model.graph;
        decline_inner_layers(graph, cx);
        decline_left_operands(graph, cx);
        let mut layers = layers(model, NameFilter { only: &self.only, except: &self.except }, cx)?;
        let mut first = None;
        layers.retain(|layer| {
            let dtype = graph.value(layer.linear.weight).fact.dtype().filter(|&d| d != DataType::Float);
            let scaled = GemmView::of(graph.at(layer.node)).is_ok_and(|view| !view.is_linear());
            let why = match dtype {
                Some(dtype) => format!("`{}` is of type {dtype}, and only float is quantized", layer.name),
                None if scaled => format!("{} scales its operands", graph.describe(layer.node)),
                None if self.method() == Method::Dynamic && layer.linear.is_conv() => {
                    format!(
                        "`{}` is the kernel of a convolution, which needs ranges from samples",
                        layer.name
                    )
                }
                None => return true,
            };
            cx.decline(&why);
            first.get_or_insert(why);
            false
        });
        match first.filter(|_| layers.is_empty()) {
            Some(why) => Err(PassError::refused(format!("no layer can be quantized: {why}"))),
            None => Ok(layers),
        }
    }
}

/// Declines the linear operators in bodies of control flow, which stay in floats.
fn decline_inner_layers(graph: &Graph, cx: &mut Context<'_>) {
    fn count(graph: &Graph) -> usize {
        let of_node = |&id: &NodeId| {
            let (at, inner) = (graph.at(id), graph.node(id).subgraphs().map(count).sum::<usize>());
            // A captured matrix may be a weight of an outer graph.
            let is_weight = |v: ValueRef<'_>| v.is_constant() || v.value().is_captured();
            inner + usize::from(at.has(Trait::Linear) && at.optional(1).is_some_and(is_weight))
        };
        graph.nodes().iter().map(of_node).sum()
    }
    for &id in graph.nodes().iter() {
        let layers: usize = graph.node(id).subgraphs().map(count).sum();
        if layers > 0 {
            let layers = if layers == 1 { "1 layer stays".into() } else { format!("{layers} layers stay") };
            cx.decline(format!("{layers} in float: the bodies of {} are not quantized", graph.describe(id)));
        }
    }
}

/// Declines products with a constant on the left, for which there is no integer kernel with a scale per row.
fn decline_left_operands(graph: &Graph, cx: &mut Context<'_>) {
    for at in graph.nodes().iter().map(|&id| graph.at(id)).filter(|at| at.is("MatMul")) {
        let Some(weight) = at.optional(0).filter(|v| v.is_constant()) else { continue };
        if weight.dtype() == Some(DataType::Float) && at.optional(1).is_some_and(|v| !v.is_constant()) {
            let (name, product) = (weight.name(), at.describe());
            cx.decline(format!(
                "`{name}` is the left operand of {product}, and only right ones are quantized"
            ));
        }
    }
}

/// Checks that the model is not quantized.
pub(super) fn check_unquantized(graph: &Graph) -> Result<(), PassError> {
    let quantized = |&&id: &&NodeId| {
        let op = graph.node(id).op.as_str();
        op.contains("QuantizeLinear")
            || op.contains("DequantizeLinear")
            || op.starts_with("QLinear")
            || op.ends_with("Integer")
            || ["QGemm", "MatMulNBits", "GatherBlockQuantized"].contains(&op)
    };
    if let Some(&id) = graph.nodes().iter().find(quantized) {
        return Err(PassError::refused(format!("the model is quantized already: {}", graph.describe(id))));
    }
    Ok(())
}

impl Quantize {
    /// Raises the operator set to one that has scales per output, or quantization in every run.
    fn ensure_opset(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let (needed, what) = match self.method() {
            Method::Dynamic => (11, "`DynamicQuantizeLinear`"),
            _ => (13, "scales per output"),
        };
        let remedy = format!("export the model with operator set {needed} or later");
        self.opset.ensure(needed, what, remedy, model, cx)
    }
}

impl From<Attention> for toml::Value {
    fn from(attention: Attention) -> Self {
        match attention {
            Attention::Auto => "auto".into(),
            Attention::Is(included) => Self::Boolean(included),
        }
    }
}

impl TryFrom<toml::Value> for Attention {
    type Error = String;

    fn try_from(value: toml::Value) -> Result<Self, String> {
        match value.as_bool() {
            Some(included) => Ok(Self::Is(included)),
            None if value.as_str() == Some("auto") => Ok(Self::Auto),
            None => Err(format!("`attention` is `auto`, `true` or `false`, not {value}")),
        }
    }
}
