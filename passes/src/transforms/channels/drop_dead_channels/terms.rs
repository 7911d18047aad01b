//! Symbolic channel values, known from the weights alone: constants and multiples of a common base.

use pare_graph::ValueId;
use std::collections::HashMap;

/// The elements at one index of an axis: `scale` times an unknown tensor that `base` identifies. Terms of
/// equal base, in values of equal shape, are multiples of each other element by element: operators that move
/// elements create new bases.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Identifies the tensor; [`ONE`] is a tensor of ones.
    pub base: u32,
    /// The factor.
    pub scale: f64,
}

/// The base of constants: a tensor of ones.
pub const ONE: u32 = 0;

impl Term {
    /// A constant.
    pub fn constant(value: f64) -> Self {
        Self { base: ONE, scale: value }
    }

    /// Returns the value of a constant; `None` if the elements are not known.
    pub fn value(self) -> Option<f64> {
        (self.base == ONE || self.scale == 0.0).then_some(self.scale)
    }

    /// Returns the term scaled by `factor`.
    pub fn times(self, factor: f64) -> Self {
        Self { scale: self.scale * factor, ..self }
    }
}

/// The terms at each index of the axes of values.
#[derive(Default)]
pub struct Terms {
    of: HashMap<(ValueId, usize), Vec<Term>>,
    bases: u32,
}

impl Terms {
    /// Returns a term of a new base.
    pub fn fresh(&mut self) -> Term {
        self.bases += 1;
        Term { base: self.bases, scale: 1.0 }
    }

    /// Returns the terms along an axis, if they are known.
    pub fn get(&self, value: ValueId, axis: usize) -> Option<&[Term]> {
        self.of.get(&(value, axis)).map(Vec::as_slice)
    }

    /// Returns the terms along an axis of this size; terms that are not known get new bases.
    pub fn along(&mut self, value: ValueId, axis: usize, size: usize) -> Vec<Term> {
        if let Some(terms) = self.get(value, axis).filter(|t| t.len() == size) {
            return terms.to_vec();
        }
        let terms: Vec<_> = (0..size).map(|_| self.fresh()).collect();
        self.set(value, axis, terms.clone());
        terms
    }

    /// Stores the terms along an axis.
    pub fn set(&mut self, value: ValueId, axis: usize, terms: Vec<Term>) {
        self.of.insert((value, axis), terms);
    }
}

/// Assigns equal bases to equal expressions, within one node.
#[derive(Default)]
pub struct Interner {
    known: HashMap<Vec<u32>, Vec<(Vec<f64>, Term)>>,
}

/// Twice the error of a quotient of two numbers that were each rounded to 24 bits.
const ROUNDING: f64 = 1.0 / (1 << 21) as f64;

impl Interner {
    /// Returns the term of an expression of these bases and numbers. Numbers are equal up to the error of
    /// quotients of f32 weights.
    pub fn term(&mut self, terms: &mut Terms, key: Vec<u32>, numbers: Vec<f64>) -> Term {
        if numbers.iter().any(|n| !n.is_finite()) {
            return terms.fresh();
        }
        let equal = |a: f64, b: f64| a == b || (a - b).abs() <= ROUNDING * a.abs().min(b.abs());
        let terms_of_key = self.known.entry(key).or_default();
        if let Some((_, term)) = terms_of_key.iter().find(|(known, _)| {
            known.len() == numbers.len() && known.iter().zip(&numbers).all(|(a, b)| equal(*a, *b))
        }) {
            return *term;
        }
        let term = terms.fresh();
        terms_of_key.push((numbers, term));
        term
    }
}

/// Returns `x + y`. The expression is normalized by the scale of the term that is not constant.
pub fn plus(interner: &mut Interner, terms: &mut Terms, x: Term, y: Term) -> Term {
    match (x.value(), y.value()) {
        (Some(a), Some(b)) => Term::constant(a + b),
        (_, Some(0.0)) => x,
        (Some(0.0), _) => y,
        (Some(_), None) => plus(interner, terms, y, x),
        _ if x.base == y.base => Term { scale: x.scale + y.scale, ..x },
        _ => interner.term(terms, vec![x.base, y.base], vec![y.scale / x.scale]).times(x.scale),
    }
}
