//! Operators that move elements.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use pare_graph::{
    Decline, Dim, Node,
    ops::{PadMode, PadView, SliceAxis, SliceView, TransposeView, axis_of},
};

/// The same elements in another shape: `dx = dy` in the shape of `x`.
pub(super) fn reshape(s: &Step<'_>) -> Done {
    let (x, dy) = (s.x(0)?, s.dy()?);
    s.give_with(0, || dy.reshape_like(x));
    Ok(())
}

/// `dx` is `dy` in the inverse order of axes.
pub(super) fn transpose(s: &Step<'_>) -> Done {
    let inverse = s.read(TransposeView::of)?.inverse();
    s.unary(|_, _, dy| dy.transpose(&inverse.perm))
}

/// `x` broadcast to a shape: `dx` is the sum over the broadcast axes.
pub(super) fn expand(s: &Step<'_>) -> Done {
    s.unary(|_, _, dy| dy)
}

/// `y = [x₀, x₁, …]`, `[dx₀, dx₁, …] = dy`.
pub(super) fn concat(s: &Step<'_>) -> Done {
    let (axis, dy) = (s.read(axis_of)?, s.dy()?);
    let inputs = (0..s.arity()).map(|slot| s.x(slot)).collect::<Result<Vec<_>, _>>()?;
    if let [_] = inputs[..] {
        s.give(0, dy);
        return Ok(());
    }
    let fixed: Option<Vec<_>> = inputs.iter().map(|x| x.size(axis).ok().map(|size| size as i64)).collect();
    let sizes = match fixed {
        Some(sizes) => s.tape.ints(&sizes),
        None => s.tape.concat(&inputs.iter().map(|x| x.size_vector(axis)).collect::<Vec<_>>(), 0),
    };
    let parts = dy.split(axis, sizes, inputs.len());
    parts.into_iter().enumerate().for_each(|(slot, part)| s.give(slot, part));
    Ok(())
}

/// `[y₀, y₁, …] = x`, `dx = [dy₀, dy₁, …]`, with 0 for outputs without a gradient.
pub(super) fn split(s: &Step<'_>) -> Done {
    let axis = s.read(axis_of)?;
    let part = |slot| match (s.gradient(slot), s.output(slot)) {
        (Some(gradient), _) => Ok(gradient),
        (None, Some(output)) => Ok(output.zeros()),
        (None, None) => s.because("has an omitted output"),
    };
    let parts = (0..s.results()).map(part).collect::<Result<Vec<_>, _>>()?;
    s.give_with(0, || Ok(s.tape.concat(&parts, axis as i64)));
    Ok(())
}

/// `y = x[start + step·i]`: `dx` is `dy` with 0 between and around its elements.
pub(super) fn slice(s: &Step<'_>) -> Done {
    let (x, dy) = (s.x(0)?, s.dy()?);
    let view = s.read(SliceView::of)?;
    s.give_with(0, || {
        let mut dx = dy;
        for cut in &view.axes {
            dx = unslice(dx, *cut, x.size(cut.axis)?)?;
        }
        Ok(dx)
    });
    Ok(())
}

