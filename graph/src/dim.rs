//! Sizes of dimensions as expressions over symbols.
//!
//! A [`Dim`] is a polynomial with integer coefficients in normal form, so expressions that are equal as
//! polynomials compare equal: `2·(N+1) - 2` is `2·N`. Floor divisions, maxima and minima are atoms of the
//! polynomial. A result that would overflow is a fresh unknown.

mod display;
#[cfg(test)]
mod tests;

use std::{
    collections::BTreeMap,
    sync::Arc,
    sync::atomic::{AtomicU64, Ordering},
};

/// The size of a dimension, or an element of a shape tensor: an integer or an expression over symbols.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Dim(Repr);

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Repr {
    Known(i64),
    /// Coefficients by monomial; not constant, without zero coefficients.
    Sum(Arc<BTreeMap<Monomial, i64>>),
}

/// A size without a name, equal only to itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnknownSize(u64);

fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A sorted product of atoms; the empty product is 1.
type Monomial = Vec<Atom>;

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Atom {
    /// A symbol of the model (`dim_param`).
    Symbol(Arc<str>),
    Unknown(UnknownSize),
    /// An unknown element of a shape tensor, which may be negative.
    Integer(u64),
    FloorDiv(Box<(Dim, Dim)>),
    Max(Box<(Dim, Dim)>),
    Min(Box<(Dim, Dim)>),
}

/// Limits of the terms and atoms, including nested ones, of an expression. Larger expressions become unknown,
/// so every operation takes bounded time.
const MAX_TERMS: usize = 32;
const MAX_ATOMS: usize = 128;

impl Dim {
    /// The symbol `name` of the model.
    pub fn symbol(name: &str) -> Self {
        Self::atom(Atom::Symbol(name.into()))
    }

    /// An unknown size: equal to its clones, different from all others.
    pub fn unknown() -> Self {
        Self::atom(Atom::Unknown(UnknownSize(next())))
    }

    /// An unknown element of a shape tensor. Unlike an unknown size it may be negative, such as the -1 of
    /// `Reshape`.
    pub fn integer() -> Self {
        Self::atom(Atom::Integer(next()))
    }

    fn atom(atom: Atom) -> Self {
        Self(Repr::Sum(Arc::new(BTreeMap::from([(vec![atom], 1)]))))
    }

    /// The integer, if the expression is constant.
    pub fn known(&self) -> Option<i64> {
        match self.0 {
            Repr::Known(n) => Some(n),
            Repr::Sum(_) => None,
        }
    }

    /// The integer, if the expression is constant and not negative.
    pub fn size(&self) -> Option<usize> {
        usize::try_from(self.known()?).ok()
    }

    /// The name, if the expression is a single symbol of the model.
    pub fn as_symbol(&self) -> Option<&str> {
        match self.single_atom()? {
            Atom::Symbol(name) => Some(name),
            _ => None,
        }
    }

    /// The unknown size, if the expression is a single one.
    pub fn as_unknown(&self) -> Option<UnknownSize> {
        match self.single_atom()? {
            Atom::Unknown(size) => Some(*size),
            _ => None,
        }
    }

    /// Returns true if the expression is a single unknown.
    pub fn is_unknown(&self) -> bool {
        matches!(self.single_atom(), Some(Atom::Unknown(_) | Atom::Integer(_)))
    }

    /// Returns true if the expression contains no integers that are not sizes (see [`Dim::integer`]).
    pub fn is_of_sizes(&self) -> bool {
        let Repr::Sum(terms) = &self.0 else { return true };
        terms.keys().flatten().all(|atom| match atom {
            Atom::Symbol(_) | Atom::Unknown(_) => true,
            Atom::Integer(_) => false,
            Atom::FloorDiv(p) | Atom::Max(p) | Atom::Min(p) => p.0.is_of_sizes() && p.1.is_of_sizes(),
        })
    }

