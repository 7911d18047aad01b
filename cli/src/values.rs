//! Parsers of argument values.

use onnx_pare::{Measure, OutputMeasure};

/// A number of bytes, optionally with K, M or G (powers of 1024).
pub fn bytes(text: &str) -> Result<u64, String> {
    let (digits, unit) = match text.trim_end_matches(['b', 'B']).char_indices().last() {
        Some((i, 'k' | 'K')) => (&text[..i], 1 << 10),
        Some((i, 'm' | 'M')) => (&text[..i], 1 << 20),
        Some((i, 'g' | 'G')) => (&text[..i], 1 << 30),
        _ => (text, 1),
    };
    let number: f64 =
        digits.trim().parse().map_err(|_| "expected a number, optionally with K, M or G".to_owned())?;
    if number > 0.0 { Ok((number * f64::from(unit)) as u64) } else { Err("expected more than 0".into()) }
}

/// A number from 0 to 1.
pub fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x| (0.0..=1.0).contains(x));
    number.ok_or_else(|| "expected a number from 0 to 1".into())
}

/// A number between 0 and 1, both excluded.
pub fn open_share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x| 0.0 < *x && *x < 1.0);
    number.ok_or_else(|| "expected a number between 0 and 1".into())
}

/// A number of at least 0.
pub fn limit(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|&x: &f64| x >= 0.0).ok_or_else(|| "expected a number, at least 0".into())
}

fn number(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|x: &f64| x.is_finite());
    number.ok_or_else(|| format!("`{text}` is not a number"))
}

pub fn tolerance(text: &str) -> Result<(String, f64), String> {
    // Names may contain `=`; numbers do not.
    let (name, limit) = text.rsplit_once('=').unwrap_or(("", text));
    let limit = number(limit)?;
    if limit >= 0.0 { Ok((name.into(), limit)) } else { Err("a difference is at least 0".into()) }
}

pub fn metric(text: &str) -> Result<(Measure, f64), String> {
    let (name, limit) = text.split_once('=').ok_or_else(|| "expected MEASURE=LIMIT".to_owned())?;
    Ok((name.parse()?, number(limit)?))
}

pub fn measure(text: &str) -> Result<(String, OutputMeasure), String> {
    // Names may contain `=`; measures do not.
    let (name, measure) = text.rsplit_once('=').ok_or_else(|| "expected OUTPUT=MEASURE".to_owned())?;
    Ok((name.into(), measure.parse()?))
}

pub fn pair(text: &str) -> Result<(String, String), String> {
    let (a, b) = text.split_once('=').ok_or_else(|| "expected INPUT=OUTPUT".to_owned())?;
    Ok((a.into(), b.into()))
}

pub fn at_least_one(text: &str) -> Result<usize, String> {
    text.parse().ok().filter(|&n| n > 0).ok_or_else(|| "expected a number, at least 1".into())
}

pub fn dim(text: &str) -> Result<(String, i64), String> {
    let expected = || "expected NAME=SIZE".to_owned();
    let (name, size) = text.split_once('=').ok_or_else(expected)?;
    let size: i64 = size.parse().map_err(|_| expected())?;
    if size > 0 { Ok((name.into(), size)) } else { Err("a size is at least 1".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    #[test]
    fn parses_values() {
        assert_eq!(bytes("2G"), Ok(2 << 30));
        assert_eq!(bytes("1.5k"), Ok(1536));
        assert_eq!(bytes("300"), Ok(300));
        assert!(bytes("x").is_err() && bytes("-1").is_err());
        assert_eq!(dim("N=8"), Ok(("N".into(), 8)));
        assert_eq!(tolerance("a=b=1e-3"), Ok(("a=b".into(), 1e-3)));
        assert_eq!(tolerance("0.5"), Ok((String::new(), 0.5)));
        assert!(tolerance("a=x").is_err() && tolerance("-1").is_err());
        assert_eq!(metric("cosine=0.9"), Ok((Measure::Cosine, 0.9)));
        assert!(metric("cosinus=0.9").is_err());
        assert_eq!(measure("a=b=cosine"), Ok(("a=b".into(), OutputMeasure::Cosine)));
        assert!(measure("a=kl").is_err() && measure("a").is_err());
        assert!(dim("N").is_err() && dim("N=0").is_err());
        assert_eq!((share("0.5"), limit("2")), (Ok(0.5), Ok(2.0)));
        assert!(["nan", "-0.1", "1.1", "x"].iter().all(|text| share(text).is_err()));
        assert!(["nan", "-0.1", "x"].iter().all(|text| limit(text).is_err()));
    }
}
