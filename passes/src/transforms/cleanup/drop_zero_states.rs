use crate::framework::matching::{is_plain, uniform};
use crate::{
    framework::{Context, Pass, PassError},
    pass,
};
use pare_graph::{Attribute, Model, Patch, Ref, ValueRef, expect, ops::Trait};

pass! {
    /// Omit initial states of `LSTM`, `GRU` and `RNN` that are zero.
    ///
    /// Without an initial state these operators start from zeros. Exporters compute a tensor of zeros for the
    /// size of the batch; the nodes that do so become unused.
    ///
    /// A value is zero if it is a constant of zeros, a `ConstantOfShape` of 0, or moves the elements of zeros.
    #[pass("drop-zero-states", Exact, "zero state dropped", "zero states dropped")]
    pub struct DropZeroStates {}
}

/// The inputs `initial_h` and `initial_c`.
const STATES: [usize; 2] = [5, 6];

impl Pass for DropZeroStates {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &["LSTM", "GRU", "RNN"], |at| {
            is_plain(at)?;
            let mut inputs: Vec<Option<Ref>> = at.inputs().into_iter().map(|v| v.map(Ref::from)).collect();
            let zero = |slot: &usize| at.optional(*slot).is_some_and(|state| is_zero(state, REACH));
            let dropped: Vec<_> = STATES.into_iter().filter(zero).collect();
            expect(!dropped.is_empty())?;
            dropped.into_iter().for_each(|slot| inputs[slot] = None);
            while inputs.last() == Some(&None) {
                inputs.pop();
            }
            let mut patch = Patch::at(at);
            let outputs = at.outputs();
            let names: Vec<_> = outputs.iter().map(|y| y.map(ValueRef::name)).collect();
            let new = patch.node_with(at.node().clone(), &inputs, &names);
            for (old, new) in outputs.into_iter().zip(new) {
                if let (Some(old), Some(new)) = (old, new) {
                    patch.replace(old, new);
                }
            }
            Ok(patch)
        })
    }
}

/// Nodes searched above a state.
const REACH: usize = 16;

fn is_zero(value: ValueRef<'_>, reach: usize) -> bool {
    if let Ok(tensor) = value.constant() {
        return uniform(tensor) == Some(0.0);
    }
    let Some(at) = value.producer().filter(|at| reach > 0 && is_plain(*at).is_ok()) else { return false };
    match at.op() {
        "ConstantOfShape" => match at.attr("value") {
            None => true,
            Some(Attribute::Tensor(tensor)) => uniform(tensor) == Some(0.0),
            _ => false,
        },
        "Concat" => at.inputs().into_iter().all(|v| v.is_some_and(|v| is_zero(v, reach - 1))),
        "Cast" => at.input(0).is_ok_and(|v| is_zero(v, reach - 1)),
        _ => at.has(Trait::DataMovement) && at.input(0).is_ok_and(|v| is_zero(v, reach - 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    const W: &str = "float[1,4,2] w = {1,2,3,4,5,6,7,8}, float[1,4,1] r = {1,2,3,4}";

    #[test]
    fn drops_states_of_computed_size() {
        check(
            DropZeroStates::default(),
            &format!(
                "g (float[T,N,2] x) => (float[T,1,N,1] y, float[1,N,1] c) <{W},
                    int64[1] o = {{1}}, float zero = {{0}}> {{
                    s = Shape(x) n = Gather(s, o) d = Concat<axis = 0>(o, n, o)
                    h0 = ConstantOfShape(d) c0 = Expand(zero, d)
                    y, h, c = LSTM<hidden_size = 1>(x, w, r, \"\", \"\", h0, c0) }}"
            ),
            &format!(
                "g (float[T,N,2] x) => (float[T,1,N,1] y, float[1,N,1] c) <{W}> {{
                    y, h, c = LSTM<hidden_size = 1>(x, w, r) }}"
            ),
        );
    }

    #[test]
    fn drops_constant_states_and_keeps_peepholes() {
        check(
            DropZeroStates::default(),
            &format!(
                "g (float[T,1,2] x) => (float[T,1,1,1] y) <{W}, float[1,1,1] z = {{0}}, float[1,3] p = {{1,2,3}}> {{
                    y = LSTM<hidden_size = 1>(x, w, r, \"\", \"\", z, z, p) }}"
            ),
            &format!(
                "g (float[T,1,2] x) => (float[T,1,1,1] y) <{W}, float[1,3] p = {{1,2,3}}> {{
                    y = LSTM<hidden_size = 1>(x, w, r, \"\", \"\", \"\", \"\", p) }}"
            ),
        );
    }

    #[test]
    fn drops_one_of_two_states() {
        check(
            DropZeroStates::default(),
            &format!(
                "g (float[T,1,2] x, float[1,1,1] h0) => (float[T,1,1,1] y) <{W}, float[1,1,1] z = {{0}}> {{
                    c0 = Identity(z) y = LSTM<hidden_size = 1>(x, w, r, \"\", \"\", h0, c0) }}"
            ),
            &format!(
                "g (float[T,1,2] x, float[1,1,1] h0) => (float[T,1,1,1] y) <{W}> {{
                    y = LSTM<hidden_size = 1>(x, w, r, \"\", \"\", h0) }}"
            ),
        );
    }

    #[test]
    fn keeps_other_states() {
        let graph = |data: &str, state: &str| {
            format!(
                "g (float[T,1,2] x, float[1,1,1] q) => (float[T,1,1,1] y) <
                    float[1,1,2] w = {{1,2}}, float[1,1,1] r = {{1}}, {data}> {{
                    {state} y = RNN<hidden_size = 1>(x, w, r, \"\", \"\", h0) }}"
            )
        };
        no_match(DropZeroStates::default(), &graph("float[1,1,1] h0 = {1}", ""));
        no_match(
            DropZeroStates::default(),
            &graph("int64[3] s = {1,1,1}", "h0 = ConstantOfShape<value = float[1] {2}>(s)"),
        );
        no_match(DropZeroStates::default(), &graph("float[1,1,1] z = {0}", "h0 = Add(z, q)"));
    }
}
