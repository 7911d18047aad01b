//! Source positions of elements, and copying of elements of any type.

use super::{Stop, call::Call, invalid};
use crate::{DataType, Tensor, pack_bits};
use bytes::Bytes;

/// The positions `Σᵢ tables[i][cᵢ]` for all coordinates `c` in row-major order; `None` if an entry is `None`.
pub(super) struct Places {
    tables: Vec<Vec<Option<usize>>>,
    at: Vec<usize>,
    /// The sum over all axes but the last.
    outer: Option<usize>,
    remaining: usize,
}

impl Places {
    /// `offset(axis, c)` is the summand of coordinate `c` of `axis`. The shape must be within the limit of
    /// the call.
    pub fn new(shape: &[usize], offset: impl Fn(usize, usize) -> Option<usize>) -> Self {
        let remaining = shape.iter().product();
        if remaining == 0 {
            return Self { tables: vec![], at: vec![], outer: None, remaining };
        }
        // A leading axis of size 1: scalars need a last axis.
        let table = |(axis, &size): (usize, &usize)| (0..size).map(|c| offset(axis, c)).collect();
        let mut tables = vec![vec![Some(0)]];
        tables.extend(shape.iter().enumerate().map(table));
        let mut places = Self { at: vec![0; tables.len()], tables, outer: None, remaining };
        places.outer = places.outer_sum();
        places
    }

    /// The positions of the elements of a tensor of shape `from` after broadcasting to `to`.
    pub fn broadcast(from: &[usize], to: &[usize]) -> Self {
        let (strides, missing) = (strides(from), to.len().saturating_sub(from.len()));
        Self::new(to, |axis, c| match axis.checked_sub(missing) {
            Some(axis) if from[axis] != 1 => Some(c * strides[axis]),
            _ => Some(0),
        })
    }

    fn outer_sum(&self) -> Option<usize> {
        let outer = self.tables.len() - 1;
        self.tables[..outer].iter().zip(&self.at).map(|(table, &c)| table[c]).sum()
    }
}

impl Iterator for Places {
    type Item = Option<usize>;

    fn next(&mut self) -> Option<Self::Item> {
        self.remaining = self.remaining.checked_sub(1)?;
        let last = self.tables.len() - 1;
        let place = self.outer.zip(self.tables[last][self.at[last]]).map(|(a, b)| a + b);
        self.at[last] += 1;
        if self.at[last] == self.tables[last].len() {
            self.at[last] = 0;
            for axis in (0..last).rev() {
                self.at[axis] += 1;
                if self.at[axis] < self.tables[axis].len() {
                    break;
                }
                self.at[axis] = 0;
            }
            self.outer = self.outer_sum();
        }
        Some(place)
    }
}

/// The row-major strides of a shape, in elements.
pub(super) fn strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// The tensor of the elements of `source` at the sums of `offset`, or `fill` where an offset is `None`.
pub(super) fn rearrange(
    call: Call<'_>,
    source: &Tensor,
    fill: Option<&Tensor>,
    shape: &[usize],
    offset: impl Fn(usize, usize) -> Option<usize>,
) -> Result<Tensor, Stop> {
    call.count(source.dtype(), shape)?;
    placed(call, source, fill, shape, Places::new(shape, offset))
}

/// As [`rearrange`], with given positions.
pub(super) fn placed(
    call: Call<'_>,
    source: &Tensor,
    fill: Option<&Tensor>,
    shape: &[usize],
    places: Places,
) -> Result<Tensor, Stop> {
    let (dtype, bytes) = (source.dtype(), source.bytes());
    let data = match dtype.bits() {
        _ if dtype == DataType::String || places.has_gaps() => {
            let sources: Vec<_> = std::iter::once(source).chain(fill).collect();
            return assemble(call, &sources, shape, places.map(|p| p.map_or((1, 0), |p| (0, p))));
        }
        8 => places.gather::<1>(bytes),
        16 => places.gather::<2>(bytes),
        32 => places.gather::<4>(bytes),
        64 => places.gather::<8>(bytes),
        128 => places.gather::<16>(bytes),
        bits => {
            let codes: Vec<u8> = source.codes().collect();
            places.gather::<1>(&codes).map(|codes| pack_bits(bits, &codes))
        }
    };
    Ok(Tensor::new(dtype, shape, data.ok_or_else(outside)?)?)
}

impl Places {
    /// Returns true if some elements have no source.
    fn has_gaps(&self) -> bool {
        self.tables.iter().flatten().any(Option::is_none)
    }

    /// Copies elements of `WIDTH` bytes, without gaps: in runs where the last axis is contiguous in the
    /// source, else in blocks of the two axes that are contiguous in source and result. `None` if a position
    /// is outside of the source.
    fn gather<const WIDTH: usize>(mut self, source: &[u8]) -> Option<Vec<u8>> {
        if self.remaining == 0 {
            return Some(vec![]);
        }
        let (source, _) = source.as_chunks::<WIDTH>();
        let farthest = self.tables.iter().map(|t| t.iter().flatten().max());
        farthest.sum::<Option<usize>>().filter(|&far| far < source.len())?;
        self.merge_axes();
        let count = self.remaining;
        let last = self.tables.pop()?;
        let Some(first) = stepping(&last, 1) else {
            return Some(self.blocks(source, &last, count).into_flattened());
        };
        let mut data = Vec::with_capacity(count);
        for row in self.outer().flatten() {
            data.extend_from_slice(&source[row + first..][..last.len()]);
        }
        Some(data.into_flattened())
    }