/// Puts the elements along one axis at the positions of an axis of this size from which they were taken.
fn unslice(mut dy: Term<'_>, cut: SliceAxis, size: usize) -> Result<Term<'_>, Decline> {
    let SliceAxis { axis, step, .. } = cut;
    let (start, length) = cut.on(size);
    let rank = dy.rank()?;
    let pads = |before: i64, after: i64| -> Vec<_> {
        (0..rank).map(|i| if i == axis { (before, after) } else { (0, 0) }).collect()
    };
    if length == 0 {
        return Ok(dy.pad(&pads(0, size as i64)));
    }
    let stride = step.unsigned_abs() as usize;
    let first = if step > 0 { start } else { start - stride * (length - 1) };
    if step < 0 {
        dy = dy.slice(&[SliceAxis { axis, start: -1, end: i64::MIN, step: -1 }]);
    }
    if stride > 1 && length > 1 {
        // stride − 1 zeros after each element
        let mut spaced: Vec<_> = vec![(0, 0); rank + 1];
        spaced[axis + 1] = (0, stride as i64 - 1);
        let mut dims = dy.dims()?;
        dims[axis] = Dim::from((length * stride) as i64);
        let apart = dy.unsqueeze(&[axis + 1]).pad(&spaced);
        let merge = merged(&apart.dims()?, axis);
        dy = match merge {
            Some(target) => apart.reshape(&target),
            None => return Err(Decline::because("it is sliced beside several axes of unknown size")),
        };
    }
    let now = if stride > 1 && length > 1 { length * stride } else { length };
    Ok(dy.pad(&pads(first as i64, size as i64 - (first + now) as i64)))
}

/// The target of a `Reshape` that merges axis `axis` with the next; `None` if two or more sizes are unknown.
fn merged(dims: &[Dim], axis: usize) -> Option<Vec<i64>> {
    let mut open = 0;
    let mut sizes: Vec<_> = dims
        .iter()
        .map(|dim| {
            dim.known().unwrap_or_else(|| {
                open += 1;
                -1
            })
        })
        .collect();
    let next = sizes.remove(axis + 1);
    sizes[axis] *= next;
    (open <= 1).then_some(sizes)
}

/// `y` is `x` with elements around it; `dx` is `dy` without them. Declines for elements that repeat those of `x`.
pub(super) fn pad(s: &Step<'_>) -> Done {
    let dy = s.dy()?;
    let view = s.read(PadView::of)?;
    if !matches!(view.mode, PadMode::Constant(_)) {
        return s.because("pads with elements of its input");
    }
    let back: Vec<_> = view.pads.iter().map(|&(before, after)| (-before, -after)).collect();
    s.give_with(0, || Ok(dy.pad(&back)));
    Ok(())
}

/// `y` repeats `x` along each axis; `dx` is the sum of the repetitions.
pub(super) fn tile(s: &Step<'_>) -> Done {
    let (x, repeats, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let repeats = s.tape.read(|graph| graph.value_ref(repeats.id).constant_ints())?;
    let mut target = vec![];
    let mut axes = vec![];
    for (axis, &count) in repeats.iter().enumerate() {
        axes.push(target.len());
        target.extend([count, x.size(axis)? as i64]);
    }
    s.give_with(0, || Ok(dy.reshape(&target).collapsed(&axes)));
    Ok(())
}

/// A triangle of `x`; `dx` is that triangle of `dy`.
pub(super) fn trilu(s: &Step<'_>) -> Done {
    let dy = s.dy()?;
    let node = Node::new("Trilu").with("upper", s.int("upper", 1));
    let inputs: Vec<_> = std::iter::once(Some(dy)).chain(s.optional(1).map(Some)).collect();
    s.give_with(0, || Ok(s.tape.nodes(node, &inputs, 1)[0]));
    Ok(())
}

/// Reverses the first elements of each sequence; `dx` is `dy`, reversed again.
pub(super) fn reverse_sequence(s: &Step<'_>) -> Done {
    let (lengths, dy) = (s.x(1)?, s.dy()?);
    let (batch, time) = (s.int("batch_axis", 1), s.int("time_axis", 0));
    let node = Node::new("ReverseSequence").with("batch_axis", batch).with("time_axis", time);
    s.give_with(0, || Ok(s.tape.node(node, &[dy, lengths])));
    Ok(())
}

/// Blocks of channels become positions; `dx` moves the positions of `dy` back.
pub(super) fn depth_to_space(s: &Step<'_>) -> Done {
    let dy = s.dy()?;
    let (block, mode) = (s.int("blocksize", 1), s.string("mode", "DCR"));
    let inverse = dy.tape().node(Node::new("SpaceToDepth").with("blocksize", block), &[dy]);
    s.give_with(0, || {
        if mode == "DCR" {
            return Ok(inverse);
        }
        // From channels in the order [block², C] to [C, block²].
        let channels = inverse.size(1)? as i64;
        let apart = inverse.reshape(&[0, block * block, channels / (block * block), -1]);
        apart.transpose(&[0, 2, 1, 3]).reshape_like(s.x(0)?)
    });
    Ok(())
}

/// Blocks of positions become channels; `dx` moves the channels of `dy` back.
pub(super) fn space_to_depth(s: &Step<'_>) -> Done {
    let dy = s.dy()?;
    let node = Node::new("DepthToSpace").with("blocksize", s.int("blocksize", 1)).with("mode", "DCR");
    s.give_with(0, || Ok(s.tape.node(node, &[dy])));
    Ok(())
}
