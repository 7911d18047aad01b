//! Interval arithmetic: bounds of values, from the operators that produce them.
//!
//! Signs are exact: a sum of non-negative floats is non-negative. Other bounds are widened where an operator
//! rounds.

use crate::framework::matching::is_plain;
use pare_graph::{
    NodeRef, ValueRef,
    ops::{ClipView, PadMode, PadView, PoolView, Trait},
};

/// The closed interval from `low` to `high`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    pub high: f64,
}

/// The longest chain of producers that is followed.
const DEPTH: usize = 32;

/// The largest number of values that are visited.
const VALUES: usize = 256;

/// Bounds are widened by this share: the relative rounding error of floats of 8 significant bits.
const ROUNDING: f64 = 1.0 / 128.0;

impl Interval {
    /// The bounds of an arbitrary value.
    pub const ALL: Self = Self { low: f64::NEG_INFINITY, high: f64::INFINITY };
    const UNIT: Self = Self { low: 0.0, high: 1.0 };

    /// The bounds of a value.
    pub fn of(value: ValueRef<'_>) -> Self {
        Search { remaining: VALUES }.value(value, DEPTH)
    }

    /// Returns whether it is contained in `other`.
    pub fn is_within(self, other: Self) -> bool {
        other.low <= self.low && self.high <= other.high
    }

    fn new(low: f64, high: f64) -> Self {
        if low.is_nan() || high.is_nan() { Self::ALL } else { Self { low, high } }
    }

    fn hull(self, other: Self) -> Self {
        Self::new(self.low.min(other.low), self.high.max(other.high))
    }

    /// The image under a monotone function.
    fn map(self, f: impl Fn(f64) -> f64) -> Self {
        Self::new(f(self.low), f(self.high))
    }

    fn rounded(self) -> Self {
        let out = |bound: f64, sign: f64| bound + sign * bound.abs() * ROUNDING;
        Self::new(out(self.low, -1.0), out(self.high, 1.0))
    }

    fn plus(self, other: Self) -> Self {
        Self::new(self.low + other.low, self.high + other.high).rounded()
    }

    fn minus(self) -> Self {
        Self::new(-self.high, -self.low)
    }

    fn abs(self) -> Self {
        let (a, b) = (self.low.abs(), self.high.abs());
        let contains_zero = self.low <= 0.0 && self.high >= 0.0;
        Self::new(if contains_zero { 0.0 } else { a.min(b) }, a.max(b))
    }

    /// The elementwise maximum of two values.
    fn max(self, other: Self) -> Self {
        Self::new(self.low.max(other.low), self.high.max(other.high))
    }

    /// The elementwise minimum of two values.
    fn min(self, other: Self) -> Self {
        Self::new(self.low.min(other.low), self.high.min(other.high))
    }

    fn times(self, other: Self) -> Self {
        // For bounds, 0·∞ = 0.
        let product = |a: f64, b: f64| if a == 0.0 || b == 0.0 { 0.0 } else { a * b };
        let corners =
            [(self.low, other.low), (self.low, other.high), (self.high, other.low), (self.high, other.high)];
        let products = corners.map(|(a, b)| product(a, b));
        let low = products.iter().copied().fold(f64::INFINITY, f64::min);
        Self::new(low, products.iter().copied().fold(f64::NEG_INFINITY, f64::max)).rounded()
    }
}

struct Search {
    /// Values that may still be visited.
    remaining: usize,
}

impl Search {
    fn value(&mut self, value: ValueRef<'_>, depth: usize) -> Interval {
        if let Ok(values) = value.constant_f64() {
            let bounds = values.iter().map(|&v| Interval::new(v, v)).reduce(Interval::hull);
            return bounds.unwrap_or(Interval::ALL);
        }
        self.remaining = self.remaining.saturating_sub(1);
        match value.graph.producer(value.id) {
            Some((id, _))
                if depth > 0 && self.remaining > 0 && value.dtype().is_none_or(|d| d.is_float()) =>
            {
                let at = value.graph.at(id);
                if is_plain(at).is_ok() {
                    self.node(at, depth - 1).unwrap_or(Interval::ALL)
                } else {
                    Interval::ALL
                }
            }
            _ => Interval::ALL,
        }
    }

