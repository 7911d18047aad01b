//! Random changes of bytes and of protobuf messages, for harnesses that feed parsers. Needs no
//! instrumentation, so any toolchain runs them.

use fastrand::Rng;

/// Boundary values of integer types.
const EDGES: [u64; 12] = [
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 32,
    1 << 60,
    i64::MAX as u64,
    u64::MAX,
];

/// Returns one of `seeds` with a few random changes: bits flipped, integers replaced by boundary values,
/// parts removed, repeated, or replaced by parts of another seed, and words of the format inserted.
pub fn mutate(seeds: &[Vec<u8>], words: &[&str], rng: &mut Rng) -> Vec<u8> {
    let mut bytes = seeds[rng.usize(..seeds.len())].clone();
    for _ in 0..1 << rng.u8(0..4) {
        let at = rng.usize(..=bytes.len());
        let some = |rng: &mut Rng, n: usize| {
            let most = n.min(1 << rng.u8(0..8));
            rng.usize(..=most)
        };
        match rng.u8(..9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << rng.u8(..8),
            1 if at < bytes.len() => bytes[at] = rng.u8(..),
            2 => bytes.insert(at, rng.u8(..)),
            3 => {
                let end = at + some(rng, bytes.len() - at);
                bytes.drain(at..end);
            }
            4 => {
                let end = at + some(rng, bytes.len() - at);
                let part = bytes[at..end].to_vec();
                // Occasionally a part is repeated very often, which produces deep nesting.
                let times = if rng.u8(..) < 8 { 1000 } else { 1 };
                let times = times.min(1 + 100_000 / part.len().max(1));
                bytes.splice(at..at, part.repeat(times));
            }
            5 => {
                let other = &seeds[rng.usize(..seeds.len())];
                let from = rng.usize(..=other.len());
                let end = from + some(rng, other.len() - from);
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            6 => {
                let edge = varint(EDGES[rng.usize(..EDGES.len())]);
                let end = (at + some(rng, 4)).min(bytes.len());
                bytes.splice(at..end, edge);
            }
            7 => {
                let edge = EDGES[rng.usize(..EDGES.len())].to_le_bytes();
                let width = [1, 2, 4, 8][rng.usize(..4)];
                let end = (at + width).min(bytes.len());
                bytes.splice(at..end, edge[..width].iter().copied());
            }
            _ if !words.is_empty() => {
                let word = words[rng.usize(..words.len())].bytes();
                bytes.splice(at..at, word);
            }
            _ => {}
        }
    }
    bytes
}

/// A field of a protobuf message: its key (number and wire type) and its payload.
type Field = (u64, Payload);

/// The payload of a field (Protocol Buffers, Encoding).
#[derive(Clone, Debug, PartialEq)]
enum Payload {
    Varint(u64),
    Fixed64(Vec<u8>),
    Fixed32(Vec<u8>),
    Bytes(Vec<u8>),
    /// Bytes that parse as fields.
    Message(Vec<Field>),
}

/// Returns one of `seeds`, which are protobuf messages, with a few changes of entire fields: fields removed,
/// repeated, swapped or taken from another seed, and numbers replaced by boundary values. The result still
/// parses, unlike most results of [`mutate`].
pub fn mutate_message(seeds: &[Vec<u8>], rng: &mut Rng) -> Vec<u8> {
    let pick = |rng: &mut Rng| message(&seeds[rng.usize(..seeds.len())], MAX_DEPTH).unwrap_or_default();
    let mut fields = pick(rng);
    for _ in 0..1 << rng.u8(0..4) {
        let place = rng.usize(..count(&fields).max(1));
        let donor = match rng.u8(..4) {
            0 => pick(rng),
            _ => fields.clone(),
        };
        if let Some((list, at)) = find(&mut fields, place) {
            change(list, at, &donor, rng);
        }
    }
    let mut bytes = vec![];
    write(&fields, &mut bytes);
    bytes
}

/// Messages nested deeper are kept as bytes.
const MAX_DEPTH: usize = 12;

fn change(list: &mut Vec<Field>, at: usize, donor: &[Field], rng: &mut Rng) {
    match rng.u8(..8) {
        0 => {
            list.remove(at);
        }
        1 => list.insert(at, list[at].clone()),
        2 => {
            let other = rng.usize(..list.len());
            list.swap(at, other);
        }
        // The payload of a field with the same key: another input, another operator, a node of another model.
        3..6 => {
            let key = list[at].0;
            let mut like = vec![];
            alike(donor, key, &mut like);
            if !like.is_empty() {
                list[at].1 = like[rng.usize(..like.len())].clone();
            }
        }
        _ => change_number(&mut list[at].1, rng),
    }
}

/// Replaces a number, or one number of an array, by a boundary value.
fn change_number(payload: &mut Payload, rng: &mut Rng) {
    let number = EDGES[rng.usize(..EDGES.len())];
    match payload {
        Payload::Varint(n) => {
            *n = match rng.u8(..4) {
                0 => number,
                1 => number.wrapping_neg(),
                2 => n.wrapping_add(1),
                _ => n.wrapping_sub(1),
            }
        }
        Payload::Fixed64(b) | Payload::Fixed32(b) | Payload::Bytes(b) if !b.is_empty() => {
            let width = [1, 4, 8][rng.usize(..3)].min(b.len());
            let at = rng.usize(..=(b.len() - width)) / width * width;
            b[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
        }
        _ => {}
    }
}

fn count(fields: &[Field]) -> usize {
    let inside = |(_, payload): &Field| if let Payload::Message(f) = payload { count(f) } else { 0 };
    fields.len() + fields.iter().map(inside).sum::<usize>()
}

/// Returns the list that contains field number `place`, counted from the outside in, and the index in it.
fn find(fields: &mut Vec<Field>, mut place: usize) -> Option<(&mut Vec<Field>, usize)> {
    if place < fields.len() {
        return Some((fields, place));
    }
    place -= fields.len();
    for (_, payload) in fields {
        let Payload::Message(inside) = payload else { continue };
        let all = count(inside);
        if place < all {
            return find(inside, place);
        }
        place -= all;
    }
    None
}

fn alike(fields: &[Field], key: u64, found: &mut Vec<Payload>) {
    for (other, payload) in fields {
        if *other == key {
            found.push(payload.clone());
        }
        if let Payload::Message(inside) = payload {
            alike(inside, key, found);
        }
    }
}

/// Parses the fields of a message; `None` if the bytes are not a message.
fn message(mut bytes: &[u8], depth: usize) -> Option<Vec<Field>> {
    let mut fields = vec![];
    while !bytes.is_empty() {
        let key = take_varint(&mut bytes)?;
        let payload = match key & 7 {
            0 => Payload::Varint(take_varint(&mut bytes)?),
            1 => Payload::Fixed64(bytes.split_off(..8)?.to_vec()),
            2 => {
                let length = usize::try_from(take_varint(&mut bytes)?).ok()?;
                let inside = bytes.split_off(..length)?;
                let read = |depth: usize| message(inside, depth).filter(|fields| !fields.is_empty());
                let fields = depth.checked_sub(1).and_then(read);
                fields.map_or_else(|| Payload::Bytes(inside.to_vec()), Payload::Message)
            }
            5 => Payload::Fixed32(bytes.split_off(..4)?.to_vec()),
            _ => return None,
        };
        (key >> 3 > 0).then_some(())?;
        fields.push((key, payload));
    }
    Some(fields)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut n = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        n |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(n);
        }
    }
    None
}

