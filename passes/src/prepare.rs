//! What passes that look at layers have in common before they begin.

use crate::{
    Context, Pass, PassError,
    cleanup::{DropDead, DropNoops, LiftConstants},
    fold::{FoldBn, FoldConstants},
};
use pare_graph::Model;

/// Samples whose activations are added up to statistics.
pub(crate) const STATISTICS: usize = 1000;
/// Samples at most that are held out to compare outputs on.
pub(crate) const HELD_OUT: usize = 256;
/// Fewer samples than this tell too little for a fit.
pub(crate) const MIN_SAMPLES: usize = 16;
/// Places of each sample that a fit looks at.
pub(crate) const PLACES: usize = 32;

/// Put out of the way what hides layers: batch norms, and shapes that could be constants.
pub(crate) fn prepare(model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
    LiftConstants::default().run(model, cx)?;
    FoldConstants::default().run(model, cx)?;
    DropNoops::default().run(model, cx)?;
    FoldBn::default().run(model, cx)?;
    DropDead::default().run(model, cx)?;
    model.infer()?;
    Ok(())
}

/// Whether a name matches a pattern in which `*` stands for anything.
pub fn matches(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or("");
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else { return rest.is_empty() };
    for part in middle {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn a_star_stands_for_anything() {
        for (pattern, name) in
            [("conv1", "conv1"), ("*", "x"), ("a*c*e", "abcde"), ("layer3*", "layer3.conv")]
        {
            assert!(matches(pattern, name), "{pattern} {name}");
        }
        for (pattern, name) in [("conv", "conv1"), ("a*b", "abc"), ("a*a", "a"), ("", "x")] {
            assert!(!matches(pattern, name), "{pattern} {name}");
        }
    }
}
