//! Models with state: outputs that are inputs of the next run.

use crate::{Feed, Port, PortDim, PortKind};

/// An input whose next value is an output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StatePair {
    /// Name of the input.
    pub input: String,
    /// Name of the output.
    pub output: String,
}

/// Derives the state of a model: inputs and outputs of the same type and with a common start of their names,
/// such as `state` and `stateN`, `h_in` and `h_out`, `conv_cache` and `conv_cache_out`.
pub(crate) fn state_pairs(inputs: &[Port], outputs: &[Port]) -> Vec<StatePair> {
    let mut pairs: Vec<StatePair> = vec![];
    for input in inputs {
        let stem = stem(&input.name);
        let fits = |output: &&Port| {
            same_type(&input.kind, &output.kind)
                && output.name.to_ascii_lowercase().starts_with(&stem)
                && pairs.iter().all(|pair| pair.output != output.name)
        };
        // The shortest name is the most similar.
        if let Some(output) = outputs.iter().filter(fits).min_by_key(|o| o.name.len()) {
            pairs.push(StatePair { input: input.name.clone(), output: output.name.clone() });
        }
    }
    pairs
}

/// A name without its role and number.
fn stem(name: &str) -> String {
    let name = name.to_ascii_lowercase();
    let name = name.trim_end_matches(|c: char| c.is_ascii_digit());
    let roles = ["_in", "_input", "_prev", "_old", ".in", ".input"];
    roles.iter().find_map(|role| name.strip_suffix(role)).unwrap_or(name).to_owned()
}

fn same_type(a: &PortKind, b: &PortKind) -> bool {
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

/// Copies the state from the outputs of a run to the inputs of the next.
pub(crate) fn carry(pairs: &[StatePair], outputs: &Feed, feed: &mut Feed) {
    for StatePair { input, output } in pairs {
        let value = outputs.iter().find(|(name, _)| name == output);
        let place = feed.iter_mut().find(|(name, _)| name == input);
        if let (Some((_, value)), Some((_, place))) = (value, place) {
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
    fn derives_state_from_names_and_types() {
        let inputs = [port("input", &[1, 8]), port("state", &[2, 4]), port("h_in", &[3]), port("c0", &[3])];
        let outputs =
            [port("output", &[1, 2]), port("cN", &[3]), port("stateN", &[2, 4]), port("h_out", &[3])];
        let pairs = state_pairs(&inputs, &outputs);
        let pairs: Vec<_> = pairs.iter().map(|pair| (pair.input.as_str(), pair.output.as_str())).collect();
        assert_eq!(pairs, [("state", "stateN"), ("h_in", "h_out"), ("c0", "cN")]);
        assert!(state_pairs(&[port("x", &[3])], &[port("xyz", &[4])]).is_empty());
    }

    #[test]
    fn carries_state_to_the_next_run() {
        let value = |x: f32| Tensor::vector(&[x]).into();
        let mut feed: Feed = vec![("x".into(), value(1.0)), ("s".into(), value(0.0))];
        let outputs: Feed = vec![("y".into(), value(5.0)), ("sN".into(), value(7.0))];
        carry(&[StatePair { input: "s".into(), output: "sN".into() }], &outputs, &mut feed);
        assert_eq!(feed, [("x".into(), value(1.0)), ("s".into(), value(7.0))]);
    }
}
