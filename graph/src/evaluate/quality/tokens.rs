//! Tokens that a mask switches off: padding.

use crate::Tensor;

/// The tokens `[samples, tokens]` of a batch that a mask switches on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenMask {
    tokens: usize,
    on: Vec<bool>,
}

impl TokenMask {
    /// Reads a mask, whose zeros switch off. `None` if it has another rank, or switches nothing off.
    pub fn of(mask: &Tensor) -> Option<Self> {
        let &[_, tokens] = mask.shape() else { return None };
        let on: Vec<_> = mask.to_f64()?.into_iter().map(|v| v != 0.0).collect();
        on.contains(&false).then_some(Self { tokens, on })
    }

    /// The number of samples.
    pub fn samples(&self) -> usize {
        self.on.len() / self.tokens.max(1)
    }

    /// The tokens `[samples, tokens, …]` that are switched on, as `[selected, …]`. `None` if the tensor has other
    /// sizes.
    pub fn selected(&self, tensor: &Tensor) -> Option<Tensor> {
        let (&[samples, tokens, ref rest @ ..], true) = (tensor.shape(), tensor.dtype().bits() >= 8) else {
            return None;
        };
        if (samples, tokens) != (self.samples(), self.tokens) {
            return None;
        }
        let kept: Vec<_> = (0..self.on.len()).filter(|&i| self.on[i]).collect();
        let shape: Vec<_> = std::iter::once(kept.len()).chain(rest.iter().copied()).collect();
        copied(tensor, &kept, rest, &shape)
    }

    /// The tensor with copies of other tokens of the same sample in place of those that are switched off, so
    /// that statistics over all tokens are statistics over those that are switched on, each sample with the
    /// same weight. Tokens run along `axis` after the samples, or share the first axis with the samples. `None`
    /// if the tensor has other sizes.
    pub fn filled(&self, tensor: &Tensor, axis: usize) -> Option<Tensor> {
        let shape = tensor.shape();
        let (samples, between, rest) = match axis {
            0 => (shape.first()? / self.tokens.max(1), 1, &shape[1..]),
            _ => (*shape.first()?, shape.get(1..axis)?.iter().product(), shape.get(axis + 1..)?),
        };
        let tokens = if axis == 0 { self.tokens } else { shape[axis] };
        let fits = tokens == self.tokens && samples == self.samples() && tensor.dtype().bits() >= 8;
        if !fits || samples * between * tokens * rest.iter().product::<usize>() != tensor.len() {
            return None;
        }
        let sources: Vec<Vec<usize>> = (0..samples).map(|sample| self.sources(sample)).collect();
        let rows: Vec<usize> = (0..samples * between)
            .flat_map(|block| sources[block / between.max(1)].iter().map(move |&t| block * tokens + t))
            .collect();
        copied(tensor, &rows, rest, shape)
    }

    /// The token that takes the place of each: itself, or one of those that are switched on, in turn.
    fn sources(&self, sample: usize) -> Vec<usize> {
        let on = &self.on[sample * self.tokens..(sample + 1) * self.tokens];
        let kept: Vec<_> = (0..self.tokens).filter(|&t| on[t]).collect();
        let mut next = kept.iter().cycle();
        // A sample without tokens stays as it is.
        (0..self.tokens).map(|t| if on[t] { t } else { next.next().copied().unwrap_or(t) }).collect()
    }
}

/// A tensor of these rows, each of the elements `rest`.
fn copied(tensor: &Tensor, rows: &[usize], rest: &[usize], shape: &[usize]) -> Option<Tensor> {
    let width = rest.iter().product::<usize>() * tensor.dtype().bits() as usize / 8;
    let bytes = tensor.bytes();
    let mut data = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        data.extend_from_slice(bytes.get(row * width..(row + 1) * width)?);
    }
    Tensor::new(tensor.dtype(), shape, data).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mask() -> TokenMask {
        TokenMask::of(&Tensor::from_slice(&[2, 3], &[1_i64, 1, 0, 0, 1, 0]).unwrap()).unwrap()
    }

    #[test]
    fn selects_the_tokens_that_are_on() {
        let x =
            Tensor::from_slice(&[2, 3, 2], &[0_f32, 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11.]).unwrap();
        let kept = mask().selected(&x).unwrap();
        assert_eq!((kept.shape(), kept.to_f64().unwrap()), (&[3, 2][..], vec![0., 1., 2., 3., 8., 9.]));
        assert_eq!(mask().selected(&Tensor::from_slice(&[3, 2], &[0_f32; 6]).unwrap()), None);
    }

    #[test]
    fn fills_padding_with_tokens_of_the_same_sample() {
        let numbers: Vec<f32> = (0..6_u8).map(f32::from).collect();
        let filled = |shape: &[usize], axis| {
            mask().filled(&Tensor::from_slice(shape, &numbers).unwrap(), axis).unwrap().to_f64().unwrap()
        };
        assert_eq!(filled(&[2, 3, 1], 1), [0., 1., 0., 4., 4., 4.]);
        // Samples and tokens share the first axis.
        assert_eq!(filled(&[6, 1], 0), [0., 1., 0., 4., 4., 4.]);
        // Heads are between samples and tokens.
        let heads: Vec<f32> = (0..12_u8).map(f32::from).collect();
        let heads = mask().filled(&Tensor::from_slice(&[2, 2, 3], &heads).unwrap(), 2).unwrap();
        assert_eq!(heads.to_f64().unwrap(), [0., 1., 0., 3., 4., 3., 7., 7., 7., 10., 10., 10.]);
        assert_eq!(mask().filled(&Tensor::from_slice(&[3, 2], &numbers).unwrap(), 1), None);
    }

    #[test]
    fn a_mask_that_switches_nothing_off_is_none() {
        assert_eq!(TokenMask::of(&Tensor::from_slice(&[1, 2], &[1_i64, 1]).unwrap()), None);
        assert_eq!(TokenMask::of(&Tensor::vector(&[0_i64])), None);
        let none = TokenMask::of(&Tensor::from_slice(&[1, 2], &[0_f32, 0.0]).unwrap()).unwrap();
        let x = Tensor::from_slice(&[1, 2, 1], &[5_f32, 6.0]).unwrap();
        assert_eq!(none.filled(&x, 1).unwrap(), x);
    }
}