    fn single_atom(&self) -> Option<&Atom> {
        let Repr::Sum(terms) = &self.0 else { return None };
        match terms.iter().next() {
            Some((monomial, 1)) if terms.len() == 1 && monomial.len() == 1 => monomial.first(),
            _ => None,
        }
    }

    fn terms(&self) -> BTreeMap<Monomial, i64> {
        match &self.0 {
            Repr::Known(0) => BTreeMap::new(),
            Repr::Known(n) => BTreeMap::from([(vec![], *n)]),
            Repr::Sum(terms) => terms.as_ref().clone(),
        }
    }

    fn from_terms(mut terms: BTreeMap<Monomial, i64>) -> Self {
        terms.retain(|_, c| *c != 0);
        match terms.iter().next() {
            None => Self(Repr::Known(0)),
            Some((monomial, &n)) if terms.len() == 1 && monomial.is_empty() => Self(Repr::Known(n)),
            _ if terms.len() > MAX_TERMS || atoms(&terms) > MAX_ATOMS => Self::unknown(),
            _ => Self(Repr::Sum(Arc::new(terms))),
        }
    }

    fn combine(&self, other: &Self, sign: i64) -> Self {
        if let (Some(a), Some(b)) = (self.known(), other.known()) {
            let sum = b.checked_mul(sign).and_then(|b| a.checked_add(b));
            return sum.map_or_else(Self::unknown, Self::from);
        }
        let mut terms = self.terms();
        for (monomial, c) in other.terms() {
            let entry = terms.entry(monomial).or_insert(0);
            match c.checked_mul(sign).and_then(|c| entry.checked_add(c)) {
                Some(sum) => *entry = sum,
                None => return Self::unknown(),
            }
        }
        Self::from_terms(terms)
    }

    fn product(&self, other: &Self) -> Self {
        let mut terms = BTreeMap::<Monomial, i64>::new();
        for (m1, c1) in self.terms() {
            for (m2, c2) in other.terms() {
                let mut monomial = [m1.as_slice(), m2.as_slice()].concat();
                monomial.sort();
                let entry = terms.entry(monomial).or_insert(0);
                match c1.checked_mul(c2).and_then(|c| entry.checked_add(c)) {
                    Some(sum) => *entry = sum,
                    None => return Self::unknown(),
                }
            }
        }
        Self::from_terms(terms)
    }

    /// The quotient, if the division has no remainder for any values of the symbols.
    pub fn exact_div(&self, by: &Self) -> Option<Self> {
        let divisor = by.terms();
        let (by_monomial, &by_factor) = divisor.iter().next()?;
        if divisor.len() != 1 {
            return (self == by).then(|| Self::from(1));
        }
        let mut quotient = BTreeMap::new();
        for (monomial, c) in self.terms() {
            let mut factors = monomial;
            for atom in by_monomial {
                factors.remove(factors.iter().position(|a| a == atom)?);
            }
            if c.checked_rem(by_factor)? != 0 {
                return None;
            }
            quotient.insert(factors, c / by_factor);
        }
        Some(Self::from_terms(quotient))
    }

    /// `⌊self / by⌋`.
    #[must_use]
    pub fn floor_div(&self, by: &Self) -> Self {
        if let (Some(a), Some(b)) = (self.known(), by.known()) {
            let quotient = a.checked_div_euclid(b).filter(|_| b > 0);
            return quotient.map_or_else(Self::unknown, Self::from);
        }
        if let Some(quotient) = self.exact_div(by) {
            return quotient;
        }
        let Some(d) = by.known() else { return self.nest(by, Atom::FloorDiv) };
        if d <= 0 {
            return Self::unknown();
        }
        if let Some(flat) = self.nested_floor(d) {
            return flat;
        }
        // ⌊(d·q + r) / d⌋ = q + ⌊r / d⌋, a normal form of quotients.
        let (mut quotient, mut remainder) = (BTreeMap::new(), BTreeMap::new());
        for (monomial, c) in self.terms() {
            quotient.insert(monomial.clone(), c.div_euclid(d));
            remainder.insert(monomial, c.rem_euclid(d));
        }
        let remainder = Self::from_terms(remainder);
        let is_constant = remainder.known().is_some();
        let fraction = if is_constant { Self::from(0) } else { remainder.nest(by, Atom::FloorDiv) };
        &Self::from_terms(quotient) + &fraction
    }

