//! Pooling.

use super::super::{
    step::{Done, Step},
    term::{Term, signed},
};
use pare_graph::{
    Attribute, Decline, Dim, Node,
    ops::{PoolView, SliceAxis},
};

/// `y = mean(x)` over the positions, `dx = dy/n`.
pub(super) fn global_average_pool(s: &Step<'_>) -> Done {
    let (x, y, dy) = (s.x(0)?, s.y()?, s.dy()?);
    s.give_with(0, || {
        let share = match (x.dims()?.iter().skip(2).map(Dim::size).product::<Option<usize>>(), x.count()) {
            (Some(positions), _) => dy / positions as f64,
            (None, count) => dy * (y.count() / count),
        };
        Ok(share.expand_like(x))
    });
    Ok(())
}

/// `y = max(x)` over the positions, `dx = dy·[x = y] / Σ [x = y]`.
pub(super) fn global_max_pool(s: &Step<'_>) -> Done {
    let axes: Vec<_> = (2..s.x(0)?.rank()?).collect();
    s.unary(|x, y, dy| {
        let chosen = x.op2("Equal", y).cast(x.dtype());
        chosen * (dy / chosen.total(&axes))
    })
}

/// `y = max(x)` over each window, `dx = Σ dy` over the windows whose maximum the element is.
pub(super) fn max_pool(s: &Step<'_>) -> Done {
    let (x, dy) = (s.x(0)?, s.dy()?);
    if s.int("storage_order", 0) != 0 {
        return s.because("has indices in another order");
    }
    // The positions of the maxima in the flattened input.
    let node = s.read(|at| at.node().clone());
    s.give_with(0, || {
        let indices = s.tape.nodes(node, &[Some(x)], 2)[1];
        let zeros = x.zeros().reshape(&[-1]);
        let scatter = Node::new("ScatterElements").with("axis", 0_i64).with("reduction", "add");
        let sums = s.tape.node(scatter, &[zeros, indices.reshape(&[-1]), dy.reshape(&[-1])]);
        sums.reshape_like(x)
    });
    Ok(())
}

/// `y = Σ x / n` over each window, `dx = Σ dy / n` over the windows that contain the element.
pub(super) fn average_pool(s: &Step<'_>) -> Done {
    let (x, dy) = (s.x(0)?, s.dy()?);
    let view = s.read(PoolView::of)?;
    s.give_with(0, || {
        let (sizes, windows) = (spatial(x)?, spatial(dy)?);
        let share = dy / counts(dy, &view, &sizes, &windows);
        let copies = if tiles(&view, &sizes) { repeated(share, &view.kernel) } else { None };
        copies.map_or_else(|| spread(share, x, &view, &sizes, &windows), Ok)
    });
    Ok(())
}

/// The sizes of the axes after the first two.
pub(super) fn spatial(x: Term<'_>) -> Result<Vec<usize>, Decline> {
    (2..x.rank()?).map(|axis| x.size(axis)).collect()
}

/// The number of elements that each window averages, in the shape of the windows.
fn counts<'t>(like: Term<'t>, view: &PoolView, sizes: &[usize], windows: &[usize]) -> Term<'t> {
    let along = |axis: usize| -> Vec<f64> {
        let (before, after) = view.pads[axis];
        let size = sizes[axis] as i64;
        let (low, high) = if view.counts_padding { (-before, size + after) } else { (0, size) };
        let position = |window: usize, k: usize| {
            (window * view.strides[axis] + k * view.dilations[axis]) as i64 - before
        };
        let inside = |window| {
            let positions = (0..view.kernel[axis]).map(|k| position(window, k));
            positions.filter(|position| (low..high).contains(position)).count()
        };
        (0..windows[axis]).map(|window| inside(window).max(1) as f64).collect()
    };
    let mut shape = vec![];
    let mut counts = vec![1.0];
    for axis in 0..sizes.len() {
        let line = along(axis);
        counts = counts.iter().flat_map(|count| line.iter().map(move |n| count * n)).collect();
        shape.push(line.len());
    }
    match counts.first() {
        Some(&first) if counts.iter().all(|&n| n == first) => like.number(first),
        _ => like.numbers(&shape, &counts),
    }
}

/// Returns true if the windows tile the input.
fn tiles(view: &PoolView, sizes: &[usize]) -> bool {
    view.kernel == view.strides
        && view.pads.iter().all(|&pad| pad == (0, 0))
        && view.dilations.iter().all(|&d| d == 1)
        && sizes.iter().zip(&view.kernel).all(|(size, k)| size.is_multiple_of(*k))
}

/// Repeats each element of the spatial axes; `None` if more than one other size is unknown.
fn repeated<'t>(x: Term<'t>, times: &[usize]) -> Option<Term<'t>> {
    let dims = x.dims().ok()?;
    let sizes: Vec<_> = dims.iter().map(Dim::known).collect();
    if sizes.iter().filter(|size| size.is_none()).count() > 1 {
        return None;
    }
    let gaps: Vec<_> = (0..times.len()).map(|i| 3 + 2 * i).collect();
    let mut blocks = vec![1; 2];
    let mut target: Vec<_> = sizes[..2].iter().map(|size| size.unwrap_or(-1)).collect();
    for (i, &count) in times.iter().enumerate() {
        blocks.extend([1, count as i64]);
        target.push(sizes[2 + i].map_or(-1, |size| size * count as i64));
    }
    let apart = x.unsqueeze(&gaps).op2("Expand", x.tape().ints(&blocks));
    Some(apart.reshape(&target))
}

