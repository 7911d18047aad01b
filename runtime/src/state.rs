//! Models with state: outputs that are an input of the next run.

use crate::{Feed, Port, PortDim, PortKind};

/// Inputs that take up what an output of the last run left, with that output: those of the same type, and of names
/// that begin alike, such as `state` and `stateN`, `h_in` and `h_out`, `conv_cache` and `conv_cache_out`.
pub fn state_pairs(inputs: &[Port], outputs: &[Port]) -> Vec<(String, String)> {
    let mut pairs: Vec<(String, String)> = vec![];
    for input in inputs {
        let stem = stem(&input.name);
        let fits = |output: &&Port| {
            same(&input.kind, &output.kind)
                && output.name.to_ascii_lowercase().starts_with(&stem)
                && pairs.iter().all(|(_, taken)| *taken != output.name)
        };
        // The shortest name is the nearest.
        if let Some(output) = outputs.iter().filter(fits).min_by_key(|o| o.name.len()) {
            pairs.push((input.name.clone(), output.name.clone()));
        }
    }
    pairs
}

/// What is left of a name without its role and number.
fn stem(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let roles = ["_in", "_input", "_prev", "_old", ".in", ".input"];
    roles.iter().find_map(|role| name.strip_suffix(role)).unwrap_or(name).to_owned()
}

fn same(a: &PortKind, b: &PortKind) -> bool {
    match (a, b) {
        (PortKind::Tensor { dtype: a, dims: Some(x) }, PortKind::Tensor { dtype: b, dims: Some(y) }) => {
            let fits = |(x, y): (&PortDim, &PortDim)| match (x, y) {
                (PortDim::Fixed(x), PortDim::Fixed(y)) => x == y,
                _ => true,
            };
            a == b && x.len() == y.len() && x.iter().zip(y).all(fits)
        }
        (a, b) => a == b,
    }
}

/// Put what a run left into the inputs of the next.
pub(crate) fn carry(pairs: &[(String, String)], outputs: &Feed, feed: &mut Feed) {
    for (input, output) in pairs {
        let left = outputs.iter().find(|(name, _)| name == output);
        let place = feed.iter_mut().find(|(name, _)| name == input);
        if let (Some((_, value)), Some((_, place))) = (left, place) {
            place.clone_from(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pare_graph::{DataType, Tensor};

    fn port(name: &str, dims: &[usize]) -> Port {
        let dims: Vec<_> = dims.iter().map(|&n| PortDim::Fixed(n)).collect();
        Port::tensor(name, DataType::Float, &dims)
    }

    #[test]
    fn state_is_known_by_name_and_type() {
        let inputs = [port("input", &[1, 8]), port("state", &[2, 4]), port("h_in", &[3]), port("c0", &[3])];
        let outputs =
            [port("output", &[1, 2]), port("cN", &[3]), port("stateN", &[2, 4]), port("h_out", &[3])];
        let pairs = state_pairs(&inputs, &outputs);
        let pairs: Vec<_> = pairs.iter().map(|(a, b)| (a.as_str(), b.as_str())).collect();
        assert_eq!(pairs, [("state", "stateN"), ("h_in", "h_out"), ("c0", "cN")]);
        assert!(state_pairs(&[port("x", &[3])], &[port("xyz", &[4])]).is_empty());
    }

    #[test]
    fn what_was_left_is_taken_up() {
        let value = |x: f32| Tensor::vector(&[x]).into();
        let mut feed: Feed = vec![("x".into(), value(1.0)), ("s".into(), value(0.0))];
        let outputs: Feed = vec![("y".into(), value(5.0)), ("sN".into(), value(7.0))];
        carry(&[("s".into(), "sN".into())], &outputs, &mut feed);
        assert_eq!(feed, [("x".into(), value(1.0)), ("s".into(), value(7.0))]);
    }
}