fn write(fields: &[Field], bytes: &mut Vec<u8>) {
    for (key, payload) in fields {
        bytes.extend(varint(*key));
        let inside = match payload {
            Payload::Varint(n) => {
                bytes.extend(varint(*n));
                continue;
            }
            Payload::Fixed64(b) | Payload::Fixed32(b) => {
                bytes.extend(b);
                continue;
            }
            Payload::Bytes(b) => b.clone(),
            Payload::Message(fields) => {
                let mut inside = vec![];
                write(fields, &mut inside);
                inside
            }
        };
        bytes.extend(varint(inside.len() as u64));
        bytes.extend(inside);
    }
}

/// Encodes a number as a protobuf varint: seven bits per byte, lowest first.
pub fn varint(mut n: u64) -> Vec<u8> {
    let mut bytes = vec![];
    while n >= 0x80 {
        bytes.push(n as u8 | 0x80);
        n >>= 7;
    }
    bytes.push(n as u8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_depend_on_the_seed_only() {
        let seeds = [b"(a{b=1},c)*".to_vec(), vec![]];
        let one = |seed| mutate(&seeds, &["safe"], &mut Rng::with_seed(seed));
        assert_eq!(one(3), one(3));
        let all: std::collections::HashSet<_> = (0..200).map(one).collect();
        assert!(all.len() > 100);
    }

    #[test]
    fn messages_round_trip_and_stay_messages() {
        // { 1: 300, 2: { 1: "ab" }, 5: four bytes, 1: eight bytes }
        let bytes = [&[8, 0xac, 2, 18, 4, 10, 2, b'a', b'b', 45, 1, 2, 3, 4, 9][..], &[7_u8; 8]].concat();
        let fields = message(&bytes, 3).unwrap();
        assert_eq!((fields.len(), count(&fields)), (4, 5));
        let mut written = vec![];
        write(&fields, &mut written);
        assert_eq!(written, bytes);
        assert_eq!(message(&bytes[..bytes.len() - 1], 3), None);
        let all: std::collections::HashSet<_> = (0..200)
            .map(|seed| mutate_message(std::slice::from_ref(&bytes), &mut Rng::with_seed(seed)))
            .collect();
        assert!(all.len() > 100 && all.iter().all(|bytes| message(bytes, 0).is_some()));
    }
}
