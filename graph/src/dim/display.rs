//! Display of sizes: `2*N+1`, `floor((H+1)/(2))`, `max(N, 3)`; `?` for unknowns.

use super::{Atom, Dim, Repr};
use std::fmt;

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let terms = match &self.0 {
            Repr::Known(n) => return write!(f, "{n}"),
            Repr::Sum(terms) => terms,
        };
        // Symbols before the constant, as in `N+1`.
        for (i, (monomial, &c)) in terms.iter().rev().enumerate() {
            let sign = if c < 0 {
                "-"
            } else if i > 0 {
                "+"
            } else {
                ""
            };
            f.write_str(sign)?;
            let factor = (c.unsigned_abs() != 1 || monomial.is_empty()).then(|| c.unsigned_abs().to_string());
            let atoms = monomial.iter().map(ToString::to_string);
            f.write_str(&factor.into_iter().chain(atoms).collect::<Vec<_>>().join("*"))?;
        }
        Ok(())
    }
}

impl fmt::Display for Atom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Symbol(name) => f.write_str(name),
            Self::Unknown(_) | Self::Integer(_) => f.write_str("?"),
            Self::FloorDiv(p) => write!(f, "floor(({})/({}))", p.0, p.1),
            Self::Max(p) => write!(f, "max({}, {})", p.0, p.1),
            Self::Min(p) => write!(f, "min({}, {})", p.0, p.1),
        }
    }
}

impl fmt::Debug for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
