//! What is known about channels before any sample is seen: which are constant, and which are multiples of others.

use pare_graph::ValueId;
use std::collections::HashMap;

/// The elements at one index of an axis: `scale` times something that equal bases share, element by element. What moves
/// elements makes new bases, so equal ones mean the same in all values that have the same shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Term {
    /// Which something.
    pub base: u32,
    /// How much of it.
    pub scale: f64,
}

/// The base of constants: one, everywhere.
pub const ONE: u32 = 0;

impl Term {
    /// The same number everywhere.
    pub fn constant(value: f64) -> Self {
        Self { base: ONE, scale: value }
    }

    /// The number that all elements are.
    pub fn value(self) -> Option<f64> {
        (self.base == ONE || self.scale == 0.0).then_some(self.scale)
    }

    /// `factor` times as much.
    pub fn times(self, factor: f64) -> Self {
        Self { scale: self.scale * factor, ..self }
    }
}

/// Terms of all indices of axes.
#[derive(Default)]
pub struct Terms {
    of: HashMap<(ValueId, usize), Vec<Term>>,
    bases: u32,
}

impl Terms {
    /// Something that is like nothing else.
    pub fn fresh(&mut self) -> Term {
        self.bases += 1;
        Term { base: self.bases, scale: 1.0 }
    }

    /// The terms along an axis, if it has been looked at.
    pub fn get(&self, value: ValueId, axis: usize) -> Option<&[Term]> {
        self.of.get(&(value, axis)).map(Vec::as_slice)
    }

    /// The terms along an axis of this size; of one that has not been looked at, all fresh.
    pub fn along(&mut self, value: ValueId, axis: usize, size: usize) -> Vec<Term> {
        if let Some(terms) = self.get(value, axis).filter(|t| t.len() == size) {
            return terms.to_vec();
        }
        let terms: Vec<_> = (0..size).map(|_| self.fresh()).collect();
        self.set(value, axis, terms.clone());
        terms
    }

    /// Say what lies along an axis.
    pub fn set(&mut self, value: ValueId, axis: usize, terms: Vec<Term>) {
        self.of.insert((value, axis), terms);
    }
}

/// Gives what is computed from the same the same base. It lives as long as one node is looked at.
#[derive(Default)]
pub struct Interner {
    known: HashMap<Vec<u32>, Vec<(Vec<f64>, Term)>>,
}

/// Twice the error of a quotient of two numbers that were each rounded to 24 bits.
const ROUNDING: f64 = 1.0 / (1 << 21) as f64;

impl Interner {
    /// The base of what is computed from these bases and numbers. Numbers are equal if they could be the same number,
    /// rounded to f32 in several multiples.
    pub fn term(&mut self, terms: &mut Terms, key: Vec<u32>, numbers: Vec<f64>) -> Term {
        if numbers.iter().any(|n| !n.is_finite()) {
            return terms.fresh();
        }
        let equal = |a: f64, b: f64| a == b || (a - b).abs() <= ROUNDING * a.abs().min(b.abs());
        let alike = self.known.entry(key).or_default();
        if let Some((_, term)) = alike.iter().find(|(known, _)| {
            known.len() == numbers.len() && known.iter().zip(&numbers).all(|(a, b)| equal(*a, *b))
        }) {
            return *term;
        }
        let term = terms.fresh();
        alike.push((numbers, term));
        term
    }
}