    /// `⌊(⌊a/m⌋ + b) / d⌋ = ⌊(a + m·b) / (m·d)⌋`, as for successive strided convolutions.
    fn nested_floor(&self, d: i64) -> Option<Self> {
        let Repr::Sum(terms) = &self.0 else { return None };
        let b = terms.get(&vec![]).copied().unwrap_or(0);
        let mut others = terms.iter().filter(|(monomial, _)| !monomial.is_empty());
        let (Some((monomial, 1)), None) = (others.next(), others.next()) else { return None };
        let [Atom::FloorDiv(inner)] = monomial.as_slice() else { return None };
        let m = inner.1.known().filter(|&m| m > 0)?;
        let (shift, divisor) = (m.checked_mul(b)?, m.checked_mul(d)?);
        Some((&inner.0 + &Self::from(shift)).floor_div(&Self::from(divisor)))
    }

    /// `⌈self / by⌉`.
    #[must_use]
    pub fn ceil_div(&self, by: &Self) -> Self {
        match by.known() {
            Some(d) if d > 0 => (self + &Self::from(d - 1)).floor_div(by),
            _ => &Self::from(0) - &(&Self::from(0) - self).floor_div(by),
        }
    }

    /// The larger of the two.
    #[must_use]
    pub fn maximum(&self, other: &Self) -> Self {
        self.extremum(other, i64::max, Atom::Max)
    }

    /// The smaller of the two.
    #[must_use]
    pub fn minimum(&self, other: &Self) -> Self {
        self.extremum(other, i64::min, Atom::Min)
    }

    /// The size of an axis that has both sizes: the more specific one, a number before an expression before
    /// an unknown. `None` if the numbers differ; different expressions may have equal values.
    pub(crate) fn unify(&self, other: &Self) -> Option<Self> {
        match (self.known(), other.known()) {
            (Some(a), Some(b)) if a != b => None,
            (None, Some(_)) => Some(other.clone()),
            (None, None) if self.is_unknown() => Some(other.clone()),
            _ => Some(self.clone()),
        }
    }

    /// Returns true if the expression is the minimum of `other` and something else.
    pub(crate) fn is_minimum_with(&self, other: &Self) -> bool {
        matches!(self.single_atom(), Some(Atom::Min(p)) if p.0 == *other || p.1 == *other)
    }

    fn extremum(&self, other: &Self, f: fn(i64, i64) -> i64, atom: fn(Box<(Self, Self)>) -> Atom) -> Self {
        // `a` and `a + n` are comparable for every `a`.
        match (self - other).known() {
            Some(n) if f(n, 0) == n => return self.clone(),
            Some(_) => return other.clone(),
            None => {}
        }
        let (a, b) = if self <= other { (self, other) } else { (other, self) };
        a.nest(b, atom)
    }

    fn nest(&self, other: &Self, atom: fn(Box<(Self, Self)>) -> Atom) -> Self {
        if self.atoms() + other.atoms() >= MAX_ATOMS {
            return Self::unknown();
        }
        Self::atom(atom(Box::new((self.clone(), other.clone()))))
    }

    fn atoms(&self) -> usize {
        match &self.0 {
            Repr::Known(_) => 0,
            Repr::Sum(terms) => atoms(terms),
        }
    }

    /// The value with `size(s)` for every symbol `s`; `None` if a symbol or unknown has no value, or on
    /// overflow.
    pub fn eval(&self, size: &dyn Fn(&str) -> Option<i64>) -> Option<i64> {
        self.eval_with(size, &|_| None)
    }

