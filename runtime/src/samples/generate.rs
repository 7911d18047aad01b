//! Generation of samples from the types of the inputs.
//!
//! The seed determines the samples, independently of the order of the inputs. Successive samples have
//! different distributions: normal, uniform, magnitudes over several orders, mostly zero, and smooth waves of
//! different amplitude, for effects that noise averages out. Thus a rewrite that is only right for some
//! values is detected.

use super::{
    plan::{dims, sizes, symbol_plans},
    specs::InputSpec,
};
use crate::{Feed, PortKind, Value};
use bytes::Bytes;
use fastrand::Rng;
use pare_graph::{DataType, Tensor, pack_bits};
use std::{collections::BTreeMap, f64::consts::TAU};

/// Number of distributions; successive samples cycle through them.
pub const DISTRIBUTIONS: usize = 5;

/// Most elements of a generated input, 2 GiB in f64: sizes in a file are not trusted.
const MAX_ELEMENTS: usize = 1 << 28;

/// Returns the first input without generated samples: of an unknown type, or too large.
pub fn beyond_generation(inputs: &[InputSpec]) -> Option<&InputSpec> {
    let plans = symbol_plans(inputs);
    fn is_known(kind: &PortKind) -> bool {
        match kind {
            PortKind::Sequence(inner) | PortKind::Optional(inner) => is_known(inner),
            PortKind::Tensor { .. } | PortKind::Map { .. } => true,
            PortKind::Other(_) => false,
        }
    }
    let fits =
        |input: &InputSpec| plans.iter().all(|plan| count(&sizes(input, dims(&input.kind), plan)).is_some());
    inputs.iter().find(|input| !is_known(&input.kind) || !fits(input))
}

fn count(shape: &[usize]) -> Option<usize> {
    pare_graph::element_count(shape).filter(|&n| n <= MAX_ELEMENTS)
}

/// Generates sample number `index` for `inputs`, with the sizes of `plan` (1 for a symbol without a size).
pub fn generate(inputs: &[InputSpec], plan: &BTreeMap<String, usize>, seed: u64, index: usize) -> Feed {
    let one = |input: &InputSpec| {
        let mut generator = Generator {
            rng: Rng::with_seed(seed ^ hash(&input.name) ^ hash(&index.to_string()).rotate_left(32)),
            input,
            plan,
            index,
        };
        generator.value(&input.kind).map(|value| (input.name.clone(), value))
    };
    inputs.iter().filter_map(one).collect()
}

/// FNV-1a: stable across versions and machines, unlike the standard library's hasher.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

struct Generator<'a> {
    rng: Rng,
    input: &'a InputSpec,
    plan: &'a BTreeMap<String, usize>,
    index: usize,
}