    /// The bounds of the outputs of a node; `None` for operators without a rule.
    fn node(&mut self, at: NodeRef<'_>, depth: usize) -> Option<Interval> {
        let mut input = |slot: usize| Some(self.value(at.optional(slot)?, depth));
        Some(match at.op() {
            "Tanh" | "Softsign" | "Erf" | "Sin" | "Cos" => Interval::new(-1.0, 1.0),
            "LogSoftmax" => Interval { high: 0.0, ..Interval::ALL },
            "Abs" => input(0)?.abs(),
            "Relu" | "Clip" => {
                let view = ClipView::of(at).ok()?;
                input(0)?.map(|v| v.max(view.low).min(view.high))
            }
            "LeakyRelu" | "Elu" | "Celu" => {
                let default = if at.is("LeakyRelu") { 0.01 } else { 1.0 };
                let alpha = at.float("alpha", default);
                let leaky = at.is("LeakyRelu");
                let below = |v: f64| if leaky { alpha * v } else { -alpha };
                let x = input(0)?;
                let low = if alpha >= 0.0 && x.low < 0.0 { below(x.low) } else { x.low };
                if alpha < 0.0 { Interval::ALL } else { Interval::new(low, x.high.max(0.0)).rounded() }
            }
            "PRelu" => {
                let (x, slope) = (input(0)?, input(1)?);
                if x.low >= 0.0 { x } else { x.hull(x.times(slope)) }
            }
            "Neg" => input(0)?.minus(),
            "Add" => input(0)?.plus(input(1)?),
            "Sub" => input(0)?.plus(input(1)?.minus()),
            "Mul" => {
                let square = at.optional(0)?.id == at.optional(1)?.id;
                let product = input(0)?.times(input(1)?);
                if square { Interval::new(product.low.max(0.0), product.high) } else { product }
            }
            "Div" => {
                let (a, b) = (input(0)?, input(1)?);
                if b.low > 0.0 || b.high < 0.0 {
                    a.times(Interval::new(1.0 / b.high, 1.0 / b.low))
                } else {
                    return None;
                }
            }
            "Sum" => self.all(at, depth)?.into_iter().reduce(Interval::plus)?,
            "Mean" => {
                let all = self.all(at, depth)?;
                let count = all.len() as f64;
                all.into_iter().reduce(Interval::plus)?.map(|v| v / count).rounded()
            }
            "Concat" => self.all(at, depth)?.into_iter().reduce(Interval::hull)?,
            "Max" => self.all(at, depth)?.into_iter().reduce(Interval::max)?,
            "Min" => self.all(at, depth)?.into_iter().reduce(Interval::min)?,
            "Where" => input(1)?.hull(input(2)?),
            "ReduceMax" | "ReduceMin" | "GlobalMaxPool" => input(0)?,
            "MaxPool" if at.outputs().len() < 2 => input(0)?,
            "Pad" => match PadView::of(at).ok()?.mode {
                PadMode::Constant(value) => input(0)?.hull(Interval::new(value, value)),
                _ => input(0)?,
            },
            // Means round.
            "ReduceMean" | "GlobalAveragePool" => input(0)?.rounded(),
            "AveragePool" => {
                let padded = PoolView::of(at).ok()?.counts_padding;
                let x = input(0)?;
                if padded { x.hull(Interval::new(0.0, 0.0)) } else { x }.rounded()
            }
            // A sum of arbitrarily many values is only bounded by their sign.
            "ReduceSum" => {
                let x = input(0)?;
                let low = if x.low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
                Interval::new(low, if x.high <= 0.0 { 0.0 } else { f64::INFINITY })
            }
            _ if at.has(Trait::DataMovement) => input(0)?,
            _ if at.has(Trait::UnitInterval) => Interval::UNIT,
            _ if at.has(Trait::NonNegative) => Interval { low: 0.0, ..Interval::ALL },
            _ => return None,
        })
    }

    fn all(&mut self, at: NodeRef<'_>, depth: usize) -> Option<Vec<Interval>> {
        at.inputs().into_iter().map(|v| Some(self.value(v?, depth))).collect()
    }
}