    /// As [`eval`](Self::eval), with `unknown(u)` for every unknown size `u`.
    pub fn eval_with(
        &self,
        size: &dyn Fn(&str) -> Option<i64>,
        unknown: &dyn Fn(UnknownSize) -> Option<i64>,
    ) -> Option<i64> {
        let mut sum = 0_i64;
        for (monomial, coefficient) in self.terms() {
            let mut term = coefficient;
            for atom in &monomial {
                let pair =
                    |p: &(Self, Self)| Some((p.0.eval_with(size, unknown)?, p.1.eval_with(size, unknown)?));
                let value = match atom {
                    Atom::Symbol(name) => size(name)?,
                    Atom::Unknown(size) => unknown(*size)?,
                    Atom::Integer(_) => return None,
                    Atom::FloorDiv(p) => {
                        let (a, b) = pair(p)?;
                        a.checked_div_euclid(b)?
                    }
                    Atom::Max(p) => pair(p).map(|(a, b)| a.max(b))?,
                    Atom::Min(p) => pair(p).map(|(a, b)| a.min(b))?,
                };
                term = term.checked_mul(value)?;
            }
            sum = sum.checked_add(term)?;
        }
        Some(sum)
    }

    /// Returns true if the value is at least `bound`, given that symbols are at least 1 and unknown sizes at
    /// least 0.
    pub fn at_least(&self, bound: i64) -> bool {
        self.least().is_some_and(|n| n >= bound)
    }

    /// A lower bound: the sum of the bounds of the terms; `None` if a term is subtracted.
    fn least(&self) -> Option<i64> {
        let of_atom = |a: &Atom| match a {
            Atom::Symbol(_) => Some(1),
            Atom::Unknown(_) => Some(0),
            Atom::Integer(_) => None,
            Atom::FloorDiv(p) => p.0.least()?.checked_div_euclid(p.1.known()?),
            Atom::Max(p) => p.0.least().max(p.1.least()),
            Atom::Min(p) => Some(p.0.least()?.min(p.1.least()?)),
        };
        self.terms().iter().try_fold(0_i64, |sum, (monomial, &c)| {
            let mut term = if c > 0 || monomial.is_empty() { c } else { return None };
            for atom in monomial {
                term = term.checked_mul(of_atom(atom).filter(|&n| n >= 0)?)?;
            }
            sum.checked_add(term)
        })
    }
}

/// The number of atoms, including nested ones.
fn atoms(terms: &BTreeMap<Monomial, i64>) -> usize {
    let of_atom = |a: &Atom| match a {
        Atom::Symbol(_) | Atom::Unknown(_) | Atom::Integer(_) => 1,
        Atom::FloorDiv(p) | Atom::Max(p) | Atom::Min(p) => 1 + p.0.atoms() + p.1.atoms(),
    };
    terms.keys().flatten().map(of_atom).sum()
}

impl From<i64> for Dim {
    fn from(n: i64) -> Self {
        Self(Repr::Known(n))
    }
}

impl From<i32> for Dim {
    fn from(n: i32) -> Self {
        Self(Repr::Known(n.into()))
    }
}

impl From<usize> for Dim {
    fn from(n: usize) -> Self {
        i64::try_from(n).map_or_else(|_| Self::unknown(), Self::from)
    }
}

impl std::ops::Add for &Dim {
    type Output = Dim;
    fn add(self, other: Self) -> Dim {
        self.combine(other, 1)
    }
}

impl std::ops::Sub for &Dim {
    type Output = Dim;
    fn sub(self, other: Self) -> Dim {
        self.combine(other, -1)
    }
}

impl std::ops::Mul for &Dim {
    type Output = Dim;
    fn mul(self, other: Self) -> Dim {
        self.product(other)
    }
}