impl Generator<'_> {
    /// A value; `None` for unknown types.
    fn value(&mut self, kind: &PortKind) -> Option<Value> {
        match kind {
            PortKind::Tensor { dtype, dims } => {
                let shape = sizes(self.input, dims.as_deref().unwrap_or_default(), self.plan);
                self.tensor(*dtype, &shape).map(Value::Tensor)
            }
            PortKind::Sequence(inner) => {
                let items = (0..2).map(|_| self.value(inner));
                items.collect::<Option<_>>().map(Value::Sequence)
            }
            // Every fourth is absent, except sequences: ONNX Runtime 1.32 aborts the process on an absent
            // one.
            PortKind::Optional(inner) if self.index % 4 == 3 && !matches!(**inner, PortKind::Sequence(_)) => {
                Some(Value::Optional(None))
            }
            PortKind::Optional(inner) => Some(Value::Optional(Some(Box::new(self.value(inner)?)))),
            PortKind::Map { key, value } => {
                let keys = match key {
                    DataType::String => Tensor::strings(&[3], WORDS[..3].iter().map(|&w| w.into()).collect()),
                    key => Tensor::from_f64(*key, &[3], &[0.0, 1.0, 2.0]),
                };
                Some(Value::Map { keys: keys.ok()?, values: self.tensor(*value, &[3])? })
            }
            PortKind::Other(_) => None,
        }
    }

    fn tensor(&mut self, dtype: DataType, shape: &[usize]) -> Option<Tensor> {
        let count = count(shape)?;
        let tensor = match dtype {
            DataType::String => {
                let words = (0..count).map(|_| Bytes::from(WORDS[self.rng.usize(..WORDS.len())]));
                Tensor::strings(shape, words.collect())
            }
            DataType::Bool => {
                let values: Vec<bool> = (0..count).map(|_| self.rng.bool()).collect();
                Tensor::from_slice(shape, &values)
            }
            DataType::Complex64 | DataType::Complex128 => {
                let part = if dtype == DataType::Complex64 { DataType::Float } else { DataType::Double };
                let parts = Tensor::from_f64(part, &[count, 2], &self.floats(count * 2)).ok()?;
                Tensor::new(dtype, shape, parts.bytes().clone())
            }
            _ if dtype.bits() < 8 || (dtype.bits() == 8 && dtype.is_float()) => {
                let codes = self.codes(dtype, count)?;
                Tensor::new(dtype, shape, pack_bits(dtype.bits(), &codes))
            }
            _ if dtype.is_float() => Tensor::from_f64(dtype, shape, &self.floats(count)),
            _ => {
                let values: Vec<f64> = self.ints(dtype, count).iter().map(|&v| v as f64).collect();
                Tensor::from_f64(dtype, shape, &values)
            }
        };
        tensor.ok()
    }

    fn floats(&mut self, count: usize) -> Vec<f64> {
        match self.index % DISTRIBUTIONS {
            4 => self.wave(count),
            distribution => (0..count).map(|_| self.float(distribution)).collect(),
        }
    }

    /// A sine wave over all elements with rising amplitude: up to 10 in the first sample, less in later ones.
    fn wave(&mut self, count: usize) -> Vec<f64> {
        let amplitude = 10_f64.powi(1 - (self.index / DISTRIBUTIONS % 4) as i32);
        // From one period in total to one per four elements.
        let periods = (count.max(4) as f64 / 4.0).powf(self.rng.f64());
        let (phase, offset) = (TAU * self.rng.f64(), amplitude * self.normal());
        let at = |i: usize| i as f64 / count.max(1) as f64;
        (0..count).map(|i| at(i) * (amplitude * (TAU * periods * at(i) + phase).sin() + offset)).collect()
    }

    fn float(&mut self, distribution: usize) -> f64 {
        match (distribution, self.rng.u8(..)) {
            (1, _) => self.rng.f64(),
            // Large and tiny magnitudes, all within the range of half floats.
            (2, 0..16) => 100.0 * self.normal(),
            (2, 16..48) => 1e-4 * self.normal(),
            (2, 48..64) | (3, 0..224) => 0.0,
            _ => self.normal(),
        }
    }

    /// A standard normal number (Box and Muller).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.rng.f64()).ln()).sqrt();
        radius * (TAU * self.rng.f64()).cos()
    }

    fn ints(&mut self, dtype: DataType, count: usize) -> Vec<i64> {
        let signed = Tensor::from_f64(dtype, &[1], &[-1.0]).ok().and_then(|t| t.single_i64()) == Some(-1);
        let magnitude = dtype.bits().clamp(8, 64) - u32::from(signed);
        let high = i64::MAX >> (63 - magnitude.min(63));
        let low = if signed { -high - 1 } else { 0 };
        let bound = self.input.bound.clone().unwrap_or(0..10);
        // An empty range yields its start, 0 for tables.
        let (first, last) = (bound.start.clamp(low, high), (bound.end.saturating_sub(1)).clamp(low, high));
        let fits =
            |n: &i64| self.input.bound.as_ref().is_none_or(|b| b.contains(n)) && (low..=high).contains(n);
        let choices: Vec<i64> = self.input.choices.iter().copied().filter(fits).collect();
        let one = |rng: &mut Rng| {
            if !choices.is_empty() && rng.bool() {
                return choices[rng.usize(..choices.len())];
            }
            if first < last { rng.i64(first..=last) } else { first }
        };
        (0..count).map(|_| one(&mut self.rng)).collect()
    }

    /// Codes of a narrow type: small finite floats, integers within the range.
    fn codes(&mut self, dtype: DataType, count: usize) -> Option<Vec<u8>> {
        let all: Vec<u8> = (0..=(((1_u16 << dtype.bits()) - 1) as u8)).collect();
        let values = Tensor::new(dtype, &[all.len()], pack_bits(dtype.bits(), &all)).ok()?.to_f64()?;
        let bound = self.input.bound.clone().unwrap_or(0..10);
        let fits = |value: f64| {
            if dtype.is_float() {
                value.is_finite() && value.abs() <= 16.0
            } else {
                value >= bound.start as f64 && value < bound.end as f64
            }
        };
        let valid: Vec<u8> =
            all.into_iter().zip(values).filter(|&(_, value)| fits(value)).map(|x| x.0).collect();
        let valid = if valid.is_empty() { vec![0] } else { valid };
        Some((0..count).map(|_| valid[self.rng.usize(..valid.len())]).collect())
    }
}

