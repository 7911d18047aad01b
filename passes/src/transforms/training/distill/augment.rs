//! Random changes of images.

use fastrand::Rng;
use pare_graph::{DataType, Tensor};
use serde::{Deserialize, Serialize};

/// A random change of the images `[samples, channels, height, width]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Augmentation {
    /// Half of the images are mirrored left to right.
    Flip,
    /// Images are moved by up to an eighth of their size; the pixels at the border are repeated.
    Shift,
}

/// Returns true if a tensor has the layout of images.
pub fn is_image(tensor: &Tensor) -> bool {
    let is_map =
        matches!(*tensor.shape(), [_, channels, height, width] if channels <= 4 && height > 4 && width > 4);
    is_map && tensor.dtype() == DataType::Float
}

/// The images after random changes.
pub fn augmented(images: &Tensor, changes: &[Augmentation], rng: &mut Rng) -> Option<Tensor> {
    let &[samples, channels, height, width] = images.shape() else { return None };
    let pixels = images.bytes();
    let mut out = Vec::with_capacity(pixels.len());
    for sample in 0..samples {
        let (mut flip, mut down, mut right) = (false, 0, 0);
        for change in changes {
            match change {
                Augmentation::Flip => flip = rng.bool(),
                Augmentation::Shift => {
                    let by = |rng: &mut Rng, size: usize| rng.i64(-(size as i64 / 8)..=size as i64 / 8);
                    (down, right) = (by(rng, height), by(rng, width));
                }
            }
        }
        let within = |at: usize, by: i64, size: usize| (at as i64 - by).clamp(0, size as i64 - 1) as usize;
        for channel in 0..channels {
            for y in 0..height {
                let row = ((sample * channels + channel) * height + within(y, down, height)) * width;
                for x in 0..width {
                    let x = within(x, right, width);
                    let at = (row + if flip { width - 1 - x } else { x }) * 4;
                    out.extend_from_slice(&pixels[at..at + 4]);
                }
            }
        }
    }
    Tensor::new(images.dtype(), images.shape(), out).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image() -> Tensor {
        let values: Vec<f32> = (0..64).map(|v| v as f32).collect();
        Tensor::from_slice(&[1, 1, 8, 8], &values).unwrap()
    }

    #[test]
    fn flips_rows_of_pixels() {
        let mut rng = Rng::with_seed(1);
        let flips: Vec<Vec<f32>> = (0..8)
            .map(|_| augmented(&image(), &[Augmentation::Flip], &mut rng).unwrap().to_vec().unwrap())
            .collect();
        let (same, mirrored) = ((0..8).map(|v| v as f32), (0..8).rev().map(|v| v as f32));
        assert!(flips.iter().any(|f| f[..8].iter().copied().eq(same.clone())));
        assert!(flips.iter().any(|f| f[..8].iter().copied().eq(mirrored.clone())));
    }

    #[test]
    fn shifts_by_a_pixel_at_most_and_repeats_the_border() {
        let mut rng = Rng::with_seed(3);
        for _ in 0..20 {
            let shifted: Vec<f32> =
                augmented(&image(), &[Augmentation::Shift], &mut rng).unwrap().to_vec().unwrap();
            let (dy, dx) = ((shifted[27] - 27.0) / 8.0, (shifted[27] - 27.0) % 8.0);
            assert!(dy.abs() <= 1.2 && dx.abs() <= 1.0 || dx.abs() == 7.0, "{dy} {dx}");
            assert!(shifted.iter().all(|v| (0.0..64.0).contains(v)));
        }
    }

    #[test]
    fn images_are_small_maps_with_few_channels() {
        assert!(is_image(&image()));
        assert!(!is_image(&Tensor::vector(&[1.0_f32])));
        assert!(!is_image(&Tensor::from_slice(&[1, 64, 8, 8], &vec![0.0_f32; 4096]).unwrap()));
    }
}
