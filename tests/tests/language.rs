//! Words that this code base does not use, each with the words that it uses instead.
//!
//! Sources, documents and error texts are searched. Quoted model text, data and tables of figures are not.

use crate::support::root;
use std::{fs, path::Path};

/// A pattern and its replacement. Patterns match entire words; `*` matches the rest of a word.
const WORDS: &[(&str, &str)] = &[
    ("twin", "common subexpression, duplicate"),
    ("twins", "common subexpressions, duplicates"),
    ("maker", "producer"),
    ("makers", "producers"),
    ("is made by", "is produced by"),
    ("are made by", "are produced by"),
    ("what is left", "the remaining …"),
    ("left alone", "skipped"),
    ("gone", "removed, reached"),
    ("told", "reported"),
    ("tells", "reports"),
    ("hears", "receives"),
    ("stands", "is, represents"),
    ("stand in", "are in"),
    ("lies", "is"),
    ("lie", "are"),
    ("at home", "in its place"),
    ("needs it whole", "reads the entire axis"),
    ("as a whole", "entirely, together"),
    ("anew", "again"),
    ("learns to give", "is refitted to reproduce"),
    ("heal", "repair"),
    ("heals", "repairs"),
    ("healed", "repaired"),
    ("healing", "repair"),
    ("barrier", "catch_panic"),
    ("census", "token statistics"),
    ("runs in circles", "does not converge"),
    ("made up for", "compensated"),
    ("makes up for", "compensates"),
    ("make up for", "compensate"),
    ("nobody", "unused, no …"),
    ("dear", "expensive"),
    ("dearer", "more expensive"),
    ("in lots", "in batches"),
];

/// Starts of comments that replace a noun by a question word.
const STARTS: &[&str] = &["What ", "Whether ", "How ", "Of `", "Where what "];

/// The comment or string text of a line: everything, for Markdown.
fn violations(line: &str, is_code: bool) -> Vec<String> {
    let lower = line.to_lowercase();
    let is_word = |c: char| c.is_alphanumeric();
    let mut found: Vec<_> = WORDS
        .iter()
        .filter(|(word, _)| {
            lower.match_indices(word).any(|(at, _)| {
                let before = lower[..at].chars().next_back();
                let after = lower[at + word.len()..].chars().next();
                !before.is_some_and(is_word) && !after.is_some_and(is_word)
            })
        })
        .map(|(word, instead)| format!("`{word}` (write: {instead})"))
        .collect();
    let comment = line.trim_start();
    if is_code && let Some(text) = comment.strip_prefix("/// ").or_else(|| comment.strip_prefix("//! ")) {
        let starts = STARTS.iter().filter(|start| text.starts_with(**start));
        found.extend(starts.map(|start| format!("a doc comment starts with `{}`", start.trim())));
    }
    found
}

fn search(folder: &Path, found: &mut Vec<String>) {
    let mut entries: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    entries.sort();
    for path in entries {
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !name.starts_with('.') && !["target", "node_modules"].contains(&name) {
                search(&path, found);
            }
            continue;
        }
        let extension = path.extension().and_then(|e| e.to_str());
        if !matches!(extension, Some("rs" | "md" | "py" | "toml" | "trycmd")) || name == "language.rs" {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        for (number, line) in text.lines().enumerate() {
            for what in violations(line, extension == Some("rs")) {
                let shown = path.strip_prefix(root()).unwrap().display();
                found.push(format!("{shown}:{}: {what}", number + 1));
            }
        }
    }
}

#[test]
fn texts_use_the_language_of_the_field() {
    let mut found = vec![];
    search(&root(), &mut found);
    assert!(found.is_empty(), "{} places:\n{}", found.len(), found.join("\n"));
}

#[test]
fn words_match_entirely_and_in_any_case() {
    assert_eq!(violations("/// Twins are merged.", true).len(), 1);
    assert_eq!(violations("/// The twinning of cities, renewed.", true), Vec::<String>::new());
    assert_eq!(violations("    /// What a pass does.", true).len(), 1);
    assert_eq!(violations("What a pass does.", false), Vec::<String>::new());
    assert_eq!(violations("// it is made by hand and fitted anew", true).len(), 2);
}
