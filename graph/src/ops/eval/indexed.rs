//! Operators that move elements by indices or conditions.

use super::{
    Stop,
    call::{Call, broadcast, wrap},
    here, invalid,
    place::{Places, assemble, rearrange, strides},
};
use crate::{DataType, Tensor};

/// [`wrap`] of an index; invalid if it is out of bounds.
fn index(position: i64, size: usize) -> Result<usize, Stop> {
    wrap(position, size)
        .map_or_else(|| invalid(format!("index {position} is out of bounds for size {size}")), Ok)
}

pub(super) fn gather(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(0, data.rank())?;
    let (before, after) = (&data.shape()[..axis], &data.shape()[axis + 1..]);
    let size = data.shape()[axis];
    let (rows, run): (usize, usize) = (before.iter().product(), after.iter().product());
    let shape = [before, indices.shape(), after].concat();
    call.count(data.dtype(), &shape)?;
    let rows_of: Vec<_> = call.ints_in(1)?.into_iter().map(|i| index(i, size)).collect::<Result<_, _>>()?;
    // The axes of the result: row, index, element of the run.
    let result = rearrange(call, data, None, &[rows, rows_of.len(), run], |axis, c| {
        Some(match axis {
            0 => c * size * run,
            1 => rows_of[c] * run,
            _ => c,
        })
    })?;
    Ok(result.reshaped(&shape)?)
}

pub(super) fn compress(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    let kept: Vec<_> =
        call.ints_in(1)?.iter().enumerate().filter(|(_, b)| **b != 0).map(|(i, _)| i).collect();
    let (source, axis) = match call.at.attr("axis") {
        Some(_) => (data.clone(), call.axis(0, data.rank())?),
        None => (data.reshaped(&[data.len()])?, 0),
    };
    let (mut shape, strides) = (source.shape().to_vec(), strides(source.shape()));
    if kept.last().is_some_and(|&last| last >= shape[axis]) {
        return invalid("the condition is longer than the axis");
    }
    shape[axis] = kept.len();
    rearrange(call, &source, None, &shape, |a, c| Some(if a == axis { kept[c] } else { c } * strides[a]))
}

/// The position of each element of `indices` in a tensor of `shape`, where the index replaces the coordinate
/// on `axis`.
fn along(indices: &Tensor, shape: &[usize], axis: usize) -> Result<Vec<usize>, Stop> {
    let fits = |(a, (i, n)): (usize, (&usize, &usize))| a == axis || i <= n;
    if indices.rank() != shape.len() || !indices.shape().iter().zip(shape).enumerate().all(fits) {
        return invalid(format!("indices {:?} do not fit {shape:?}", indices.shape()));
    }
    let Some(items) = indices.to_i64() else { return invalid("its indices are not integers") };
    let strides = strides(shape);
    let rest = Places::new(indices.shape(), |a, c| Some(if a == axis { 0 } else { c * strides[a] }));
    let place = |(rest, i): (usize, i64)| Ok(rest + index(i, shape[axis])? * strides[axis]);
    rest.flatten().zip(items).map(place).collect()
}

pub(super) fn gather_elements(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(0, data.rank())?;
    call.count(data.dtype(), indices.shape())?;
    let places = along(indices, data.shape(), axis)?;
    assemble(call, &[data], indices.shape(), places.into_iter().map(|p| (0, p)))
}

/// `data` with the elements at `places` replaced by `updates`.
fn scattered(call: Call<'_>, places: &[usize]) -> Result<Tensor, Stop> {
    here(call.at.string("reduction", "none") == "none")?;
    let (data, updates) = (call.input(0)?, call.input(2)?);
    if updates.len() != places.len() {
        return invalid(format!("{} indices for {} updates", places.len(), updates.len()));
    }
    let mut from: Vec<_> = (0..data.len()).map(|i| (0, i)).collect();
    for (update, &place) in places.iter().enumerate() {
        match from.get_mut(place) {
            // Engines may write in any order, so duplicate indices are undefined.
            Some((1, _)) => return Err(Stop::NotHere),
            Some(taken) => *taken = (1, update),
            None => return invalid("an index is out of bounds"),
        }
    }
    assemble(call, &[data, updates], data.shape(), from.into_iter())
}

pub(super) fn scatter_elements(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let axis = call.axis(0, data.rank())?;
    scattered(call, &along(indices, data.shape(), axis)?)
}

/// The first positions and the common length of the runs that `indices [batch…, …, k]` select from a tensor
/// of `shape`. Each tuple indexes the `k` axes after the `batch` leading axes, which indices and data share.
fn runs(indices: &Tensor, shape: &[usize], batch: usize) -> Result<(Vec<usize>, usize), Stop> {
    let (Some((&k, lead)), Some(items)) = (indices.shape().split_last(), indices.to_i64()) else {
        return invalid("its indices are not tuples of integers");
    };
    if lead.len() < batch
        || lead[..batch] != shape[..batch.min(shape.len())]
        || batch + k > shape.len()
        || k == 0
    {
        return invalid(format!("indices {:?} do not fit {shape:?}", indices.shape()));
    }
    let strides = strides(shape);
    let run = shape[batch + k..].iter().product();
    let batch_size: usize = shape[batch..].iter().product();
    let per_batch: usize = lead[batch..].iter().product();
    let start = |(i, tuple): (usize, &[i64])| {
        let mut start = i / per_batch.max(1) * batch_size;
        for (axis, &item) in tuple.iter().enumerate() {
            start += index(item, shape[batch + axis])? * strides[batch + axis];
        }
        Ok::<_, Stop>(start)
    };
    Ok((items.chunks_exact(k).enumerate().map(start).collect::<Result<_, _>>()?, run))
}

