//! Arithmetic on the content of shape tensors.

use super::{cx::Cx, dims::MAX_CONTENT};
use crate::{Dim, ValueRef};

/// The largest number of producers that [`integral`] follows.
const MAX_STEPS: usize = 8;

/// The pairs of elements of two vectors after broadcasting.
fn pairs<'d>(a: &'d [Dim], b: &'d [Dim]) -> Option<impl Iterator<Item = (&'d Dim, &'d Dim)>> {
    let n = match (a.len(), b.len()) {
        (x, y) if x == y => x,
        (1, n) | (n, 1) => n,
        _ => return None,
    };
    let at = move |items: &'d [Dim], i: usize| if items.len() == 1 { &items[0] } else { &items[i] };
    Some((0..n).map(move |i| (at(a, i), at(b, i))))
}

/// Integer arithmetic of ONNX: division truncates towards zero. Sizes are not negative.
pub(super) fn binary(cx: &Cx) -> Option<Vec<Dim>> {
    let op = cx.at.op();
    let apply: fn(&Dim, &Dim) -> Dim = match op {
        "Add" => |a, b| a + b,
        "Sub" => |a, b| a - b,
        "Mul" => |a, b| a * b,
        "Div" => quotient,
        "Mod" => remainder,
        _ => return None,
    };
    if !cx.dtype(0)?.is_integer() || op == "Mod" && cx.at.int("fmod", 0) != 0 {
        return None;
    }
    let (a, b) = (cx.content(0)?, cx.content(1)?);
    Some(pairs(&a, &b)?.map(|(a, b)| apply(a, b)).collect())
}

fn quotient(a: &Dim, b: &Dim) -> Dim {
    match (a.known(), b.known()) {
        (Some(x), Some(y)) => x.checked_div(y).map_or_else(Dim::integer, Dim::from),
        (_, Some(y)) if y <= 0 => Dim::integer(),
        // Truncation is not rounding down if the numerator may be negative.
        _ if !a.is_of_sizes() || !b.is_of_sizes() => a.exact_div(b).unwrap_or_else(Dim::integer),
        _ => a.floor_div(b),
    }
}

/// The remainder with the sign of the divisor.
fn remainder(a: &Dim, b: &Dim) -> Dim {
    match b.known() {
        Some(y) if y > 0 && a.is_of_sizes() => a - &(&a.floor_div(b) * b),
        _ => Dim::integer(),
    }
}

/// Comparisons and logic, if they can be decided for every element.
pub(super) fn compare(cx: &Cx) -> Option<Vec<Dim>> {
    let op = cx.at.op();
    let (a, b) = (cx.content(0)?, cx.content(1)?);
    let decide = |(a, b): (&Dim, &Dim)| {
        let difference = (a - b).known();
        let answer = match op {
            "Equal" => match difference {
                Some(n) => n == 0,
                // Sizes are never negative.
                None if negative(a) && b.at_least(0) || negative(b) && a.at_least(0) => false,
                None => return None,
            },
            "Less" => difference? < 0,
            "LessOrEqual" => difference? <= 0,
            "Greater" => difference? > 0,
            "GreaterOrEqual" => difference? >= 0,
            "And" => a.known()? & b.known()? != 0,
            "Or" => a.known()? | b.known()? != 0,
            "Xor" => a.known()? ^ b.known()? != 0,
            _ => return None,
        };
        Some(Dim::from(i64::from(answer)))
    };
    pairs(&a, &b)?.map(decide).collect()
}

fn negative(a: &Dim) -> bool {
    a.known().is_some_and(|n| n < 0)
}

/// `Where`: elements with a known condition or equal operands.
pub(super) fn select(cx: &Cx) -> Option<Vec<Dim>> {
    let (condition, a, b) = (cx.content(0)?, cx.content(1)?, cx.content(2)?);
    let n = [condition.len(), a.len(), b.len()].into_iter().max()?;
    let at = |items: &[Dim], i: usize| match items.len() {
        1 => Some(items[0].clone()),
        len if len == n => Some(items[i].clone()),
        _ => None,
    };
    let choose = |i| {
        let (a, b) = (at(&a, i)?, at(&b, i)?);
        Some(match at(&condition, i)?.known() {
            Some(0) => b,
            Some(_) => a,
            None if a == b => a,
            None => Dim::integer(),
        })
    };
    (0..n).map(choose).collect()
}

/// `Max`, `Min` and `Sum`.
pub(super) fn extremes(cx: &Cx) -> Option<Vec<Dim>> {
    let apply: fn(&Dim, &Dim) -> Dim = match cx.at.op() {
        "Max" => Dim::maximum,
        "Min" => Dim::minimum,
        "Sum" => |a, b| a + b,
        _ => return None,
    };
    let mut items = cx.content(0)?.into_owned();
    for slot in 1..cx.inputs.len() {
        let next = cx.content(slot)?;
        let combined = pairs(&items, &next)?.map(|(a, b)| apply(a, b)).collect();
        items = combined;
    }
    Some(items)
}

