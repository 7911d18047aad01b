//! Floats as text: the shortest decimal that parses to the same bits.

use super::is_float_word;
use std::fmt::Write;

/// A float type with exact parsing and printing.
pub(super) trait Real: Copy {
    /// Parses `1`, `-0.5e3`, `inf`, `-nan`, `nan(0x…)`; `None` if the text is invalid or overflows.
    fn parse(text: &str) -> Option<Self>;
    /// Prints with a point, an exponent or letters, which distinguish floats from integers.
    fn print(self, to: &mut String);
}

macro_rules! real {
    ($float:ty, $bits:ty) => {
        impl Real for $float {
            fn parse(text: &str) -> Option<Self> {
                if let Some(bits) = text.strip_prefix("nan(0x").and_then(|t| t.strip_suffix(')')) {
                    return <$bits>::from_str_radix(bits, 16)
                        .ok()
                        .map(Self::from_bits)
                        .filter(|v| v.is_nan());
                }
                let (word, sign) = text.strip_prefix('-').map_or((text, 1.0), |rest| (rest, -1.0));
                match word.as_bytes().first()? {
                    b'n' | b'N' if is_float_word(word) => Some(Self::NAN.copysign(sign)),
                    b'i' | b'I' if is_float_word(word) => Some(Self::INFINITY.copysign(sign)),
                    first if first.is_ascii_digit() => text.parse().ok().filter(|v: &Self| v.is_finite()),
                    _ => None,
                }
            }

            fn print(self, to: &mut String) {
                let plain = [Self::NAN.to_bits(), (-Self::NAN).to_bits()];
                let written = match self {
                    v if !v.is_nan() => write!(to, "{v:?}"),
                    v if !plain.contains(&v.to_bits()) => write!(to, "nan({:#x})", v.to_bits()),
                    v => write!(to, "{}nan", if v.is_sign_negative() { "-" } else { "" }),
                };
                written.expect("writing to a string does not fail");
            }
        }
    };
}
real!(f32, u32);
real!(f64, u64);

/// Returns true if the number is written as an integer.
pub(super) fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_round_trip() {
        let special = [0, 1, 0x7f80_0000, 0xff80_0000, 0x7fc0_0000, 0xffc0_0000, 0x7f80_0001, 0xffc1_2345];
        let mut random = fastrand::Rng::with_seed(7);
        for bits in special.into_iter().chain((0..20_000).map(|_| random.u32(..))) {
            let mut text = String::new();
            f32::from_bits(bits).print(&mut text);
            assert_eq!(f32::parse(&text).map(f32::to_bits), Some(bits), "{text}");
            assert!(!is_integer(&text));
        }
        for _ in 0..20_000 {
            let (bits, mut text) = (random.u64(..), String::new());
            f64::from_bits(bits).print(&mut text);
            assert_eq!(f64::parse(&text).map(f64::to_bits), Some(bits), "{text}");
        }
    }

    #[test]
    fn rejects_text_that_is_not_a_number() {
        assert_eq!(f32::parse("-INFINITY"), Some(f32::NEG_INFINITY));
        assert_eq!(f32::parse("-0").map(f32::to_bits), Some(0x8000_0000));
        for wrong in ["", "-", "1e", "--1", "1e39", "nah", "nan(0x3f800000)", "nan(0x)", "+1", "1_0"] {
            assert_eq!(f32::parse(wrong), None, "{wrong}");
        }
    }
}