    /// Removes axes of size 1, and merges the last axes that are contiguous in the source.
    fn merge_axes(&mut self) {
        let fixed = self.tables.iter().filter(|t| t.len() == 1).flatten().flatten().sum();
        self.tables.retain(|t| t.len() > 1);
        self.tables.insert(0, vec![Some(fixed)]);
        while let [.., above, last] = &self.tables[..] {
            let Some((start, first)) = stepping(above, last.len()).zip(stepping(last, 1)) else { return };
            let merged = (0..above.len() * last.len()).map(|i| Some(start + first + i)).collect();
            self.tables.truncate(self.tables.len() - 2);
            self.tables.push(merged);
        }
    }

    /// The positions along the remaining axes.
    fn outer(self) -> Self {
        let remaining = self.tables.iter().map(Vec::len).product();
        let tables = if self.tables.is_empty() { vec![vec![Some(0)]] } else { self.tables };
        let mut places = Self { at: vec![0; tables.len()], tables, outer: None, remaining };
        places.outer = places.outer_sum();
        places
    }

    /// Copies in blocks where the last axis, with the positions `last`, is not contiguous in the source.
    fn blocks<const WIDTH: usize>(
        mut self,
        source: &[[u8; WIDTH]],
        last: &[Option<usize>],
        count: usize,
    ) -> Vec<[u8; WIDTH]> {
        /// A block of 4-byte elements reads and writes 16 cache lines.
        const SIDE: usize = 16;
        let sizes: Vec<_> = self.tables.iter().map(Vec::len).chain([last.len()]).collect();
        let strides = strides(&sizes);
        let unit = self.tables.iter().rposition(|t| t.len() > 1 && stepping(t, 1).is_some());
        let (unit, rows, step) = match unit {
            Some(axis) => (Some(axis), self.tables[axis].len(), strides[axis]),
            None => (None, 1, 0),
        };
        let axes = (0..self.tables.len()).filter(|&axis| Some(axis) != unit);
        let to = axes.map(|axis| (0..sizes[axis]).map(|c| Some(c * strides[axis])).collect()).collect();
        let to = Self { tables: to, at: vec![], outer: None, remaining: 0 }.outer();
        let start = unit.map_or(0, |axis| self.tables.remove(axis)[0].unwrap_or(0));
        let last: Vec<_> = last.iter().copied().flatten().collect();
        let mut data = vec![[0; WIDTH]; count];
        for (from, to) in self.outer().flatten().zip(to.flatten()) {
            for top in (0..rows).step_by(SIDE) {
                for (column, block) in last.chunks(SIDE).enumerate() {
                    for row in top..rows.min(top + SIDE) {
                        let line = &mut data[to + row * step + column * SIDE..][..block.len()];
                        let from = from + start + row;
                        line.iter_mut().zip(block).for_each(|(to, place)| *to = source[from + place]);
                    }
                }
            }
        }
        data
    }
}

/// The first position of a table with constant differences `step`.
fn stepping(table: &[Option<usize>], step: usize) -> Option<usize> {
    let first = (*table.first()?)?;
    table.iter().zip(0..).all(|(&place, i)| place == Some(first + i * step)).then_some(first)
}

/// The tensor of elements of `sources`; each of `places` is the index of a source and of an element in it.
pub(super) fn assemble(
    call: Call<'_>,
    sources: &[&Tensor],
    shape: &[usize],
    places: impl Iterator<Item = (usize, usize)>,
) -> Result<Tensor, Stop> {
    let Some(dtype) = sources.first().map(|s| s.dtype()) else { return invalid("it has no inputs") };
    if let Some(other) = sources.iter().find(|s| s.dtype() != dtype) {
        return invalid(format!("{dtype} and {} are different types", other.dtype()));
    }
    let count = call.count(dtype, shape)?;
    if dtype == DataType::String {
        let sources: Vec<&[Bytes]> = sources.iter().filter_map(|s| s.as_strings()).collect();
        let items: Option<_> = places.map(|(s, i)| sources.get(s)?.get(i).cloned()).collect();
        return Ok(Tensor::strings(shape, items.ok_or_else(outside)?)?);
    }
    let bytes: Vec<&[u8]> = sources.iter().map(|s| &s.bytes()[..]).collect();
    let data = match dtype.bits() {
        8 => copy::<1>(&bytes, places, count),
        16 => copy::<2>(&bytes, places, count),
        32 => copy::<4>(&bytes, places, count),
        64 => copy::<8>(&bytes, places, count),
        128 => copy::<16>(&bytes, places, count),
        bits => {
            let codes: Vec<Vec<u8>> = sources.iter().map(|s| s.codes().collect()).collect();
            let codes: Vec<&[u8]> = codes.iter().map(Vec::as_slice).collect();
            copy::<1>(&codes, places, count).map(|codes| pack_bits(bits, &codes))
        }
    };
    Ok(Tensor::new(dtype, shape, data.ok_or_else(outside)?)?)
}

fn outside() -> Stop {
    Stop::Invalid("an index is out of bounds".into())
}

fn copy<const WIDTH: usize>(
    sources: &[&[u8]],
    places: impl Iterator<Item = (usize, usize)>,
    count: usize,
) -> Option<Vec<u8>> {
    let mut data = Vec::with_capacity(count * WIDTH);
    for (source, i) in places {
        let start = i.checked_mul(WIDTH)?;
        data.extend_from_slice(sources.get(source)?.get(start..start.checked_add(WIDTH)?)?);
    }
    Some(data)
}
