//! The shape rules of all operators.

use super::{
    attention, create, cx::Rule, elementwise as each, matmul, microsoft, ml, norm, pieces, quantize, reduce,
    reshape, resize, rnn, sequence, signal, window,
};

/// The rule of an operator; `None` without one. Control flow is in `control`.
pub(super) fn find(domain: &str, op: &str) -> Option<Rule> {
    match domain {
        "" => standard_op(op),
        "ai.onnx.ml" => ml_op(op),
        "com.microsoft" => microsoft_op(op),
        "ai.onnx.preview" => (op == "FlexAttention").then_some(attention::flex as Rule),
        "ai.onnx.preview.training" | "ai.onnx.training" => match op {
            "Adagrad" | "Adam" | "Momentum" => Some(each::optimizer),
            _ => None,
        },
        _ => None,
    }
}

fn standard_op(op: &str) -> Option<Rule> {
    Some(match op {
        // Elementwise
        "Acos"
        | "Acosh"
        | "Affine"
        | "Asin"
        | "Asinh"
        | "Atan"
        | "Atanh"
        | "BitwiseNot"
        | "Celu"
        | "Clip"
        | "Cos"
        | "Cosh"
        | "CumProd"
        | "CumSum"
        | "Elu"
        | "Erf"
        | "Exp"
        | "Gelu"
        | "GroupNormalization"
        | "HardSigmoid"
        | "HardSwish"
        | "Hardmax"
        | "ImageScaler"
        | "LRN"
        | "LeakyRelu"
        | "Log"
        | "LogSoftmax"
        | "LpNormalization"
        | "MeanVarianceNormalization"
        | "Mish"
        | "ParametricSoftplus"
        | "Reciprocal"
        | "ReverseSequence"
        | "RotaryEmbedding"
        | "Scale"
        | "ScaledTanh"
        | "Selu"
        | "Shrink"
        | "Sigmoid"
        | "Sin"
        | "Sinh"
        | "Softmax"
        | "Softplus"
        | "Softsign"
        | "Sqrt"
        | "Swish"
        | "Tan"
        | "Tanh"
        | "TensorScatter"
        | "ThresholdedRelu"
        | "Trilu" => each::like,
        "Abs" | "Ceil" | "Floor" | "Neg" | "Relu" | "Round" | "Sign" => each::unary_with_content,
        "IsInf" | "IsNaN" | "RegexFullMatch" => each::predicate,
        "Bernoulli" | "RandomNormalLike" | "RandomUniformLike" => each::like_typed,
        "Identity" => each::identity,
        "Cast" | "BitCast" => each::cast,
        "CastLike" => each::cast_like,
        "Add" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "Div" | "Mod" | "Mul" | "Sub" => each::binary,
        "BitShift" | "Pow" => each::binary_first,
        "PRelu" => each::prelu,
        "And" | "Equal" | "Greater" | "GreaterOrEqual" | "Less" | "LessOrEqual" | "Or" | "Xor" => {
            each::compare
        }
        "Not" => each::not,
        "Max" | "Mean" | "Min" | "Sum" => each::variadic,
        "Where" => each::select,
        "Dropout" => each::dropout,
        // Axes
        "Shape" => reshape::shape,
        "Size" => reshape::size,
        "Reshape" => reshape::reshape,
        "Flatten" => reshape::flatten,
        "Transpose" => reshape::transpose,
        "Squeeze" => reshape::squeeze,
        "Unsqueeze" => reshape::unsqueeze,
        "Expand" => reshape::expand,
        "Tile" => reshape::tile,
        "DepthToSpace" | "SpaceToDepth" => reshape::blocks,
        "Pad" => reshape::pad,
        "CenterCropPad" => reshape::center_crop_pad,
        // Slicing, gathering, joining
        "Slice" => pieces::slice,
        "Gather" => pieces::gather,
        "GatherElements" => pieces::gather_elements,
        "GatherND" => pieces::gather_nd,
        "Concat" => pieces::concat,
        "Split" => pieces::split,
        "TopK" => pieces::top_k,
        "OneHot" => pieces::one_hot,
        "NonZero" => pieces::non_zero,
        "Compress" => pieces::compress,
        "Unique" => pieces::unique,
        "Scatter" | "ScatterElements" | "ScatterND" => pieces::scatter,
        // Creation
        "Constant" => create::constant,
        "ConstantOfShape" => create::constant_of_shape,
        "Range" => create::range,
        "EyeLike" => create::eye_like,
        "RandomNormal" | "RandomUniform" => create::random,
        "Multinomial" => create::multinomial,
        // Products
        "MatMul" => matmul::mat_mul,
        "MatMulInteger" => matmul::mat_mul_integer,
        "QLinearMatMul" => matmul::qlinear_mat_mul,
        "Gemm" => matmul::gemm,
        "Einsum" => matmul::einsum,
        // Windows
        "Conv" => window::conv,
        "ConvInteger" => window::conv_integer,
        "QLinearConv" => window::qlinear_conv,
        "DeformConv" => window::deform_conv,
        "ConvTranspose" => window::conv_transpose,
        "AveragePool" | "LpPool" | "MaxPool" => window::pool,
        "GlobalAveragePool" | "GlobalLpPool" | "GlobalMaxPool" => window::global_pool,
        "MaxRoiPool" => window::max_roi_pool,
        "MaxUnpool" => window::max_unpool,
        "Col2Im" => window::col2im,
        "GridSample" => window::grid_sample,
        "AffineGrid" => window::affine_grid,
        "RoiAlign" => window::roi_align,
        "NonMaxSuppression" => window::non_max_suppression,
        "Resize" | "Upsample" => resize::resize,
        // Reductions
        "ReduceL1" | "ReduceL2" | "ReduceLogSum" | "ReduceLogSumExp" | "ReduceMax" | "ReduceMean"
        | "ReduceMin" | "ReduceProd" | "ReduceSum" | "ReduceSumSquare" => reduce::reduce,
        "ArgMax" | "ArgMin" => reduce::arg,
        "Det" => reduce::det,
        "NegativeLogLikelihoodLoss" | "SoftmaxCrossEntropyLoss" => reduce::loss,
        // Layers
        "BatchNormalization" => norm::batch_norm,
        "InstanceNormalization" => norm::instance_norm,
        "LayerNormalization" | "RMSNormalization" | "SimplifiedLayerNormalization" => norm::layer_norm,
        "GRU" | "LSTM" | "RNN" => rnn::rnn,
        "Attention" => attention::attention,
        "QuantizeLinear" => quantize::quantize,
        "DequantizeLinear" => quantize::dequantize,
        "DynamicQuantizeLinear" => quantize::dynamic,
        // Signals
        "DFT" => signal::dft,
        "STFT" => signal::stft,
        "BlackmanWindow" | "HammingWindow" | "HannWindow" => signal::window,
        "MelWeightMatrix" => signal::mel,
        // Sequences, optionals, strings, images
        "SequenceConstruct" => sequence::construct,
        "SequenceEmpty" => sequence::empty,
        "SequenceAt" => sequence::at,
        "SequenceInsert" => sequence::insert,
        "SequenceErase" => sequence::erase,
        "SequenceLength" => sequence::length,
        "SplitToSequence" => sequence::split,
        "ConcatFromSequence" => sequence::concat,
        "Optional" => sequence::optional,
        "OptionalGetElement" => sequence::get,
        "OptionalHasElement" => sequence::has,
        "StringConcat" => sequence::string_concat,
        "StringSplit" => sequence::string_split,
        "StringNormalizer" => sequence::string_normalizer,
        "TfIdfVectorizer" => sequence::tf_idf,
        "ImageDecoder" => sequence::image,
        _ => return None,
    })
}

