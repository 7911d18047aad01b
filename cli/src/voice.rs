//! Everything that is printed. Reports go to stdout, all else to stderr.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::failure::Failure;
use comfy_table::{CellAlignment, Table, presets};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use pare_passes::Progress;
use std::{
    io::{IsTerminal, Write},
    sync::Mutex,
};

/// How the command speaks.
pub struct Voice {
    json: bool,
    quiet: bool,
    bar: Mutex<Option<(String, ProgressBar)>>,
}

impl Voice {
    pub fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet, bar: Mutex::new(None) }
    }

    /// A report: as JSON, or as text made by `people`.
    pub fn report(&self, json: impl FnOnce() -> serde_json::Value, people: impl FnOnce() -> String) {
        self.clear();
        let text = if self.json {
            serde_json::to_string_pretty(&with_schema(json())).unwrap_or_default() + "\n"
        } else {
            people()
        };
        self.raw(text.as_bytes());
    }

    /// Bytes to stdout. A reader that went away is no error.
    #[allow(clippy::unused_self)] // all that is printed goes through a voice
    pub fn raw(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }

    /// A remark.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.clear();
            eprintln!("{text}");
        }
    }

    /// Something that was asked for on stderr, such as a dump.
    pub fn dump(&self, text: &str) {
        self.clear();
        eprintln!("{text}");
    }

    /// A failed check: one sentence and what may help.
    pub fn failed_check(&self, message: &str, hint: Option<&str>) {
        self.clear();
        eprintln!("failed: {message}");
        if let Some(hint) = hint {
            eprintln!("hint: {hint}");
        }
    }

    /// What may help.
    pub fn hint(&self, text: &str) {
        self.clear();
        eprintln!("hint: {text}");
    }

    pub fn failure(&self, failure: &Failure) {
        self.clear();
        eprintln!("error: {}", failure.message);
        if let Some(detail) = &failure.detail {
            eprintln!("{detail}");
        }
        if let Some(hint) = &failure.hint {
            eprintln!("hint: {hint}");
        }
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some((_, bar)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

/// A bar with the time left, where stderr is a terminal.
impl Progress for Voice {
    fn step(&self, what: &str, done: u64, total: u64) {
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let Ok(mut slot) = self.bar.lock() else { return };
        if slot.as_ref().is_none_or(|(known, _)| known != what) {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
            if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {eta} left") {
                bar.set_style(style);
            }
            bar.set_message(what.to_owned());
            *slot = Some((what.to_owned(), bar));
        }
        if let Some((_, bar)) = slot.as_ref() {
            bar.set_length(total);
            bar.set_position(done);
            if done >= total {
                bar.finish_and_clear();
            }
        }
    }
}

/// The version of the reports, described in `REPORTS.md`: it changes where a field goes or changes its meaning.
const SCHEMA: u64 = 1;

/// The report with its version in front.
fn with_schema(report: serde_json::Value) -> serde_json::Value {
    let serde_json::Value::Object(fields) = report else { return report };
    let version = [("schema".to_owned(), serde_json::json!(SCHEMA))];
    serde_json::Value::Object(version.into_iter().chain(fields).collect())
}

/// A table without lines: the first column left, the others right-aligned.
pub fn table(head: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        let alignment = if column.index == 0 { CellAlignment::Left } else { CellAlignment::Right };
        column.set_cell_alignment(alignment);
        column.set_padding((0, 2));
    }
    let text: String = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    text
}

/// So many of what is named in the plural, as `1 no-op dropped`.
pub fn counted(n: u64, what: &str) -> String {
    if n != 1 {
        return format!("{n} {what}");
    }
    // Up to the word that tells what happened to them.
    let tells = |(i, word): &(usize, &str)| {
        *i > 0 && (word.ends_with("ed") || ["that", "with", "in", "before"].contains(word))
    };
    let words: Vec<_> = what.split(' ').collect();
    let nouns = words.iter().copied().enumerate().find(tells).map_or(words.len(), |(i, _)| i);
    let one = |(i, &word): (usize, &&str)| match word {
        _ if i >= nouns || word.ends_with("us") => word.to_owned(),
        "and" => "or".into(),
        _ if word.ends_with("ches") || word.ends_with("shes") => word[..word.len() - 2].into(),
        _ => word.strip_suffix('s').unwrap_or(word).into(),
    };
    format!("1 {}", words.iter().enumerate().map(one).collect::<Vec<_>>().join(" "))
}

/// A count with a unit for people: 40.8 M.
pub fn count(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", " k", " M", " G", " T"])
}

/// Bytes for people: 1.06 MB.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1000.0, &[" B", " kB", " MB", " GB", " TB"])
}

/// A time for people: 1.25 ms.
pub fn seconds(s: f64) -> String {
    match s {
        s if s < 1e-3 => format!("{:.1} µs", s * 1e6),
        s if s < 1.0 => format!("{:.3} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

fn scaled(mut n: f64, base: f64, units: &[&str]) -> String {
    let mut unit = 0;
    while n >= base && unit + 1 < units.len() {
        n /= base;
        unit += 1;
    }
    match (unit, n) {
        (0, n) => format!("{n:.0}{}", units[0]),
        (_, n) if n < 10.0 => format!("{n:.2}{}", units[unit]),
        (_, n) => format!("{n:.1}{}", units[unit]),
    }
}

/// A number with four digits that count: 0.002104, 45.05.
pub fn figure(x: f64) -> String {
    let magnitude = if x == 0.0 { 0.0 } else { x.abs().log10().floor() };
    match magnitude {
        m if !(-4.0..6.0).contains(&m) => format!("{x:.1e}"),
        m => format!("{x:.digits$}", digits = (3.0 - m).max(0.0) as usize),
    }
}

/// `before → after (ratio)`.
pub fn change(before: u64, after: u64, show: fn(u64) -> String) -> Vec<String> {
    let ratio =
        if before == 0 { String::new() } else { format!("{:.1} %", 100.0 * after as f64 / before as f64) };
    vec![show(before), show(after), ratio]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_many_is_said_in_the_singular() {
        assert_eq!(counted(2, "no-ops dropped"), "2 no-ops dropped");
        for (many, one) in [
            ("no-ops dropped", "1 no-op dropped"),
            ("unused initializers dropped", "1 unused initializer dropped"),
            ("scales and shifts folded", "1 scale or shift folded"),
            ("hard sigmoids and swishes fused", "1 hard sigmoid or swish fused"),
            ("softplus and mish fused", "1 softplus or mish fused"),
            ("products with bias fused", "1 product with bias fused"),
            ("gathers moved before views", "1 gather moved before views"),
            ("layers quantized", "1 layer quantized"),
            ("branches that nothing can follow", "1 branch that nothing can follow"),
            ("batch norms folded", "1 batch norm folded"),
            ("changes", "1 change"),
        ] {
            assert_eq!(counted(1, many), one);
        }
    }

    #[test]
    fn figures_are_short() {
        assert_eq!(count(40_813_184), "40.8 M");
        assert_eq!(bytes(1_109_408), "1.11 MB");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(seconds(0.001_25), "1.250 ms");
        assert_eq!(figure(0.002_104_3), "0.002104");
        assert_eq!(figure(45.0516), "45.05");
        assert_eq!(figure(0.0), "0.000");
        assert_eq!(figure(-3.2e-7), "-3.2e-7");
        assert_eq!(change(200, 50, count), ["200", "50", "25.0 %"]);
    }
}
