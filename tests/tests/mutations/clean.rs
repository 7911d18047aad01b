//! Pairs of models that are equal up to rounding.

use crate::support::after;
use fastrand::Rng;
use pare_graph::{Model, Node, Patch, Tensor, text};
use pare_passes::{Effect, registry};
use pare_tests::random;

/// A pair with a name.
pub struct Pair {
    pub name: String,
    pub a: Model,
    pub b: Model,
}

/// The results of `safe` and of each exact or rounding pass.
pub fn by_passes(name: &str, model: &Model) -> Vec<Pair> {
    let equal =
        registry::PASSES.iter().filter(|p| p.effect < Effect::Lossy && p.has_defaults()).map(|p| p.name);
    let pair = |pass: &str| {
        let (b, report) = after(&pass.parse().ok()?, model).ok()?;
        (report.patches() > 0).then(|| Pair { name: format!("{name}: {pass}"), a: model.clone(), b })
    };
    ["safe"].into_iter().chain(equal).filter_map(pair).collect()
}

/// The results of `safe` on random graphs.
pub fn at_random(seeds: impl Iterator<Item = u64>) -> impl Iterator<Item = Pair> {
    seeds.filter_map(|seed| {
        let (source, opset) = random::graph(seed);
        let mut a = Model::of(text::parse_graph(&source, opset).ok()?);
        a.infer().ok()?;
        let (b, report) = after(&"safe".parse().ok()?, &a).ok()?;
        (report.patches() > 0).then(|| Pair { name: format!("random graph {seed}"), a, b })
    })
}

/// Products summed in another order: the channels of input and weights are permuted together.
pub fn summed_in_another_order(name: &str, model: &Model, seed: u64) -> Option<Pair> {
    let mut b = model.clone();
    let mut rng = Rng::with_seed(seed);
    let mut changed = 0;
    for &id in b.graph.nodes().iter() {
        let patch = (|| {
            let at = b.graph.at(id);
            let conv = at.is("Conv") && at.int("group", 1) == 1;
            let matrix = at.is("MatMul");
            let w = at.input(1).ok()?.constant().ok()?;
            if !(conv && w.rank() == 4 || matrix && w.rank() == 2) {
                return None;
            }
            let axis = usize::from(conv);
            let channels = w.shape()[axis];
            let mut order: Vec<usize> = (0..channels).collect();
            rng.shuffle(&mut order);
            let (outer, inner): (usize, usize) =
                (w.shape()[..axis].iter().product(), w.shape()[axis + 1..].iter().product());
            let old = w.to_f64()?;
            let mut new = Vec::with_capacity(old.len());
            for o in 0..outer {
                for &c in &order {
                    new.extend_from_slice(&old[(o * channels + c) * inner..][..inner]);
                }
            }
            let order: Vec<i64> = order.iter().map(|&c| c as i64).collect();
            let mut patch = Patch::at(at);
            let weight = patch.constant("reordered", Tensor::from_f64(w.dtype(), w.shape(), &new).ok()?);
            let order = patch.constant("order", Tensor::vector(&order));
            let axis = if conv { 1 } else { at.input(0).ok()?.rank().ok()? as i64 - 1 };
            let x =
                patch.node("x", Node::new("Gather").with("axis", axis), &[at.input(0).ok()?.into(), order]);
            let mut inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Into::into)).collect();
            inputs[0] = Some(x);
            inputs[1] = Some(weight);
            let y = patch.copy(at, &inputs);
            patch.replace(at.output().ok()?, y);
            Some(patch)
        })();
        if let Some(patch) = patch {
            changed += u64::from(b.graph.apply(patch).is_ok());
        }
    }
    (changed > 0).then(|| Pair {
        name: format!("{name}: sums in another order, seed {seed}"),
        a: model.clone(),
        b,
    })
}
