//! Numbers and tables for people.

use comfy_table::{CellAlignment, Table, presets};

/// A table without rules; the first column is left-aligned, the others right-aligned.
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

/// The execution provider of a latency, unless it is the CPU.
pub fn on(provider: &str) -> String {
    if provider == "cpu" { String::new() } else { format!(", on {provider}") }
}

/// A count: 40.8 M.
pub fn count(n: u64) -> String {
    scaled(n as f64, 1000.0, &["", " k", " M", " G", " T"])
}

/// A size: 1.06 MB.
pub fn bytes(n: u64) -> String {
    scaled(n as f64, 1000.0, &[" B", " kB", " MB", " GB", " TB"])
}

/// A time: 1.25 ms.
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

/// A number with four significant digits: 0.002104, 45.05.
pub fn figure(x: f64) -> String {
    let magnitude = if x == 0.0 { 0.0 } else { x.abs().log10().floor() };
    match magnitude {
        m if !(-4.0..6.0).contains(&m) => format!("{x:.1e}"),
        m => format!("{x:.digits$}", digits = (3.0 - m).max(0.0) as usize),
    }
}

/// A share: 99.40 %.
pub fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// A share in a table: 49.9 %.
pub fn share(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The columns `before`, `after` and their ratio.
pub fn change(before: u64, after: u64, show: fn(u64) -> String) -> Vec<String> {
    let ratio = if before == 0 { String::new() } else { share(after as f64 / before as f64) };
    vec![show(before), show(after), ratio]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abbreviates_numbers() {
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