const WORDS: [&str; 8] = ["a", "the", "model", "runs", "Über", "x1", "", "two words"];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Port, PortDim};

    fn spec(name: &str, dtype: DataType, dims: &[PortDim]) -> InputSpec {
        InputSpec::from(&Port::tensor(name, dtype, dims))
    }

    fn tensor(spec: &InputSpec, index: usize) -> Tensor {
        let feed = generate(std::slice::from_ref(spec), &BTreeMap::new(), 7, index);
        feed[0].1.as_tensor().unwrap().clone()
    }

    #[test]
    fn rejects_huge_sizes() {
        let sized = |dims: &[PortDim]| spec("x", DataType::Float, dims);
        let (huge, open) = (PortDim::Fixed(1 << 31), PortDim::Unknown);
        let fine = sized(&[PortDim::Fixed(1 << 10), open.clone()]);
        for large in [sized(std::slice::from_ref(&huge)), sized(&[huge.clone(), huge.clone(), huge, open])] {
            assert_eq!(beyond_generation(&[fine.clone(), large.clone()]), Some(&large));
            assert!(generate(&[large], &BTreeMap::new(), 0, 0).is_empty());
        }
        let other =
            InputSpec { kind: PortKind::Sequence(Box::new(PortKind::Other("odd".into()))), ..fine.clone() };
        assert_eq!(beyond_generation(std::slice::from_ref(&fine)), None);
        assert!(beyond_generation(&[fine, other]).is_some());
    }

    #[test]
    fn seed_determines_the_samples() {
        let a = spec("a", DataType::Float, &[PortDim::Fixed(4)]);
        let b = spec("b", DataType::Float, &[PortDim::Fixed(4)]);
        let none = BTreeMap::new();
        let both = generate(&[a.clone(), b.clone()], &none, 1, 0);
        let swapped = generate(&[b, a.clone()], &none, 1, 0);
        assert_eq!((&both[0], &both[1]), (&swapped[1], &swapped[0]));
        assert_ne!(both[0].1, both[1].1);
        assert_ne!(both[0].1, generate(std::slice::from_ref(&a), &none, 2, 0)[0].1);
        assert_ne!(both[0].1, generate(&[a], &none, 1, 1)[0].1);
        // Pinned: a proof must be reproducible.
        assert_eq!(hash("x"), 0xaf63_f54c_8602_1707);
    }

    #[test]
    fn generates_finite_floats_of_several_distributions() {
        for dtype in [DataType::Float, DataType::Double, DataType::Float16, DataType::Bfloat16] {
            let spec = spec("x", dtype, &[PortDim::Fixed(1000)]);
            let values: Vec<_> =
                (0..DISTRIBUTIONS).map(|index| tensor(&spec, index).to_f64().unwrap()).collect();
            assert!(values.iter().flatten().all(|value| value.is_finite()));
            let mean = values[0].iter().sum::<f64>() / 1000.0;
            let spread = values[0].iter().map(|value| value * value).sum::<f64>() / 1000.0;
            assert!(mean.abs() < 0.15 && (spread - 1.0).abs() < 0.2, "{mean} {spread}");
            assert!(values[1].iter().all(|value| (0.0..=1.0).contains(value)));
            assert!(values[2].iter().any(|value| value.abs() > 50.0));
            assert!(values[3].iter().filter(|&&value| value == 0.0).count() > 800);
            // Normal noise has extrema at two of three elements, a wave of 1 to 250 periods two per period.
            let extrema = values[4].windows(3).filter(|v| (v[1] - v[0]) * (v[2] - v[1]) < 0.0).count();
            assert!(extrema <= 500 && values[4][0] == 0.0, "{extrema}");
        }
    }

    #[test]
    fn integers_respect_range_and_type() {
        let mut wide = spec("i", DataType::Int64, &[PortDim::Fixed(200)]);
        let range = |tensor: Tensor| {
            let values = tensor.to_i64().unwrap();
            (*values.iter().min().unwrap(), *values.iter().max().unwrap())
        };
        assert_eq!(range(tensor(&wide, 0)), (0, 9));
        wide.bound = Some(-2..3);
        assert_eq!(range(tensor(&wide, 0)), (-2, 2));
        wide.bound = Some(0..0);
        assert_eq!(range(tensor(&wide, 0)), (0, 0));
        for (dtype, wanted) in
            [(DataType::Uint2, (0, 3)), (DataType::Int4, (0, 7)), (DataType::Uint4, (0, 9))]
        {
            assert_eq!(range(tensor(&spec("i", dtype, &[PortDim::Fixed(200)]), 0)), wanted, "{dtype}");
        }
        for dtype in [DataType::Uint64, DataType::Int64, DataType::Uint32, DataType::Bool] {
            let mut one = spec("i", dtype, &[PortDim::Fixed(3)]);
            one.bound = Some(1..2);
            assert!(dtype == DataType::Bool || range(tensor(&one, 0)) == (1, 1), "{dtype}");
        }
        let mut rate = spec("i", DataType::Int64, &[PortDim::Fixed(200)]);
        rate.choices = vec![8000, 16_000];
        let values = tensor(&rate, 0).to_i64().unwrap();
        let count = |n: i64| values.iter().filter(|&&v| v == n).count();
        assert!(count(8000) > 30 && count(16_000) > 30 && values.iter().filter(|&&v| v < 10).count() > 60);
        rate.bound = Some(0..10_000);
        let values = tensor(&rate, 0).to_i64().unwrap();
        assert!(values.iter().filter(|&&v| v == 8000).count() > 60 && values.iter().all(|&v| v < 10_000));
        let mut byte = spec("i", DataType::Int8, &[PortDim::Fixed(2000)]);
        byte.bound = Some(-1000..1000);
        assert_eq!(range(tensor(&byte, 0)), (-128, 127));
    }

    #[test]
    fn generates_every_element_type() {
        for number in 1..=28 {
            let dtype = DataType::from_number(number).unwrap();
            let value = tensor(&spec("x", dtype, &[PortDim::Fixed(5)]), 0);
            assert_eq!((value.dtype(), value.shape()), (dtype, &[5][..]));
            assert!(value.to_f64().is_none_or(|values| values.iter().all(|v| v.is_finite())), "{value:?}");
        }
    }

    #[test]
    fn generates_sequences_and_optionals() {
        let inner = PortKind::Tensor { dtype: DataType::Float, dims: Some(vec![PortDim::Fixed(1)]) };
        let sequence = PortKind::Optional(Box::new(PortKind::Sequence(Box::new(inner.clone()))));
        for (kind, absent_at) in [(PortKind::Optional(Box::new(inner)), 3), (sequence, usize::MAX)] {
            let spec = InputSpec { name: "s".into(), kind: kind.clone(), bound: None, choices: vec![] };
            for index in 0..4 {
                let feed = generate(std::slice::from_ref(&spec), &BTreeMap::new(), 0, index);
                assert!(kind.accepts(&feed[0].1).is_ok());
                assert_eq!(feed[0].1 == Value::Optional(None), index == absent_at);
            }
        }
    }
}