fn ml_op(op: &str) -> Option<Rule> {
    Some(match op {
        "Binarizer" | "Imputer" => each::like,
        "Normalizer" | "Scaler" => ml::like_float,
        "LinearRegressor" | "SVMRegressor" | "TreeEnsembleRegressor" => ml::regressor,
        "LinearClassifier" | "SVMClassifier" | "TreeEnsembleClassifier" => ml::classifier,
        "TreeEnsemble" => ml::trees,
        "LabelEncoder" | "CategoryMapper" => ml::labels,
        "OneHotEncoder" => ml::one_hot,
        "FeatureVectorizer" => ml::features,
        "ArrayFeatureExtractor" => pieces::array_features,
        "ZipMap" => ml::zip_map,
        _ => return None,
    })
}

fn microsoft_op(op: &str) -> Option<Rule> {
    Some(match op {
        "BiasAdd" | "BiasGelu" | "BiasSoftmax" | "FastGelu" | "Gelu" | "GroupNorm" | "Inverse" | "MoE"
        | "QMoE" | "QuickGelu" | "RotaryEmbedding" | "Trilu" => each::like,
        "GemmaRotaryEmbedding" | "LongformerAttention" | "SkipGroupNorm" => attention::first_like,
        "BiasSplitGelu" => microsoft::half_last,
        "BiasDropout" => microsoft::bias_dropout,
        "IsAllFinite" => sequence::has,
        "LayerNormalization" | "SimplifiedLayerNormalization" => norm::layer_norm,
        "SkipLayerNormalization" | "SkipSimplifiedLayerNormalization" => norm::skip_layer_norm,
        "EmbedLayerNormalization" => norm::embed_layer_norm,
        "Attention" => attention::fused,
        "QAttention" => attention::quantized,
        "MultiHeadAttention" => attention::multi_head,
        "GroupQueryAttention" => attention::group_query,
        "RelativePositionBias" => attention::position_bias,
        "FusedConv" => microsoft::fused_conv,
        "NhwcConv" | "NhwcFusedConv" | "NhwcMaxPool" => microsoft::channels_last,
        "FusedMatMul" | "FusedMatMulActivation" | "TransposeMatMul" => matmul::fused_mat_mul,
        "FusedGemm" => matmul::gemm,
        "GemmFastGelu" => matmul::mat_mul,
        "GemmFloat8" => matmul::gemm_typed,
        "QGemm" => matmul::qgemm,
        "DynamicQuantizeMatMul" => matmul::dynamic_mat_mul,
        "MatMulIntegerToFloat" => matmul::mat_mul_to_float,
        "MatMulInteger16" => matmul::mat_mul_integer,
        "QLinearMatMul" => matmul::qlinear_mat_mul,
        "MatMulBnb4" | "MatMulFpQ4" | "MatMulNBits" => quantize::mat_mul_bits,
        "QuantizeLinear" => quantize::quantize,
        "DequantizeLinear" => quantize::dequantize,
        "QLinearAdd" | "QLinearMul" => quantize::qlinear_binary,
        "QLinearLeakyRelu" | "QLinearSigmoid" | "QLinearSoftmax" => quantize::qlinear_unary,
        "QLinearAveragePool" | "QLinearGlobalAveragePool" => quantize::qlinear_pool,
        "QLinearConcat" => quantize::qlinear_concat,
        "QLinearConv" => window::qlinear_conv,
        "QLinearReduceMean" => microsoft::qlinear_reduce,
        "QLinearWhere" => quantize::qlinear_where,
        "DynamicQuantizeLSTM" => rnn::rnn,
        "GatherBlockQuantized" => microsoft::gather_quantized,
        "CDist" => microsoft::cdist,
        "ExpandDims" => microsoft::expand_dims,
        "GatherND" => pieces::gather_nd,
        "MurmurHash3" => microsoft::hash,
        "Pad" => reshape::pad,
        "Rfft" => microsoft::rfft,
        _ => return None,
    })
}

/// Returns true if the rule does not depend on attributes, which may be unknown references in functions.
pub(super) fn ignores_attributes(domain: &str, op: &str) -> bool {
    let each = [each::like as Rule, each::unary_with_content, each::predicate, each::identity];
    find(domain, op).is_some_and(|rule| each.iter().any(|&r| std::ptr::fn_addr_eq(r, rule)))
}
