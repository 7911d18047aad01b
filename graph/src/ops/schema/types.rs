//! Sets of the types allowed for an input or output.

use crate::{DataType, Fact};
use std::{collections::HashMap, fmt};

/// A set of types: dense tensors, and sequences, optionals and sparse tensors of element types.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TypeSet {
    /// One bit per element type number, for each wrapper in `WRAPS`.
    pub(super) elements: [u32; WRAPS.len()],
    map: bool,
}

const WRAPS: [&str; 5] = ["", "seq(", "optional(", "optional_seq(", "sparse("];

impl TypeSet {
    /// Returns true if the set contains dense tensors of this element type.
    pub fn allows_tensor(&self, dtype: DataType) -> bool {
        self.elements[0] & bit(dtype) != 0
    }

    /// Returns true if every type of `other` is in the set.
    pub fn contains(&self, other: &Self) -> bool {
        let all = self.elements.iter().zip(&other.elements).all(|(own, other)| other & !own == 0);
        all && (self.map || !other.map)
    }

    /// Returns true if the set contains one type only.
    pub fn is_single(&self) -> bool {
        self.elements.iter().map(|e| e.count_ones()).sum::<u32>() + u32::from(self.map) == 1
    }

    /// Returns true if the set may contain a value with this fact. Unknown types may be contained.
    pub fn allows(&self, fact: &Fact) -> bool {
        let wrapped = |wrap: usize, dtype: Option<DataType>| match dtype {
            Some(dtype) => self.elements[wrap] & bit(dtype) != 0,
            None => self.elements[wrap] != 0,
        };
        match fact {
            Fact::Unknown => true,
            Fact::Tensor(tensor) => wrapped(0, tensor.dtype),
            // Sequences of maps, which `ZipMap` produces, count as `map`.
            Fact::Sequence(item) if matches!(**item, Fact::Unknown | Fact::Other) => {
                self.map || wrapped(1, None)
            }
            Fact::Sequence(item) => wrapped(1, item.dtype()),
            Fact::Optional(item) => match &**item {
                Fact::Unknown => wrapped(2, None) || wrapped(3, None),
                Fact::Sequence(item) => wrapped(3, item.dtype()),
                item => wrapped(2, item.dtype()),
            },
            Fact::Other => self.map || wrapped(4, None),
        }
    }

    /// Parses a set as written in the table; groups must be defined before.
    pub(super) fn parse(text: &str, groups: &HashMap<&str, u32>) -> Option<Self> {
        let (mut set, mut wrap) = (Self::default(), 0);
        for word in text.split(',') {
            let (open, word) = word.find('(').map_or(("", word), |i| word.split_at(i + 1));
            if !open.is_empty() {
                wrap = WRAPS.iter().position(|w| *w == open)?;
            }
            let name = word.trim_end_matches(')');
            match name {
                "map" => set.map = true,
                _ => {
                    set.elements[wrap] |= groups.get(name).copied().or_else(|| name.parse().ok().map(bit))?;
                }
            }
            if name.len() < word.len() {
                wrap = 0;
            }
        }
        Some(set)
    }
}

/// The names of the types: `float16, float, seq(float)`.
impl fmt::Display for TypeSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = vec![];
        for (wrap, bits) in WRAPS.iter().zip(self.elements) {
            let close = &"))"[..wrap.matches('(').count()];
            let dtypes = (1..32).filter_map(DataType::from_number).filter(|&d| bits & bit(d) != 0);
            names.extend(dtypes.map(|d| format!("{wrap}{d}{close}")));
        }
        names.extend(self.map.then(|| "map".to_owned()));
        f.write_str(&names.join(", "))
    }
}

fn bit(dtype: DataType) -> u32 {
    1 << dtype.number()
}