pub(super) fn gather_nd(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let Ok(batch) = usize::try_from(call.at.int("batch_dims", 0)) else {
        return invalid("`batch_dims` is negative");
    };
    let (starts, run) = runs(indices, data.shape(), batch)?;
    let (lead, k) = (&indices.shape()[..indices.rank() - 1], indices.shape()[indices.rank() - 1]);
    let shape = [lead, &data.shape()[batch + k..]].concat();
    let places = starts.into_iter().flat_map(|start| (start..start + run).map(|p| (0, p)));
    assemble(call, &[data], &shape, places)
}

pub(super) fn scatter_nd(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, indices) = (call.input(0)?, call.input(1)?);
    let (starts, run) = runs(indices, data.shape(), 0)?;
    // Before allocating: there are as many positions as updates.
    if starts.len().checked_mul(run) != Some(call.input(2)?.len()) {
        return invalid("its updates and indices have inconsistent shapes");
    }
    let places: Vec<_> = starts.into_iter().flat_map(|start| start..start + run).collect();
    scattered(call, &places)
}

pub(super) fn choose(call: Call<'_>) -> Result<Tensor, Stop> {
    let (condition, x, y) = (call.ints_in(0)?, call.input(1)?, call.input(2)?);
    let shape = broadcast(call.input(0)?.shape(), &broadcast(x.shape(), y.shape())?)?;
    call.count(x.dtype(), &shape)?;
    let place = |t: &Tensor| Places::broadcast(t.shape(), &shape).flatten();
    let each = place(call.input(0)?).zip(place(x).zip(place(y)));
    let places = each.map(|(c, (x, y))| if condition[c] != 0 { (0, x) } else { (1, y) });
    assemble(call, &[x, y], &shape, places)
}

pub(super) fn trilu(call: Call<'_>) -> Result<Tensor, Stop> {
    let (data, k) = (call.input(0)?, call.int_in(1, 0)?);
    let &[.., rows, columns] = data.shape() else { return invalid("its input has no two axes") };
    let (upper, zero) = (call.at.int("upper", 1) != 0, call.fill(data.dtype())?);
    let place = |i: usize| {
        let (row, column) = (i / columns % rows, i % columns);
        // Both triangles include the k-th diagonal.
        let above = (column as i64).saturating_sub(row as i64).cmp(&k);
        if above.is_eq() || above.is_gt() == upper { (0, i) } else { (1, 0) }
    };
    assemble(call, &[data, &zero], data.shape(), (0..data.len()).map(place))
}

pub(super) fn one_hot(call: Call<'_>) -> Result<Tensor, Stop> {
    here(!call.input(0)?.dtype().is_float() && !call.input(1)?.dtype().is_float())?;
    let (indices, values) = (call.input(0)?, call.input(2)?);
    let Ok(depth) = usize::try_from(call.int_in(1, 0)?) else { return invalid("its depth is negative") };
    if values.len() != 2 {
        return invalid("it does not have two values");
    }
    let axis = call.axis(-1, indices.rank() + 1)?;
    let mut shape = indices.shape().to_vec();
    shape.insert(axis, depth);
    call.count(values.dtype(), &shape)?;
    let hot: Vec<_> = call.ints_in(0)?.into_iter().map(|i| wrap(i, depth)).collect();
    let run: usize = shape[axis + 1..].iter().product();
    let place = |i: usize| {
        let (row, class, column) = (i / run / depth, i / run % depth, i % run);
        (0, usize::from(hot[row * run + column] == Some(class)))
    };
    assemble(call, &[values], &shape, (0..shape.iter().product()).map(place))
}

pub(super) fn non_zero(call: Call<'_>) -> Result<Tensor, Stop> {
    let data = call.input(0)?;
    // The result for scalars differs between versions.
    here(data.rank() > 0)?;
    let Some(items) = data.to_f64() else { return Err(Stop::NotHere) };
    let found: Vec<_> = (0..items.len()).filter(|&i| items[i] != 0.0).collect();
    let shape = [data.rank(), found.len()];
    call.count(DataType::Int64, &shape)?;
    let strides = strides(data.shape());
    let coordinate = |axis: usize| {
        let (stride, size) = (strides[axis], data.shape()[axis]);
        found.iter().map(move |&i| (i / stride % size) as i64)
    };
    let coordinates: Vec<_> = (0..data.rank()).flat_map(coordinate).collect();
    Ok(Tensor::from_slice(&shape, &coordinates)?)
}
