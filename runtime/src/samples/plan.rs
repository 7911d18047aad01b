//! Sizes of symbolic dimensions.

use super::specs::InputSpec;
use crate::{PortDim, PortKind};
use pare_graph::DataType;
use std::collections::BTreeMap;

/// The presumed meaning of a dimension, which determines its sizes. If a symbol has several, the first of
/// these counts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Meaning {
    Batch,
    /// Height or width of images, which models halve several times: small or odd sizes may not run.
    Space,
    Other,
    /// The last axis of a list of floats, such as sound: filters and transforms need a minimal length.
    Signal,
}

impl Meaning {
    /// The size in each plan. In the first plan all dimensions of a meaning are equal, which is most likely
    /// to run. In the others they are odd and depend on `rank`, the index among the dimensions of a meaning:
    /// exchanged dimensions show.
    fn sizes(self, rank: usize) -> [usize; 3] {
        match self {
            Self::Batch => [1, 3, 2],
            Self::Space => [64, 96 + 32 * (rank % 3), 61 + 2 * (rank % 8)],
            Self::Other => [8, 5 + 2 * (rank % 16), 13 + rank % 16],
            Self::Signal => [512, 576 + 64 * (rank % 3), 1001 + 2 * (rank % 8)],
        }
    }
}

/// Returns sizes for the symbolic dimensions of `inputs`: three plans, or one empty plan without such
/// dimensions. A dimension without a name is called `input#axis`.
pub fn symbol_plans(inputs: &[InputSpec]) -> Vec<BTreeMap<String, usize>> {
    let mut meanings: BTreeMap<String, Meaning> = BTreeMap::new();
    for input in inputs {
        let (dtype, dims) = (dtype(&input.kind), dims(&input.kind));
        for (axis, dim) in dims.iter().enumerate() {
            let Some(name) = symbol(&input.name, axis, dim) else { continue };
            let found = meaning(dims, axis, dtype);
            meanings.entry(name).and_modify(|known| *known = (*known).min(found)).or_insert(found);
        }
    }
    if meanings.is_empty() {
        return vec![BTreeMap::new()];
    }
    let mut plans = vec![BTreeMap::new(); 3];
    let mut ranks: BTreeMap<Meaning, usize> = BTreeMap::new();
    for (name, meaning) in &meanings {
        let rank = ranks.entry(*meaning).or_default();
        for (plan, size) in plans.iter_mut().zip(meaning.sizes(*rank)) {
            plan.insert(name.clone(), size);
        }
        *rank += 1;
    }
    plans
}

fn dtype(kind: &PortKind) -> Option<DataType> {
    match kind {
        PortKind::Tensor { dtype, .. } => Some(*dtype),
        PortKind::Sequence(inner) | PortKind::Optional(inner) => dtype(inner),
        PortKind::Map { .. } | PortKind::Other(_) => None,
    }
}

pub(super) fn dims(kind: &PortKind) -> &[PortDim] {
    match kind {
        PortKind::Tensor { dims, .. } => dims.as_deref().unwrap_or_default(),
        PortKind::Sequence(inner) | PortKind::Optional(inner) => dims(inner),
        PortKind::Map { .. } | PortKind::Other(_) => &[],
    }
}

fn symbol(input: &str, axis: usize, dim: &PortDim) -> Option<String> {
    match dim {
        PortDim::Fixed(_) => None,
        PortDim::Symbol(name) => Some(name.clone()),
        PortDim::Unknown => Some(format!("{input}#{axis}")),
    }
}

fn meaning(dims: &[PortDim], axis: usize, dtype: Option<DataType>) -> Meaning {
    let rank = dims.len();
    let batch = match &dims[axis] {
        PortDim::Symbol(name) => {
            let name = name.to_ascii_lowercase();
            // `N` alone may also be a length, but not on a leading axis.
            let leading = axis == 0 || (axis == 1 && rank == 3);
            name.contains("batch") || (leading && ["n", "b", "bs"].contains(&name.as_str()))
        }
        // The state of a recurrent layer, [layers, batch, units].
        _ => matches!(dims, [PortDim::Fixed(_), PortDim::Unknown, PortDim::Fixed(_)]),
    };
    let last = axis + 1 == rank;
    match rank {
        _ if batch || (axis == 0 && rank >= 2) => Meaning::Batch,
        4.. if axis >= 2 => Meaning::Space,
        2 | 3 if last && dtype.is_some_and(DataType::is_float) => Meaning::Signal,
        _ => Meaning::Other,
    }
}

/// The sizes of `dims` of `input`, with the symbols from `plan` (1 for a symbol without a size).
pub(super) fn sizes(input: &InputSpec, dims: &[PortDim], plan: &BTreeMap<String, usize>) -> Vec<usize> {
    let size = |(axis, dim): (usize, &PortDim)| match dim {
        PortDim::Fixed(size) => *size,
        dim => {
            let symbol = symbol(&input.name, axis, dim);
            symbol.and_then(|name| plan.get(&name).copied()).unwrap_or(1)
        }
    };
    dims.iter().enumerate().map(size).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Port;
    use std::collections::BTreeSet;

    fn spec(name: &str, dtype: DataType, dims: &[PortDim]) -> InputSpec {
        InputSpec::from(&Port::tensor(name, dtype, dims))
    }

    fn named(name: &str) -> PortDim {
        PortDim::Symbol(name.to_owned())
    }

    #[test]
    fn varies_every_symbol() {
        let image = spec("image", DataType::Float, &[named("N"), PortDim::Fixed(3), named("h"), named("w")]);
        let ids = spec("ids", DataType::Int64, &[named("N"), named("length"), PortDim::Unknown]);
        let plans = symbol_plans(&[image, ids]);
        for symbol in ["N", "h", "w", "length", "ids#2"] {
            let sizes: BTreeSet<_> = plans.iter().map(|plan| plan[symbol]).collect();
            assert!(sizes.len() >= 2, "{symbol}: {sizes:?}");
        }
        assert_eq!(plans.iter().map(|plan| plan["N"]).collect::<Vec<_>>(), [1, 3, 2]);
        assert_eq!((plans[0]["h"], plans[0]["length"]), (64, 8));
        assert_ne!(plans[1]["h"], plans[1]["w"]);
        let sound = spec("sound", DataType::Float, &[named("N"), named("time")]);
        assert_eq!(symbol_plans(&[sound])[0]["time"], 512);
        let wave = spec("wave", DataType::Float, &[named("batch_size"), named("N")]);
        assert_eq!(symbol_plans(&[wave])[0]["N"], 512);
        let state = spec("h", DataType::Float, &[PortDim::Fixed(2), PortDim::Unknown, PortDim::Fixed(128)]);
        assert_eq!(symbol_plans(&[state])[1]["h#1"], 3);
        assert_eq!(symbol_plans(&[spec("x", DataType::Float, &[PortDim::Fixed(1)])]), [BTreeMap::new()]);
    }
}
