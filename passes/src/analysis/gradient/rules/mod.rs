//! The rules: for each operator, the gradients of its inputs from those of its outputs.
//!
//! A rule is a function with its equation as comment. `y` is the first output, `x` (or `a`, `b`, …) are the inputs,
//! and `dv` is the gradient of `v`. Sums over broadcast axes are left out: [`Step::give`] adds them.
//!
//! Every new node is an operator that ONNX Runtime has for floats and doubles, except those that it lacks for the
//! operator of the rule itself.

mod activation;
mod convolution;
mod elementwise;
mod gather;
mod linear;
mod normalization;
mod pooling;
mod quantization;
mod reduction;
mod resize;
mod view;

use super::step::{Done, Step};
use pare_graph::{Decline, NodeRef};

/// A rule.
pub(super) type Rule = for<'t> fn(&Step<'t>) -> Done;

/// Every operator with a rule, by its domain.
const RULES: &[(&str, &str, Rule)] = &[
    ("", "Abs", elementwise::abs),
    ("", "Add", elementwise::add),
    ("", "AveragePool", pooling::average_pool),
    ("", "BatchNormalization", normalization::batch),
    ("", "Cast", elementwise::cast),
    ("", "CastLike", elementwise::cast),
    ("", "Celu", activation::celu),
    ("", "Clip", activation::clip),
    ("", "Concat", view::concat),
    ("", "Conv", convolution::conv),
    ("", "ConvTranspose", convolution::conv_transpose),
    ("", "Cos", elementwise::cos),
    ("", "Cosh", elementwise::cosh),
    ("", "CumSum", reduction::cum_sum),
    ("", "DepthToSpace", view::depth_to_space),
    ("", "DequantizeLinear", quantization::dequantize),
    ("", "Div", elementwise::div),
    ("", "Dropout", elementwise::dropout),
    ("", "Einsum", linear::einsum),
    ("", "Elu", activation::elu),
    ("", "Erf", elementwise::erf),
    ("", "Exp", elementwise::exp),
    ("", "Expand", view::expand),
    ("", "Flatten", view::reshape),
    ("", "Gather", gather::gather),
    ("", "GatherElements", gather::gather_elements),
    ("", "GatherND", gather::gather_nd),
    ("", "Gelu", activation::gelu),
    ("", "Gemm", linear::gemm),
    ("", "GlobalAveragePool", pooling::global_average_pool),
    ("", "GlobalMaxPool", pooling::global_max_pool),
    ("", "GroupNormalization", normalization::group),
    ("", "HardSigmoid", activation::hard_sigmoid),
    ("", "HardSwish", activation::hard_swish),
    ("", "Identity", elementwise::identity),
    ("", "InstanceNormalization", normalization::instance),
    ("", "LayerNormalization", normalization::layer),
    ("", "LeakyRelu", activation::leaky_relu),
    ("", "Log", elementwise::log),
    ("", "LogSoftmax", normalization::log_softmax),
    ("", "LpNormalization", normalization::lp),
    ("", "MatMul", linear::matmul),
    ("", "Max", elementwise::extreme),
    ("", "MaxPool", pooling::max_pool),
    ("", "Mean", elementwise::mean),
    ("", "MeanVarianceNormalization", normalization::mean_variance),
    ("", "Min", elementwise::extreme),
    ("", "Mish", activation::mish),
    ("", "Mul", elementwise::mul),
    ("", "Neg", elementwise::neg),
    ("", "PRelu", activation::prelu),
    ("", "Pad", view::pad),
    ("", "Pow", elementwise::pow),
    ("", "QuantizeLinear", quantization::quantize),
    ("", "RMSNormalization", normalization::rms),
    ("", "Reciprocal", elementwise::reciprocal),
    ("", "ReduceL1", reduction::l1),
    ("", "ReduceL2", reduction::l2),
    ("", "ReduceLogSum", reduction::log_sum),
    ("", "ReduceLogSumExp", reduction::log_sum_exp),
    ("", "ReduceMax", reduction::extreme),
    ("", "ReduceMean", reduction::mean),
    ("", "ReduceMin", reduction::extreme),
    ("", "ReduceProd", reduction::product),
    ("", "ReduceSum", reduction::sum),
    ("", "ReduceSumSquare", reduction::sum_square),
    ("", "Relu", activation::relu),
    ("", "Reshape", view::reshape),
    ("", "Resize", resize::resize),
    ("", "ReverseSequence", view::reverse_sequence),
    ("", "RotaryEmbedding", linear::rotary),
    ("", "Selu", activation::selu),
    ("", "Shrink", activation::shrink),
    ("", "Sigmoid", activation::sigmoid),
    ("", "Sin", elementwise::sin),
    ("", "Sinh", elementwise::sinh),
    ("", "Slice", view::slice),
    ("", "Softmax", normalization::softmax),
    ("", "Softplus", activation::softplus),
    ("", "Softsign", activation::softsign),
    ("", "SpaceToDepth", view::space_to_depth),
    ("", "Split", view::split),
    ("", "Sqrt", elementwise::sqrt),
    ("", "Squeeze", view::reshape),
    ("", "Sub", elementwise::sub),
    ("", "Sum", elementwise::sum),
    ("", "Swish", activation::swish),
    ("", "Tan", elementwise::tan),
    ("", "Tanh", elementwise::tanh),
    ("", "ThresholdedRelu", activation::thresholded_relu),
    ("", "Tile", view::tile),
    ("", "TopK", gather::top_k),
    ("", "Transpose", view::transpose),
    ("", "Trilu", view::trilu),
    ("", "Unsqueeze", view::reshape),
    ("", "Where", elementwise::choose),
    ("com.microsoft", "FastGelu", activation::fast_gelu),
    ("com.microsoft", "Gelu", activation::gelu),
    ("com.microsoft", "QuickGelu", activation::quick_gelu),
];

/// Operators whose derivative is 0 wherever it exists.
const STEPS: &[&str] = &["Ceil", "Floor", "Hardmax", "Round", "Sign"];

/// The operators with a rule, with their domains.
pub fn operators() -> impl Iterator<Item = (&'static str, &'static str)> {
    RULES.iter().map(|&(domain, op, _)| (domain, op))
}

/// The rule of a node; declines if there is none. `captures` is true if a body of the node reads a value with a
/// gradient.
pub(super) fn of(at: NodeRef<'_>, captures: bool) -> Result<Rule, Decline> {
    let because = |why: &str| Err(Decline::because(format!("{} {why}", at.describe())));
    if at.has_references() {
        return because("has attributes that are set by the caller");
    }
    if captures || at.node().subgraphs().next().is_some() {
        return because("is control flow, which has no gradient");
    }
    let (domain, op) = (at.node().domain(), at.op());
    if domain.is_empty() && STEPS.contains(&op) {
        return because("is constant between its steps, so its derivative is 0");
    }
    match RULES.iter().find(|rule| (rule.0, rule.1) == (domain, op)) {
        Some(&(_, _, rule)) => Ok(rule),
        None => because("has no rule for its gradient"),
    }
}

/// The axes of a tensor other than those in `axes`.
fn other_axes(rank: usize, axes: &[usize]) -> Vec<usize> {
    (0..rank).filter(|axis| !axes.contains(axis)).collect()
}
