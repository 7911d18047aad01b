//! Name patterns.

/// Returns true if `name` matches `pattern`, in which `*` matches any text.
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
    fn star_matches_any_text() {
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
