//! Random changes to bytes, for harnesses that feed parsers: no instrumentation, so any toolchain runs them.

use fastrand::Rng;

/// Numbers that are at the edge of something.
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

/// Bytes like one of `seeds`, changed in a few places: bits flipped, numbers at the edge, parts removed, doubled, or
/// taken from another seed, and words of the format put in.
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
                // Now and then very often: what nests, nests deeply.
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

/// A number as protobuf writes it: seven bits a byte, the lowest first.
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
    fn changes_repeat_and_differ_by_seed() {
        let seeds = [b"(a{b=1},c)*".to_vec(), vec![]];
        let one = |seed| mutate(&seeds, &["safe"], &mut Rng::with_seed(seed));
        assert_eq!(one(3), one(3));
        let all: std::collections::HashSet<_> = (0..200).map(one).collect();
        assert!(all.len() > 100);
    }
}
