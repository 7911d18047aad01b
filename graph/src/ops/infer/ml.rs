//! Operators of ai.onnx.ml, on feature matrices `[N,C]`.

use super::cx::{Cx, Facts, one, tensor};
use crate::{Attribute, DataType, Dim, Fact};

/// Shape of the input, element type float.
pub(super) fn like_float(cx: &Cx) -> Facts {
    one(Some(DataType::Float), cx.dims(0))
}

/// The number of rows of the input; a vector is one row.
fn rows(cx: &Cx) -> Dim {
    match cx.shape(0) {
        Some([_]) => Dim::from(1_i64),
        _ => cx.dim(0, 0),
    }
}

/// `LinearRegressor`, `TreeEnsemble…Regressor`, `SVMRegressor`.
pub(super) fn regressor(cx: &Cx) -> Facts {
    let columns = match cx.at.op() {
        "LinearRegressor" => cx.at.int("targets", 1),
        "SVMRegressor" => 1,
        _ => cx.at.int("n_targets", 1),
    };
    one(Some(DataType::Float), Some(vec![rows(cx), Dim::from(columns)]))
}

/// `TreeEnsemble`: element type of the input.
pub(super) fn trees(cx: &Cx) -> Facts {
    one(cx.dtype(0), Some(vec![rows(cx), Dim::from(cx.at.int("n_targets", 1))]))
}

/// Classifiers: a label and scores per row.
pub(super) fn classifier(cx: &Cx) -> Facts {
    let strings = ["classlabels_strings", "classlabels_ints", "classlabels_int64s"];
    let labels = strings.iter().find_map(|name| match cx.at.attr(name)? {
        Attribute::Strings(v) if !v.is_empty() => Some((DataType::String, v.len())),
        Attribute::Ints(v) if !v.is_empty() => Some((DataType::Int64, v.len())),
        _ => None,
    });
    let (dtype, n) = labels.map_or((Some(DataType::Int64), None), |(d, n)| (Some(d), Some(n)));
    // `SVMClassifier` without probabilities returns a score for each pair of classes.
    let scores = match (cx.at.op(), n) {
        ("SVMClassifier", _) | (_, None) => Dim::unknown(),
        (_, Some(n)) => Dim::from(n),
    };
    let rows = rows(cx);
    Ok(vec![tensor(dtype, Some(vec![rows.clone()])), tensor(Some(DataType::Float), Some(vec![rows, scores]))])
}

/// `LabelEncoder`, `CategoryMapper`: shape of the input.
pub(super) fn labels(cx: &Cx) -> Facts {
    let has = |name| cx.at.attr(name).is_some();
    let dtype = match cx.at.attr("values_tensor") {
        Some(Attribute::Tensor(t)) => Some(t.dtype()),
        _ if has("values_strings") => Some(DataType::String),
        _ if has("values_int64s") => Some(DataType::Int64),
        _ if has("values_floats") => Some(DataType::Float),
        // Older versions map between strings and integers.
        _ => match cx.dtype(0) {
            Some(DataType::String) => Some(DataType::Int64),
            Some(DataType::Int64) => Some(DataType::String),
            _ => None,
        },
    };
    one(dtype, cx.dims(0))
}

/// `OneHotEncoder`: a new last axis for the categories.
pub(super) fn one_hot(cx: &Cx) -> Facts {
    let categories = match (cx.at.attr("cats_int64s"), cx.at.attr("cats_strings")) {
        (Some(Attribute::Ints(v)), _) => Dim::from(v.len()),
        (_, Some(Attribute::Strings(v))) => Dim::from(v.len()),
        _ => Dim::unknown(),
    };
    one(Some(DataType::Float), cx.shape(0).map(|s| [s, &[categories]].concat()))
}

/// `FeatureVectorizer`: concatenated columns.
pub(super) fn features(cx: &Cx) -> Facts {
    let sum = cx.at.ints("inputdimensions").and_then(|d| d.iter().try_fold(0_i64, |s, &d| s.checked_add(d)));
    one(Some(DataType::Float), Some(vec![rows(cx), sum.map_or_else(Dim::unknown, Dim::from)]))
}

/// `ZipMap`: a sequence of maps.
pub(super) fn zip_map(_: &Cx) -> Facts {
    Ok(vec![Fact::Sequence(Box::new(Fact::Other))])
}