/// `Neg`, `Abs`, `Sign`, `Floor`, `Ceil`, `Round`, `Relu` of an element.
pub(super) fn unary(cx: &Cx) -> Option<Vec<Dim>> {
    let op = cx.at.op();
    let apply = |d: &Dim| match (op, d.known()) {
        ("Neg", _) => &Dim::from(0_i64) - d,
        ("Abs", Some(n)) => n.checked_abs().map_or_else(Dim::integer, Dim::from),
        ("Relu", Some(n)) => Dim::from(n.max(0)),
        ("Sign", Some(n)) => Dim::from(n.signum()),
        ("Abs" | "Relu", None) if d.at_least(0) => d.clone(),
        ("Sign", None) if d.at_least(1) => Dim::from(1_i64),
        _ => Dim::integer(),
    };
    Some(cx.content(0)?.iter().map(apply).collect())
}

/// The elements of a float tensor that a few exact operators (`Cast`, `Mul`, `Div`, `Floor`, `Ceil`) compute
/// from integers, as exporters write for scaled sizes; truncated to integers, for a `Cast`.
pub(super) fn integral(cx: &Cx, slot: usize) -> Option<Vec<Dim>> {
    cx.dtype(slot)?.is_float().then_some(())?;
    let fractions = fractions(cx.input(slot)?, MAX_STEPS)?;
    Some(fractions.iter().map(|f| f.0.floor_div(&Dim::from(f.1))).collect())
}

/// The elements as a numerator and a denominator that is a power of two.
fn fractions(value: ValueRef<'_>, steps: usize) -> Option<Vec<(Dim, i64)>> {
    if let Some(content) = value.value().fact.content() {
        let sizes = content.iter().all(|d| d.at_least(0) || d.is_of_sizes());
        return sizes.then(|| content.iter().map(|d| (d.clone(), 1)).collect());
    }
    if value.rank().is_ok_and(|r| r <= 1)
        && let Some(tensor) = value.dtype().filter(|d| d.is_float()).and_then(|_| value.constant().ok())
    {
        let items = if tensor.len() <= MAX_CONTENT { tensor.to_f64()? } else { return None };
        return items.into_iter().map(|v| dyadic(v).map(|(n, d)| (Dim::from(n), d))).collect();
    }
    let at = value.producer().filter(|at| steps > 0 && at.node().domain().is_empty())?;
    let of = |slot| fractions(at.input(slot).ok()?, steps - 1);
    match at.op() {
        // A cast to integers has content.
        "Cast" if value.dtype().is_some_and(crate::DataType::is_float) => of(0),
        "Identity" | "Unsqueeze" | "Squeeze" => of(0),
        "Floor" => Some(of(0)?.iter().map(|(n, d)| (n.floor_div(&Dim::from(*d)), 1)).collect()),
        "Ceil" => Some(of(0)?.iter().map(|(n, d)| (n.ceil_div(&Dim::from(*d)), 1)).collect()),
        "Mul" | "Div" => {
            let (a, mut b) = (of(0)?, of(1)?);
            if at.op() == "Div" {
                // Only constants with an exact inverse.
                let inverse = |(n, d): &(Dim, i64)| {
                    let n = n.known().filter(|&n| n > 0 && n.count_ones() == 1)?;
                    Some((Dim::from(*d), n))
                };
                b = b.iter().map(inverse).collect::<Option<_>>()?;
            }
            let n = a.len().max(b.len());
            let pick = |v: &[(Dim, i64)], i: usize| v.get(if v.len() == 1 { 0 } else { i }).cloned();
            let times = |i| {
                let ((n, d), (m, e)) = (pick(&a, i)?, pick(&b, i)?);
                Some((&n * &m, d.checked_mul(e).filter(|&p| p <= 1 << 40)?))
            };
            (0..n).map(times).collect()
        }
        _ => None,
    }
}

/// Numerator and denominator of a non-negative float that is exactly `n / 2^k`, with small `n` and `k`.
pub(super) fn dyadic(value: f64) -> Option<(i64, i64)> {
    let scaled = value * 65536.0;
    let exact = value >= 0.0 && scaled.fract() == 0.0 && scaled < 2_f64.powi(40);
    let (mut n, mut d) = if exact { (scaled as i64, 65536) } else { return None };
    while n % 2 == 0 && d > 1 {
        (n, d) = (n / 2, d / 2);
    }
    Some((n, d))
}
