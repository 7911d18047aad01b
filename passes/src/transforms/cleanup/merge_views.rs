use super::layout::{Layout, is_view, steps_to};
use crate::{
    analysis::fusions::is_fused,
    framework::{Context, NodeBuilder, Pass, PassError, node_builder::reshape_target},
    pass,
};
use pare_graph::{
    Decline, Dim, Model, NodeRef, Patch, Ref, ValueRef, expect,
    ops::{Trait, operators_with},
};

pass! {
    /// Replace a chain of views by at most `Reshape`, `Transpose`, `Reshape`.
    ///
    /// A chain of `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze` and `Transpose` permutes factors of the axes;
    /// their final order determines the shortest equivalent chain, which is often empty. Elementwise
    /// functions in between, such as `Sigmoid`, are computed first.
    ///
    /// Declines where the sizes do not determine the factors of an axis, and where no node would be saved.
    #[pass("merge-views", Exact, "view merged", "views merged")]
    pub struct MergeViews {}
}

/// Longest chain searched.
const REACH: usize = 12;

impl Pass for MergeViews {
    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        cx.rewrite(model, &operators_with(Trait::View), |at| {
            is_view(at)?;
            let chain: Vec<_> = steps_to(at.output()?, REACH).into_iter().collect();
            expect(chain.len() >= 2 && !is_fused(at))?;
            // The longest suffix of the chain with a shorter equivalent.
            for length in (2..=chain.len()).rev() {
                let part = &chain[..length];
                if !part[length - 1].is_view {
                    continue;
                }
                // Views after the last shared value become dead.
                let dead = part.iter().enumerate().take_while(|(i, s)| *i == 0 || !s.is_kept);
                let dead = dead.filter(|(_, s)| s.is_view).count();
                let x = part[length - 1].at.input(0)?;
                let Some(plan) = Plan::of(x, part.iter().rev().filter(|s| s.is_view).map(|s| s.at)) else {
                    continue;
                };
                // Functions cannot move before a shared value.
                let between = part.iter().filter(|s| !s.is_view).map(|s| s.at);
                let kept = part.iter().skip(1).any(|s| s.is_kept);
                if plan.cost() < dead && !(kept && between.clone().next().is_some()) {
                    return plan.patch(at, x, between.collect());
                }
            }
            Err(Decline::Mismatch)
        })
    }
}

/// The shortest chain from one layout to another.
struct Plan {
    before: Option<Vec<i64>>,
    perm: Option<Vec<usize>>,
    after: Option<Vec<i64>>,
}

