//! Operators with a sliding window over the spatial axes of `[N,C,D1,…,Dn]`: convolution and pooling.

use super::{
    cx::{Cx, Facts, Shape, one, tensor},
    dims::{self, plus, times, unknowns},
};
use crate::{DataType, Dim};

/// The window along one axis.
struct Window {
    kernel: Dim,
    stride: i64,
    dilation: i64,
    pads: (i64, i64),
    auto: Auto,
    ceil: bool,
}

/// Attribute `auto_pad`.
#[derive(Clone, Copy, PartialEq)]
enum Auto {
    Given,
    Same,
    Valid,
}

fn auto(cx: &Cx) -> Auto {
    match cx.at.string("auto_pad", "NOTSET") {
        "SAME_UPPER" | "SAME_LOWER" => Auto::Same,
        "VALID" => Auto::Valid,
        _ => Auto::Given,
    }
}

impl Window {
    /// The windows along the axes of the kernel. Attributes of another length are a contradiction.
    fn all(cx: &Cx, kernel: &[Dim]) -> Result<Vec<Self>, String> {
        let n = kernel.len();
        let list = |name: &str, len: usize, default: i64| match cx.at.ints(name) {
            Some(v) if v.len() == len => Ok(v.to_vec()),
            Some(v) => Err(format!("{} {name} for {n} spatial axes", v.len())),
            None => Ok(vec![default; len]),
        };
        let (strides, dilations) = (list("strides", n, 1)?, list("dilations", n, 1)?);
        let auto = auto(cx);
        let pads = if auto == Auto::Given { list("pads", 2 * n, 0)? } else { vec![0; 2 * n] };
        if strides.iter().chain(&dilations).any(|&s| s < 1) {
            return Err("strides and dilations must be positive".into());
        }
        let ceil = cx.at.int("ceil_mode", 0) == 1;
        let window = |i: usize| Self {
            kernel: kernel[i].clone(),
            stride: strides[i],
            dilation: dilations[i],
            pads: (pads[i], pads[n + i]),
            auto,
            ceil,
        };
        Ok((0..n).map(window).collect())
    }

    /// The extent of the dilated kernel: `d·(k - 1) + 1`.
    fn reach(&self) -> Dim {
        plus(&times(&plus(&self.kernel, -1), self.dilation), 1)
    }

    /// The number of positions of the window on an axis of this size.
    fn positions(&self, size: &Dim) -> Dim {
        let stride = Dim::from(self.stride);
        if self.auto == Auto::Same {
            return size.ceil_div(&stride);
        }
        let padded = &(size + &Dim::from(self.pads.0)) + &Dim::from(self.pads.1);
        let room = &padded - &self.reach();
        if room.known().is_some_and(|n| n < 0) {
            // Operators differ for windows larger than the axis.
            return Dim::unknown();
        }
        if !self.ceil {
            return plus(&room.floor_div(&stride), 1);
        }
        // Rounded up, but the last window must start inside the axis or the front padding:
        // min(⌈(room + s) / s⌉, ⌈(front + size) / s⌉), and room + s = front + size + (back + s - reach).
        let positions = plus(&room.ceil_div(&stride), 1);
        let inside = plus(size, self.pads.0).ceil_div(&stride);
        if self.auto == Auto::Valid && positions != plus(&room.floor_div(&stride), 1) {
            // Engines differ in the rounding of `VALID`.
            return Dim::unknown();
        }
        match self.reach().known().map(|reach| reach.saturating_sub(self.pads.1) >= self.stride) {
            Some(true) => positions,
            Some(false) => inside,
            None => positions.minimum(&inside),
        }
    }
}

/// The kernel shape: attribute `kernel_shape`, or else the spatial axes of the weight.
fn kernel(cx: &Cx, weight: Option<usize>) -> Option<Vec<Dim>> {
    if let Some(shape) = cx.at.ints("kernel_shape") {
        return Some(shape.iter().map(|&n| Dim::from(n)).collect());
    }
    Some(cx.shape(weight?)?.get(2..)?.to_vec())
}

/// `Conv`: weight `[M,C/group,k1,…,kn]`.
pub(super) fn conv(cx: &Cx) -> Facts {
    one(cx.same_dtype([0, 1, 2])?, conv_shape(cx, 0, 1)?)
}

/// `ConvInteger`: element type int32.
pub(super) fn conv_integer(cx: &Cx) -> Facts {
    one(Some(DataType::Int32), conv_shape(cx, 0, 1)?)
}

/// `QLinearConv`: x, w and the result, each with scale and zero point.
pub(super) fn qlinear_conv(cx: &Cx) -> Facts {
    if cx.at.int("channels_last", 0) != 0 {
        return one(cx.dtype(7), cx.rank(0).and_then(unknowns));
    }
    one(cx.dtype(7), conv_shape(cx, 0, 3)?)
}

