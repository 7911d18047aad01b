//! Attributes that became inputs.

use super::form::Form;
use pare_graph::{Attribute, DataType, Decline, Tensor, ValueRef, ops::schema};

/// An attribute of one version of an operator that is an input of the next.
#[derive(Clone, Copy)]
pub(super) struct Move {
    /// The name of both.
    pub(super) name: &'static str,
    /// The slot of the input.
    pub(super) slot: usize,
    pub(super) kind: MoveKind,
}

/// The type of a moved attribute, and that of the input.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum MoveKind {
    /// A list of integers, and a vector.
    Ints,
    /// An integer, and a vector of one element.
    IntVector,
    /// An integer, and a scalar. If the attribute is absent, it is the first number, and if the input is
    /// absent, the second.
    IntScalar(i64, i64),
    /// A list of floats, and a vector.
    Floats,
    /// A float, and a scalar.
    Float,
    /// A float, and a scalar of the type of the first input.
    FloatOfInput,
    /// No attribute: an input that has to consist of ones if there is none.
    Ones,
}

/// The form with inputs instead of attributes. Attributes that have their defaults, and empty lists of axes,
/// are omitted: the defaults of the inputs are the same.
pub(super) fn to_inputs(mut form: Form<'_>, moves: &[Move]) -> Result<pare_graph::Patch, Decline> {
    for &Move { name, slot, kind } in moves {
        let default = form
            .at
            .graph
            .opset("")
            .and_then(|version| schema("", form.at.op(), version - 1)?.attribute(name)?.default());
        let value = form.take(name)?.filter(|value| Some(value) != default.as_ref());
        if let Some(tensor) = tensor(&form, name, kind, value)? {
            form.connect_constant(slot, name, tensor);
        }
    }
    form.finish_if_changed()
}

fn tensor(
    form: &Form<'_>,
    name: &str,
    kind: MoveKind,
    value: Option<Attribute>,
) -> Result<Option<Tensor>, Decline> {
    let at = form.at;
    Ok(match (kind, value) {
        (MoveKind::IntScalar(..), Some(Attribute::Int(v))) => Some(Tensor::scalar(v)),
        (MoveKind::IntScalar(absent, _), None) => Some(Tensor::scalar(absent)),
        (_, None) => None,
        (MoveKind::Ints, Some(Attribute::Ints(v))) if v.is_empty() && name == "axes" => None,
        (MoveKind::Ints, Some(Attribute::Ints(v))) => Some(Tensor::vector(&v)),
        (MoveKind::IntVector, Some(Attribute::Int(v))) => Some(Tensor::vector(&[v])),
        (MoveKind::Floats, Some(Attribute::Floats(v))) => Some(Tensor::vector(&v)),
        (MoveKind::Float, Some(Attribute::Float(v))) => Some(Tensor::scalar(v)),
        (MoveKind::FloatOfInput, Some(Attribute::Float(v))) => {
            let unknown =
                || Decline::because(format!("the element type of the input of {} is unknown", at.describe()));
            let dtype = at.input(0)?.dtype().ok_or_else(unknown)?;
            let tensor = Tensor::from_f64(dtype, &[], &[f64::from(v)]);
            Some(tensor.map_err(|e| Decline::because(format!("`{name}` of {}: {e}", at.describe())))?)
        }
        (_, Some(_)) => {
            return Err(Decline::because(format!("`{name}` of {} has another type", at.describe())));
        }
    })
}

/// Changes the form to have attributes instead of inputs, which have to be constants.
pub(super) fn to_attributes(form: &mut Form<'_>, moves: &[Move]) -> Result<(), Decline> {
    for &Move { name, slot, kind } in moves {
        let attribute = match (form.at.optional(slot), kind) {
            (Some(input), kind) => attribute(form, name, kind, input)?,
            (None, MoveKind::IntScalar(_, absent)) => Some(absent.into()),
            (None, _) => None,
        };
        form.connect(slot, None);
        if let Some(value) = attribute {
            form.set(name, value);
        }
    }
    Ok(())
}

fn attribute(
    form: &Form<'_>,
    name: &str,
    kind: MoveKind,
    input: ValueRef<'_>,
) -> Result<Option<Attribute>, Decline> {
    let describe = || form.at.describe();
    let constant = input.constant().map_err(|_| {
        Decline::because(format!("`{name}` of {} is computed, and an attribute before", describe()))
    })?;
    let other = || Decline::because(format!("`{name}` of {} is no attribute of the old version", describe()));
    let numbers = constant.to_f64().ok_or_else(other)?;
    let ints = || constant.to_i64().ok_or_else(other);
    let first = || numbers.first().copied().filter(|_| numbers.len() == 1).ok_or_else(other);
    // An attribute is a float of single precision.
    let float = |v: f64| Some(v as f32).filter(|f| f64::from(*f) == v || v.is_nan()).ok_or_else(other);
    Ok(Some(match kind {
        MoveKind::Ints => ints()?.into(),
        MoveKind::IntVector | MoveKind::IntScalar(..) => {
            ints()?.first().copied().filter(|_| constant.len() == 1).ok_or_else(other)?.into()
        }
        MoveKind::Floats if constant.dtype() == DataType::Float => {
            Attribute::Floats(numbers.iter().map(|&v| float(v)).collect::<Result<_, _>>()?)
        }
        MoveKind::Float | MoveKind::FloatOfInput => float(first()?)?.into(),
        MoveKind::Ones if numbers.iter().all(|&v| v == 1.0) => return Ok(None),
        MoveKind::Floats | MoveKind::Ones => return Err(other()),
    }))
}