impl Plan {
    fn of<'g>(x: ValueRef<'g>, views: impl Iterator<Item = NodeRef<'g>>) -> Option<Self> {
        let from = x.shape()?;
        let mut layout = Layout::new(from);
        let mut to = from;
        for view in views {
            layout.then(view).ok()?;
            to = view.output().ok()?.shape()?;
        }
        Self::from_layout(&layout, from, to)
    }

    fn from_layout(layout: &Layout, from: &[Dim], to: &[Dim]) -> Option<Self> {
        let reshape = |from: &[Dim], to: &[Dim]| {
            if from == to { Some(None) } else { reshape_target(Some(from), to).map(Some) }
        };
        if layout.is_in_order() {
            return Some(Self { before: None, perm: None, after: reshape(from, to)? });
        }
        let moved =
            |shape: &[Dim], perm: &[usize]| perm.iter().map(|&p| shape[p].clone()).collect::<Vec<_>>();
        let mut plans = vec![];
        // Transpose whole axes, then reshape.
        if let Some(perm) = layout.moved_axes()
            && let Some(after) = reshape(&moved(from, &perm), to)
        {
            plans.push(Self { before: None, perm: Some(perm), after });
        }
        // Reshape to the target axes, then transpose.
        if let Some(inverse) = layout.reversed().moved_axes() {
            let mut perm = vec![0; inverse.len()];
            inverse.iter().enumerate().for_each(|(i, &p)| perm[p] = i);
            if let Some(before) = reshape(from, &moved(to, &inverse)) {
                plans.push(Self { before, perm: Some(perm), after: None });
            }
        }
        // Reshape to blocks that stay together, transpose them, reshape.
        plans.extend(Self::in_blocks(layout, from, to));
        plans.into_iter().min_by_key(Self::cost)
    }

    fn in_blocks(layout: &Layout, from: &[Dim], to: &[Dim]) -> Option<Self> {
        let (source, target) = (layout.before.concat(), layout.after.concat());
        let place = |factor: usize| target.iter().position(|&f| f == factor);
        let mut blocks: Vec<Vec<usize>> = vec![];
        for &factor in &source {
            let follows = blocks
                .last()
                .and_then(|b| b.last())
                .is_some_and(|&f| place(f).zip(place(factor)).is_some_and(|(a, b)| a + 1 == b));
            match blocks.last_mut().filter(|_| follows) {
                Some(block) => block.push(factor),
                None => blocks.push(vec![factor]),
            }
        }
        let mut perm: Vec<_> = (0..blocks.len()).collect();
        perm.sort_by_key(|&b| place(blocks[b][0]));
        let split: Vec<_> = blocks.iter().map(|block| layout.size(block)).collect();
        let joined: Vec<_> = perm.iter().map(|&b| split[b].clone()).collect();
        let before = reshape_target(Some(from), &split)?;
        let after = reshape_target(Some(&joined), to)?;
        Some(Self { before: Some(before), perm: Some(perm), after: Some(after) })
    }

    fn cost(&self) -> usize {
        usize::from(self.before.is_some())
            + usize::from(self.perm.is_some())
            + usize::from(self.after.is_some())
    }

    /// `between`: functions to compute first, last one first.
    fn patch(self, at: NodeRef<'_>, x: ValueRef<'_>, between: Vec<NodeRef<'_>>) -> Result<Patch, Decline> {
        let y = at.output()?;
        let mut patch = Patch::at(at);
        let mut value: Ref = x.into();
        for function in between.into_iter().rev() {
            value = patch.copy(function, &[Some(value)]);
        }
        let mut spell = NodeBuilder::new(at.graph, &mut patch, y.name());
        if let Some(target) = self.before {
            value = spell.reshape(value, &target);
        }
        if let Some(perm) = self.perm {
            value = spell.transpose(value, &perm);
        }
        if let Some(target) = self.after {
            value = spell.reshape(value, &target);
        }
        patch.replace(y, value);
        Ok(patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{check, no_match};

    #[test]
    fn removes_chain_that_restores_the_layout() {
        check(
            MergeViews::default(),
            "g (float[N,6,4] x) => (float[N,6,4] y) <int64[4] s = {0,2,3,4}, int64[3] t = {0,-1,4}> {
                a = Reshape(x, s) b = Transpose<perm = [0,2,1,3]>(a) c = Sigmoid(b)
                d = Transpose<perm = [0,2,1,3]>(c) e = Reshape(d, t) y = Relu(e) }",
            "g (float[N,6,4] x) => (float[N,6,4] y) { c_1 = Sigmoid(x) y = Relu(c_1) }",
        );
    }

    #[test]
    fn merges_reshapes_around_transpose_into_transpose() {
        check(
            MergeViews::default(),
            "g (float[N,6,4] x) => (float[N,4,6] y) <int64[4] u = {-1,6,2,2}> {
                a = Reshape(x, u) b = Transpose<perm = [0,2,3,1]>(a) v = Constant<value = int64[3] {0,4,6}>()
                y = Reshape(b, v) }",
            "g (float[N,6,4] x) => (float[N,4,6] y) { y = Transpose<perm = [0,2,1]>(x) }",
        );
    }

    #[test]
    fn splits_axes_before_and_joins_them_after_transpose() {
        // A channel shuffle needs three nodes.
        no_match(
            MergeViews::default(),
            "g (float[N,6,4] x) => (float[N,6,4] y) <int64[4] s = {0,2,3,4}, int64[3] t = {0,-1,4}> {
                a = Reshape(x, s) b = Transpose<perm = [0,2,1,3]>(a) y = Reshape(b, t) }",
        );
        check(
            MergeViews::default(),
            "g (float[N,6,4,4] x) => (float[N,6,4,4] y) <int64[4] s = {0,2,3,16}, int64[3] t = {0,6,16},
                int64[4] u = {0,0,4,4}> {
                a = Reshape(x, s) b = Transpose<perm = [0,2,1,3]>(a) c = Reshape(b, t) y = Reshape(c, u) }",
            "g (float[N,6,4,4] x) => (float[N,6,4,4] y) <int64[4] y_shape = {-1,2,3,16}, int64[4] y_shape_1 = {-1,6,4,4}> {
                y_1 = Reshape(x, y_shape) y_2 = Transpose<perm = [0,2,1,3]>(y_1) y = Reshape(y_2, y_shape_1) }",
        );
    }

    #[test]
    fn follows_axes_of_size_1() {
        check(
            MergeViews::default(),
            "g (float[1,N,5] x) => (float[N,1,5] y) <int64[1] o = {0}> {
                a = Squeeze(x, o) b = Unsqueeze(a, o) y = Transpose<perm = [1,0,2]>(b) }",
            "g (float[1,N,5] x) => (float[N,1,5] y) { y = Transpose<perm = [1,0,2]>(x) }",
        );
    }

    #[test]
    fn keeps_shared_values() {
        no_match(
            MergeViews::default(),
            "g (float[2,3,4] x) => (float[4,6] y, float[4,2,3] z) <int64[2] s = {4,6}> {
                a = Transpose<perm = [2,0,1]>(x) z = Relu(a) y = Reshape(a, s) }",
        );
    }

    #[test]
    fn random_chains_keep_every_element() {
        // Chains of up to four random views, compared element by element.
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let mut shape: Vec<usize> =
                (0..random.usize(1..4)).map(|_| [1, 2, 3, 4, 6][random.usize(0..5)]).collect();
            let from: Vec<Dim> = shape.iter().map(|&d| Dim::from(d)).collect();
            let mut layout = Layout::new(&from);
            let count: usize = shape.iter().product();
            let mut order: Vec<usize> = (0..count).collect();
            for _ in 0..random.usize(1..5) {
                if random.bool() {
                    let mut perm: Vec<_> = (0..shape.len()).collect();
                    random.shuffle(&mut perm);
                    order = transposed(&order, &shape, &perm);
                    shape = perm.iter().map(|&p| shape[p]).collect();
                    layout.transpose(&perm).unwrap();
                } else {
                    let mut left = count;
                    let mut next = vec![];
                    while left > 1 && random.u8(0..4) > 0 {
                        let divisors: Vec<_> = (1..=left).filter(|d| left.is_multiple_of(*d)).collect();
                        let d = divisors[random.usize(0..divisors.len())];
                        next.push(d);
                        left /= d;
                    }
                    next.push(left);
                    let dims: Vec<Dim> = next.iter().map(|&d| Dim::from(d)).collect();
                    // A size that cuts across factors is undetermined: the chain ends here.
                    if layout.clone().reshape(&dims).is_none() {
                        break;
                    }
                    layout.reshape(&dims).unwrap();
                    shape = next;
                }
            }
            let to: Vec<Dim> = shape.iter().map(|&d| Dim::from(d)).collect();
            for plan in all_plans(&layout, &from, &to) {
                let (mut now, mut at): (Vec<_>, Vec<usize>) =
                    ((0..count).collect(), from.iter().map(|d| d.size().unwrap()).collect());
                if let Some(target) = &plan.before {
                    at = resolved(target, &at);
                }
                if let Some(perm) = &plan.perm {
                    now = transposed(&now, &at, perm);
                    at = perm.iter().map(|&p| at[p]).collect();
                }
                if let Some(target) = &plan.after {
                    at = resolved(target, &at);
                }
                assert_eq!((&now, &at), (&order, &shape));
            }
        }
    }

    fn all_plans(layout: &Layout, from: &[Dim], to: &[Dim]) -> Vec<Plan> {
        let mut plans: Vec<_> = Plan::in_blocks(layout, from, to).into_iter().collect();
        plans.extend(Plan::from_layout(layout, from, to));
        plans
    }

    fn resolved(target: &[i64], from: &[usize]) -> Vec<usize> {
        target.iter().enumerate().map(|(i, &t)| if t == 0 { from[i] } else { t as usize }).collect()
    }

    fn transposed(items: &[usize], shape: &[usize], perm: &[usize]) -> Vec<usize> {
        let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
        let moved: Vec<_> = perm.iter().map(|&p| shape[p]).collect();
        (0..items.len())
            .map(|mut flat| {
                let mut source = 0;
                for axis in (0..moved.len()).rev() {
                    source += flat % moved[axis] * strides[perm[axis]];
                    flat /= moved[axis];
                }
                items[source]
            })
            .collect()
    }
}