/// `DeformConv`: x, w, and offsets of the kernel elements.
pub(super) fn deform_conv(cx: &Cx) -> Facts {
    one(cx.dtype(0), conv_shape(cx, 0, 1)?)
}

fn conv_shape(cx: &Cx, x: usize, w: usize) -> Shape {
    let (Some(data), Some(weight)) = (cx.shape(x), cx.shape(w)) else {
        let mut dims = cx.rank(x).or(cx.rank(w)).and_then(unknowns);
        // The weight determines the channels.
        if let (Some([_, channels, ..]), Some([outputs, ..])) = (dims.as_deref_mut(), cx.shape(w)) {
            *channels = outputs.clone();
        }
        return Ok(dims);
    };
    if data.len() < 3 || data.len() != weight.len() {
        return Err(format!("{} cannot be convolved with {}", cx.name(x), cx.name(w)));
    }
    let group = cx.at.int("group", 1);
    let channels = times(&weight[1], group);
    if data[1].unify(&channels).is_none() {
        return Err(format!("{} does not have the {channels} input channels of {}", cx.name(x), cx.name(w)));
    }
    let Some(kernel) = kernel(cx, Some(w)) else { return Ok(None) };
    if kernel.len() != data.len() - 2 {
        return Err(format!("a kernel of rank {} for {}", kernel.len(), cx.name(x)));
    }
    let windows = Window::all(cx, &kernel)?;
    let positions = windows.iter().zip(&data[2..]).map(|(w, size)| w.positions(size));
    Ok(Some([data[0].clone(), weight[0].clone()].into_iter().chain(positions).collect()))
}

/// `ConvTranspose`: weight `[C,M/group,k1,…,kn]`.
pub(super) fn conv_transpose(cx: &Cx) -> Facts {
    let dtype = cx.same_dtype([0, 1, 2])?;
    let (Some(data), Some(weight)) = (cx.shape(0), cx.shape(1)) else {
        return one(dtype, cx.rank(0).or(cx.rank(1)).and_then(unknowns));
    };
    if data.len() < 3 || data.len() != weight.len() {
        return Err(format!("{} cannot be convolved with {}", cx.name(0), cx.name(1)));
    }
    if data[1].unify(&weight[0]).is_none() {
        return Err(format!("{} and {} differ in channels", cx.name(0), cx.name(1)));
    }
    let n = data.len() - 2;
    let mut shape = vec![data[0].clone(), times(&weight[1], cx.at.int("group", 1))];
    if let Some(sizes) = cx.at.ints("output_shape") {
        // Older exporters include batch and channels.
        let spatial = sizes.get(sizes.len().saturating_sub(n)..).unwrap_or_default();
        shape.extend(spatial.iter().map(|&s| Dim::from(s)));
        return one(dtype, Some(shape).filter(|s| s.len() == data.len()));
    }
    let Some(kernel) = kernel(cx, Some(1)).filter(|k| k.len() == n) else {
        return one(dtype, unknowns(n + 2));
    };
    let extra = cx.at.ints("output_padding").map_or_else(|| vec![0; n], <[i64]>::to_vec);
    if extra.len() != n {
        return Err(format!("{} output_padding for {n} spatial axes", extra.len()));
    }
    for ((window, size), extra) in Window::all(cx, &kernel)?.iter().zip(&data[2..]).zip(extra) {
        if window.auto == Auto::Same {
            shape.push(times(size, window.stride));
            continue;
        }
        // s·(in - 1) + extra + reach - pads
        let steps = times(&plus(size, -1), window.stride);
        let full = &plus(&steps, extra) + &window.reach();
        shape.push(&(&full - &Dim::from(window.pads.0)) - &Dim::from(window.pads.1));
    }
    one(dtype, Some(shape))
}

fn pool_shape(cx: &Cx) -> Shape {
    let Some(data) = cx.shape(0) else { return Ok(None) };
    let Some(kernel) = kernel(cx, None) else { return Ok(unknowns(data.len())) };
    if data.len() < 3 || kernel.len() != data.len() - 2 {
        return Err(format!("a kernel of rank {} for {}", kernel.len(), cx.name(0)));
    }
    let windows = Window::all(cx, &kernel)?;
    let positions = windows.iter().zip(&data[2..]).map(|(w, size)| w.positions(size));
    Ok(Some(data[..2].iter().cloned().chain(positions).collect()))
}

/// `MaxPool` (with indices), `AveragePool`, `LpPool`.
pub(super) fn pool(cx: &Cx) -> Facts {
    let shape = pool_shape(cx)?;
    Ok(vec![tensor(cx.dtype(0), shape.clone()), tensor(Some(DataType::Int64), shape)])
}

