//! The ranges of the types.

use super::Precision;
use pare_graph::{DataType, Tensor};

/// A type with its range.
#[derive(Clone, Copy, Debug)]
pub struct Format {
    pub dtype: DataType,
    /// The least magnitude that is rounded to infinity.
    overflow: f64,
    /// The largest finite number.
    pub largest: f64,
    /// The smallest number with all bits of the mantissa.
    pub smallest: f64,
}

/// The reason why a constant cannot have the type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// An element would become infinite.
    Infinite,
    /// All elements would become zero, or lose bits.
    Zero,
}

impl Format {
    pub fn of(precision: Precision) -> Self {
        match precision {
            Precision::Fp16 | Precision::Mixed => Self {
                dtype: DataType::Float16,
                overflow: 65520.0,
                largest: 65504.0,
                smallest: 2_f64.powi(-14),
            },
            Precision::Bf16 => {
                let top = 2_f64.powi(128);
                Self {
                    dtype: DataType::Bfloat16,
                    overflow: top - 2_f64.powi(119),
                    largest: top - 2_f64.powi(120),
                    smallest: 2_f64.powi(-126),
                }
            }
        }
    }

    /// The reason why a constant cannot have this type, if there is one.
    pub fn misfit(&self, constant: &Tensor) -> Option<Misfit> {
        let mut largest = 0.0_f64;
        let mut visit = |value: f64| {
            if value.is_finite() {
                largest = largest.max(value.abs());
            }
        };
        match constant.as_f32() {
            Some(values) => values.iter().for_each(|&v| visit(f64::from(v))),
            None => constant.to_f64().into_iter().flatten().for_each(visit),
        }
        if largest >= self.overflow {
            return Some(Misfit::Infinite);
        }
        (largest > 0.0 && largest < self.smallest).then_some(Misfit::Zero)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn misfits_are_those_of_rounding() {
        for (precision, largest) in
            [(Precision::Fp16, 65504.0), (Precision::Bf16, 3.389_531_389_251_535_5e38)]
        {
            let format = Format::of(precision);
            assert_eq!(format.largest, largest);
            let next = f64::from((format.overflow as f32).next_down());
            for (value, misfit) in [(format.overflow, Some(Misfit::Infinite)), (next, None), (0.0, None)] {
                let constant = Tensor::scalar(value as f32);
                let rounded = Tensor::from_f64(format.dtype, &[], &[value]).unwrap();
                assert_eq!(format.misfit(&constant), misfit, "{value:e}");
                assert_eq!(rounded.is_finite(), misfit.is_none(), "{value:e}");
            }
        }
        let format = Format::of(Precision::Fp16);
        assert_eq!(format.misfit(&Tensor::vector(&[1e-9_f32, 0.0])), Some(Misfit::Zero));
        assert_eq!(format.misfit(&Tensor::vector(&[1e-9_f32, 1.0, f32::INFINITY])), None);
    }
}
