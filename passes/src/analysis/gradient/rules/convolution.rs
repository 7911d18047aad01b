//! Convolutions.

use super::super::{
    step::{Done, Step},
    term::Term,
};
use super::{
    other_axes,
    pooling::{Geometry, spatial},
};
use pare_graph::{
    Decline,
    ops::{ConvTransposeView, ConvView, SliceAxis},
};

/// `Y = X ⋆ W + B`: `dX` is the transposed convolution of `dY` with `W`, `dW = X ⋆ dY` over the samples, and
/// `dB = Σ dY`.
pub(super) fn conv(s: &Step<'_>) -> Done {
    let (x, w, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let view = s.read(ConvView::of)?;
    let geometry = geometry(&view);
    s.give_with(0, || {
        let (sizes, windows) = (spatial(x)?, spatial(dy)?);
        Ok(geometry.transposed(dy, w, view.group, &sizes, &windows))
    });
    s.give_with(1, || weight(x, dy, &geometry, view.group));
    s.give_with(2, || Ok(dy.collapsed(&other_axes(dy.rank()?, &[1]))));
    Ok(())
}

fn geometry(view: &ConvView) -> Geometry<'_> {
    let ConvView { strides, dilations, pads, kernel, .. } = view;
    Geometry { strides, dilations, pads, kernel }
}

/// `dW[o,c,k] = Σₙ Σᵢ dY[n,o,i]·X[n,c',s·i + d·k − begin]`: a convolution of `X` with `dY` as weight, where samples
/// take the place of channels and strides that of dilations.
fn weight<'t>(x: Term<'t>, dy: Term<'t>, geometry: &Geometry<'_>, group: usize) -> Result<Term<'t>, Decline> {
    let (sizes, windows) = (spatial(x)?, spatial(dy)?);
    let swap = |term: Term<'t>, sizes: &[usize], grouped: bool| -> Result<Term<'t>, Decline> {
        let rank = term.rank()?;
        let mut perm: Vec<_> = (0..rank).collect();
        perm.swap(0, 1);
        if group == 1 || !grouped {
            return Ok(term.transpose(&perm));
        }
        // [N, G·C, …] to [C, G·N, …]
        let channels = term.size(1)?;
        let apart = term.reshape(&[0, group as i64, (channels / group) as i64, -1]);
        let mut target = vec![(channels / group) as i64, -1];
        target.extend(sizes.iter().map(|&size| size as i64));
        Ok(apart.transpose(&[2, 1, 0, 3]).reshape(&target))
    };
    let conv = Geometry {
        strides: geometry.dilations,
        dilations: geometry.strides,
        pads: geometry.pads,
        kernel: &windows,
    };
    let [images, filters] = [swap(x, &sizes, true)?, swap(dy, &windows, false)?];
    let all = x.tape().node(conv.conv(group), &[images, filters]);
    // Elements after the last window add positions.
    let cuts: Vec<_> = (0..sizes.len())
        .map(|i| SliceAxis { axis: 2 + i, start: 0, end: geometry.kernel[i] as i64, step: 1 })
        .collect();
    let rank = all.rank()?;
    let mut perm: Vec<_> = (0..rank).collect();
    perm.swap(0, 1);
    Ok(all.slice(&cuts).transpose(&perm))
}

/// The adjoint of a convolution `C` with the same kernel: `dX = C(dY)`, `dW` that of `C` with `X` and `dY` in each
/// other's place, `dB = Σ dY`.
pub(super) fn conv_transpose(s: &Step<'_>) -> Done {
    let (x, w, dy) = (s.x(0)?, s.x(1)?, s.dy()?);
    let view = s.read(ConvTransposeView::of)?;
    let ConvTransposeView { strides, dilations, pads, kernel, group, .. } = &view;
    let geometry = Geometry { strides, dilations, pads, kernel };
    s.give_with(0, || {
        let all = s.tape.node(geometry.conv(*group), &[dy, w]);
        // Output padding that exceeds a stride would add windows.
        let sizes = spatial(x)?;
        let cuts: Vec<_> = (0..sizes.len())
            .filter(|&i| all.size(2 + i).ok() != Some(sizes[i]))
            .map(|i| SliceAxis { axis: 2 + i, start: 0, end: sizes[i] as i64, step: 1 })
            .collect();
        Ok(if cuts.is_empty() { all } else { all.slice(&cuts) })
    });
    s.give_with(1, || weight(dy, x, &geometry, *group));
    s.give_with(2, || Ok(dy.collapsed(&other_axes(dy.rank()?, &[1]))));
    Ok(())
}
