//! Messages of engines and libraries.

/// `message` as one line without a final period.
pub(crate) fn one_line(message: &str) -> String {
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches(['.', ' ']);
    if line.is_empty() { "no reason given".to_owned() } else { line.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn joins_lines() {
        assert_eq!(one_line("Load failed:\n  bad node.\n"), "Load failed: bad node");
        assert_eq!(one_line(" .\n"), "no reason given");
    }
}
