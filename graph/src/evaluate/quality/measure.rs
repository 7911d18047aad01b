//! The measure by which each output of a changed model is compared with the original's.

use super::TokenMask;
use crate::{DataType, Tensor};
use std::{borrow::Cow, fmt, str::FromStr};

/// The measure by which an output is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputMeasure {
    /// Class scores along an axis; negative axes count from the last. Divergence, agreement and accuracy.
    Classes {
        /// The axis of classes.
        axis: i64,
    },
    /// Rows whose direction matters, along the last axis: embeddings. Cosine, and the order of neighbours.
    Cosine,
    /// Squared error relative to the variance of the original.
    Error,
    /// The share of elements that differ.
    Exact,
    /// None.
    Ignore,
}

impl OutputMeasure {
    /// Class scores along the last axis.
    pub const CLASSES: Self = Self::Classes { axis: -1 };

    /// The measure of an output of which only the type is known.
    pub fn of_type(dtype: DataType) -> Self {
        if dtype.is_float() { Self::Error } else { Self::Exact }
    }

    /// The name, as [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Classes { .. } => "classes",
            Self::Cosine => "cosine",
            Self::Error => "error",
            Self::Exact => "exact",
            Self::Ignore => "ignore",
        }
    }
}

impl fmt::Display for OutputMeasure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for OutputMeasure {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let all = [Self::CLASSES, Self::Cosine, Self::Error, Self::Exact, Self::Ignore];
        let names = all.map(Self::name).join(", ");
        let found = all.into_iter().find(|measure| measure.name() == text);
        found.ok_or_else(|| format!("there is no measure `{text}`; there are {names}"))
    }
}

/// The measure of an output, and the evidence for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeasuredOutput {
    /// The output.
    pub name: String,
    /// Its measure.
    pub measure: OutputMeasure,
    /// The evidence, as a clause: `a softmax computes it`.
    pub why: String,
    /// True if its second axis counts the tokens of [`QualityMeasures::mask`].
    pub per_token: bool,
}

/// The measures of the outputs of a model, and the input that masks its padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QualityMeasures {
    /// The outputs. Others are measured by their type.
    pub outputs: Vec<MeasuredOutput>,
    /// The input `[samples, tokens]` whose zeros switch tokens off.
    pub mask: Option<String>,
}

impl QualityMeasures {
    /// The entry of an output.
    pub fn get(&self, name: &str) -> Option<&MeasuredOutput> {
        self.outputs.iter().find(|output| output.name == name)
    }

    /// The measure of an output of this type.
    pub fn measure(&self, name: &str, dtype: DataType) -> OutputMeasure {
        self.get(name).map_or(OutputMeasure::of_type(dtype), |output| output.measure)
    }

    /// The tokens that are switched on, among the inputs of a run; `None` if none are switched off.
    pub fn tokens<'t>(&self, inputs: impl IntoIterator<Item = (&'t str, &'t Tensor)>) -> Option<TokenMask> {
        let mask = self.mask.as_deref()?;
        let (_, tensor) = inputs.into_iter().find(|(name, _)| *name == mask)?;
        TokenMask::of(tensor)
    }

    /// An output without the tokens that are switched off.
    pub fn without_padding<'t>(
        &self,
        name: &str,
        tensor: &'t Tensor,
        tokens: Option<&TokenMask>,
    ) -> Cow<'t, Tensor> {
        let tokens = tokens.filter(|_| self.get(name).is_some_and(|output| output.per_token));
        tokens.and_then(|tokens| tokens.selected(tensor)).map_or(Cow::Borrowed(tensor), Cow::Owned)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["classes", "cosine", "error", "exact", "ignore"] {
            assert_eq!(name.parse::<OutputMeasure>().unwrap().to_string(), name);
        }
        let error = "kl".parse::<OutputMeasure>().unwrap_err();
        assert_eq!(error, "there is no measure `kl`; there are classes, cosine, error, exact, ignore");
    }
}
