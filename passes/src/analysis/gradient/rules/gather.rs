//! Selection by indices: the gradient of an element is the sum over its copies.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use pare_graph::{Decline, Node, ops::axis_of};

/// `y[…, i, …] = x[…, index[i], …]`: `dx[…, j, …] = Σ_{index[i] = j} dy[…, i, …]`.
pub(super) fn gather(s: &Step<'_>) -> Done {
    let (x, indices, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let axis = s.read(axis_of)?;
    let (rank, index_rank) = (x.rank()?, indices.rank()?);
    let single =
        s.tape.read(|graph| graph.value_ref(indices.id).constant().ok().and_then(|t| t.single_i64()));
    s.give_with(0, || {
        if let (Some(index), Ok(size)) = (single, x.size(axis)) {
            // One position: zeros around it.
            let index = if index < 0 { index + size as i64 } else { index };
            let kept = if index_rank == 0 { dy.unsqueeze(&[axis]) } else { dy };
            let mut pads = vec![(0, 0); rank];
            pads[axis] = (index, size as i64 - 1 - index);
            if index_rank <= 1 {
                return Ok(kept.pad(&pads));
            }
        }
        // The gathered axis first, in x and (as several axes) in dy.
        let mut forward: Vec<_> = (0..rank).collect();
        forward.remove(axis);
        forward.insert(0, axis);
        let mut backward = vec![0; rank];
        forward.iter().enumerate().for_each(|(i, &from)| backward[from] = i);
        let total = dy.rank()?;
        let taken: Vec<_> = (axis..axis + index_rank).collect();
        let order: Vec<_> = taken.iter().copied().chain((0..total).filter(|a| !taken.contains(a))).collect();
        let zeros = x.zeros().transpose(&forward);
        let updates = dy.transpose(&order);
        let sums = scatter(zeros, indices.unsqueeze(&[index_rank]), updates);
        Ok(sums.transpose(&backward))
    });
    Ok(())
}

/// Adds `updates` to `zeros` at the rows that the last axis of `indices` names.
fn scatter<'t>(zeros: Term<'t>, indices: Term<'t>, updates: Term<'t>) -> Term<'t> {
    let indices = indices.cast(pare_graph::DataType::Int64);
    zeros.tape().node(Node::new("ScatterND").with("reduction", "add"), &[zeros, indices, updates])
}

/// `y[i…] = x[index[i…]…]`: `dx` sums the elements of `dy` at their indices.
pub(super) fn gather_nd(s: &Step<'_>) -> Done {
    let (x, indices, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    if s.int("batch_dims", 0) != 0 {
        return s.because("has batch axes");
    }
    s.give_with(0, || Ok(scatter(x.zeros(), indices, dy)));
    Ok(())
}

/// `y[i, j] = x[index[i, j], j]` along `axis`: `dx` sums the elements of `dy` at their indices.
pub(super) fn gather_elements(s: &Step<'_>) -> Done {
    let (x, indices, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    s.give_with(0, || scattered(s, x, indices, dy));
    Ok(())
}

/// `y[i, j] = x[index[i, j], j]` along `axis`, where `index` is the other output: `dx` sums the elements of `dy` there.
pub(super) fn top_k(s: &Step<'_>) -> Done {
    let (x, dy) = (s.x(0)?, s.dy()?);
    let Some(indices) = s.output(1) else { return s.because("has no output for the indices") };
    s.give_with(0, || scattered(s, x, indices, dy));
    Ok(())
}

/// Zeros of the shape of `x` to which `dy` is added at the indices along `axis`.
fn scattered<'t>(s: &Step<'t>, x: Term<'t>, indices: Term<'t>, dy: Term<'t>) -> Result<Term<'t>, Decline> {
    let node = Node::new("ScatterElements").with("axis", s.read(axis_of)? as i64).with("reduction", "add");
    Ok(s.tape.node(node, &[x.zeros(), indices, dy]))
}