/// The adjoint of the sum over windows: a transposed convolution of each channel with a kernel of ones.
fn spread<'t>(
    dy: Term<'t>,
    x: Term<'t>,
    view: &PoolView,
    sizes: &[usize],
    windows: &[usize],
) -> Result<Term<'t>, Decline> {
    // Channels are independent: [N·C, 1, …].
    let mut target = vec![-1, 1];
    target.extend(windows.iter().map(|&size| size as i64));
    let mut shape = vec![1, 1];
    shape.extend(&view.kernel);
    let ones = dy.numbers(&shape, &vec![1.0; view.kernel.iter().product()]);
    let geometry = Geometry {
        strides: &view.strides,
        dilations: &view.dilations,
        pads: &view.pads,
        kernel: &view.kernel,
    };
    geometry.transposed(dy.reshape(&target), ones, 1, sizes, windows).reshape_like(x)
}

/// The windows of a convolution or of pooling.
pub(super) struct Geometry<'v> {
    pub(super) strides: &'v [usize],
    pub(super) dilations: &'v [usize],
    pub(super) pads: &'v [(i64, i64)],
    pub(super) kernel: &'v [usize],
}

impl Geometry<'_> {
    /// The elements of an axis after the last window.
    fn rest(&self, axis: usize, size: usize, windows: usize) -> i64 {
        let reach = self.dilations[axis] * self.kernel[axis].saturating_sub(1) + 1;
        let (before, after) = self.pads[axis];
        let covered = self.strides[axis] * windows.saturating_sub(1) + reach;
        size as i64 + before + after - covered as i64
    }

    /// The adjoint of a convolution with this kernel: from gradients of the windows to those of the elements.
    pub(super) fn transposed<'t>(
        &self,
        dy: Term<'t>,
        kernel: Term<'t>,
        group: usize,
        sizes: &[usize],
        windows: &[usize],
    ) -> Term<'t> {
        // Elements after the last window are output padding; where windows exceed the padded input (rounded up
        // counts), the rest is negative and belongs to the padding.
        let rest: Vec<_> = (0..sizes.len()).map(|i| self.rest(i, sizes[i], windows[i])).collect();
        let pads = self.pads.iter().map(|pad| pad.0);
        let ends = self.pads.iter().zip(&rest).map(|(pad, rest)| pad.1 - rest.min(&0));
        let node = Node::new("ConvTranspose")
            .with("dilations", signed(self.dilations))
            .with("group", group as i64)
            .with("kernel_shape", signed(self.kernel))
            .with("output_padding", rest.iter().map(|&n| n.max(0)).collect::<Vec<_>>())
            .with("pads", pads.chain(ends).collect::<Vec<_>>())
            .with("strides", signed(self.strides));
        dy.tape().node(node, &[dy, kernel])
    }

    /// The positions in the kernel.
    pub(super) fn offsets(&self) -> Vec<Vec<usize>> {
        self.kernel.iter().fold(vec![vec![]], |offsets, &size| {
            let extended = |offset: Vec<usize>| (0..size).map(move |k| [offset.as_slice(), &[k]].concat());
            offsets.into_iter().flat_map(extended).collect()
        })
    }

    /// The elements at one position of the kernel for all windows: of `x`, or of `padded` where some are padding.
    pub(super) fn elements<'t>(
        &self,
        x: Term<'t>,
        padded: Term<'t>,
        offset: &[usize],
        windows: &[usize],
    ) -> Result<Term<'t>, Decline> {
        let first = |i: usize| (offset[i] * self.dilations[i]) as i64;
        let span = |i: usize| (self.strides[i] * windows[i].saturating_sub(1)) as i64;
        let sizes = spatial(x)?;
        let is_inside = (0..offset.len()).all(|i| {
            let start = first(i) - self.pads[i].0;
            start >= 0 && start + span(i) < sizes[i] as i64
        });
        let (source, sizes) = if is_inside { (x, sizes) } else { (padded, spatial(padded)?) };
        let cut = |i: usize| {
            let start = first(i) - if is_inside { self.pads[i].0 } else { 0 };
            SliceAxis { axis: 2 + i, start, end: start + span(i) + 1, step: self.strides[i] as i64 }
        };
        let covers = |cut: &SliceAxis| {
            cut.start == 0 && cut.end == sizes[cut.axis - 2] as i64 && (cut.step == 1 || cut.end == 1)
        };
        let cuts: Vec<_> = (0..offset.len()).map(cut).filter(|cut| !covers(cut)).collect();
        Ok(if cuts.is_empty() { source } else { source.slice(&cuts) })
    }

    /// The attributes of a `Conv` with these windows.
    pub(super) fn conv(&self, group: usize) -> Node {
        let pads = self.pads.iter().map(|pad| pad.0).chain(self.pads.iter().map(|pad| pad.1));
        Node::new("Conv")
            .with("dilations", signed(self.dilations))
            .with("group", Attribute::Int(group as i64))
            .with("kernel_shape", signed(self.kernel))
            .with("pads", pads.collect::<Vec<_>>())
            .with("strides", signed(self.strides))
    }
}