/// `Global…Pool`: reduces the spatial axes to size 1.
pub(super) fn global_pool(cx: &Cx) -> Facts {
    let Some(data) = cx.shape(0) else { return one(cx.dtype(0), None) };
    if data.len() < 2 {
        return Err(format!("{} has no channels", cx.name(0)));
    }
    let ones = vec![Dim::from(1_i64); data.len() - 2];
    one(cx.dtype(0), Some([&data[..2], &ones].concat()))
}

/// `MaxRoiPool`: `[regions, C, pooled…]`.
pub(super) fn max_roi_pool(cx: &Cx) -> Facts {
    let mut shape = vec![cx.dim(1, 0), cx.dim(0, 1)];
    match cx.at.ints("pooled_shape") {
        Some(pooled) => shape.extend(pooled.iter().map(|&n| Dim::from(n))),
        None => return one(cx.dtype(0), None),
    }
    one(cx.dtype(0), Some(shape))
}

/// `MaxUnpool`: the inverse of a pool, or the shape in the third input.
pub(super) fn max_unpool(cx: &Cx) -> Facts {
    let dtype = cx.dtype(0);
    if cx.input(2).is_some() {
        let shape = cx.content(2).map(std::borrow::Cow::into_owned);
        return one(dtype, shape.or_else(|| cx.rank(0).and_then(unknowns)));
    }
    let Some(data) = cx.shape(0) else { return one(dtype, None) };
    let Some(kernel) = kernel(cx, None).filter(|k| k.len() + 2 == data.len()) else {
        return one(dtype, None);
    };
    let grown = |(w, size): (&Window, &Dim)| {
        let full = &times(&plus(size, -1), w.stride) + &w.kernel;
        &(&full - &Dim::from(w.pads.0)) - &Dim::from(w.pads.1)
    };
    let windows = Window::all(cx, &kernel)?;
    let spatial = windows.iter().zip(&data[2..]).map(grown);
    one(dtype, Some(data[..2].iter().cloned().chain(spatial).collect()))
}

/// `Col2Im`: `[N, C·prod(block), L]` to `[N, C, image…]`.
pub(super) fn col2im(cx: &Cx) -> Facts {
    let (image, block) = (cx.content(1), cx.content(2));
    let channels = match &block {
        Some(block) => {
            let block = dims::product(block);
            let c = cx.dim(0, 1);
            c.exact_div(&block).unwrap_or_else(|| c.floor_div(&block))
        }
        None => Dim::unknown(),
    };
    let rank = cx.length(1);
    let image = image.map(std::borrow::Cow::into_owned).or_else(|| rank.and_then(unknowns));
    let shape = image.map(|image| [cx.dim(0, 0), channels].into_iter().chain(image).collect());
    one(cx.dtype(0), shape)
}

/// `GridSample`: `[N,C,…]` sampled at a grid `[N,out…,n]`.
pub(super) fn grid_sample(cx: &Cx) -> Facts {
    let Some([batch, positions @ .., _]) = cx.shape(1) else {
        return one(cx.dtype(0), cx.rank(0).and_then(unknowns));
    };
    let batch = match cx.shape(0) {
        Some(x) if x.len() != positions.len() + 2 => {
            return Err(format!("{} and {} differ in rank", cx.name(0), cx.name(1)));
        }
        Some(_) => cx.agree((0, 0), (1, 0))?,
        None => batch.clone(),
    };
    one(cx.dtype(0), Some([batch, cx.dim(0, 1)].into_iter().chain(positions.iter().cloned()).collect()))
}

/// `AffineGrid`: transforms `[N,n,n+1]` and a shape `[N,C,…]` to a grid `[N,…,n]`.
pub(super) fn affine_grid(cx: &Cx) -> Facts {
    let shape = if let Some([batch, _, spatial @ ..]) = cx.content(1).as_deref() {
        let axes = Dim::from(spatial.len());
        Some([std::slice::from_ref(batch), spatial, &[axes]].concat())
    } else {
        let rank = cx.length(1);
        rank.and_then(unknowns)
    };
    one(cx.dtype(0), shape)
}

/// `RoiAlign`: `[regions, C, output_height, output_width]`.
pub(super) fn roi_align(cx: &Cx) -> Facts {
    let size = |name| Dim::from(cx.at.int(name, 1));
    let regions = match cx.shape(2) {
        Some([n]) => n.clone(),
        _ => cx.dim(1, 0),
    };
    one(cx.dtype(0), Some(vec![regions, cx.dim(0, 1), size("output_height"), size("output_width")]))
}

/// `NonMaxSuppression`: three indices per selected box.
pub(super) fn non_max_suppression(_: &Cx) -> Facts {
    one(Some(DataType::Int64), Some(vec![Dim::unknown(), Dim::from(3_i64)]))
}
