//! Terminal output: reports on stdout, everything else on stderr.

#![allow(clippy::print_stdout, clippy::print_stderr)]

use crate::{
    args::{Cli, Command},
    events,
    failure::Failure,
    hints::Interface,
    interrupt,
};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use onnx_pare::{Event, HtmlReport, Model, Progress, model_text};
use serde::Serialize;
use std::{
    io::{IsTerminal, Write},
    path::Path,
    sync::Mutex,
};

/// Terminal output settings, and the progress bar.
pub struct Terminal {
    json: bool,
    quiet: bool,
    /// The pass after which the graph is printed, or `all`.
    print_after: Option<String>,
    bar: Mutex<Option<(String, ProgressBar)>>,
}

impl Terminal {
    pub fn new(cli: &Cli) -> Self {
        let print_after = match &cli.command {
            Command::Optimize(args) => args.print_after.clone(),
            _ => None,
        };
        Self { json: cli.common.json, quiet: cli.common.quiet, print_after, bar: Mutex::new(None) }
    }

    /// Prints a report: as JSON, or as `text`.
    pub fn report(&self, report: &impl Serialize, text: impl FnOnce() -> String) {
        self.clear();
        let text = if self.json { json(report) } else { text() };
        self.write(text.as_bytes());
    }

    /// Prints a report, and writes it as HTML if there is a path.
    pub fn report_with_page<R: Serialize + HtmlReport>(
        &self,
        report: &R,
        page: Option<&Path>,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        if let Some(path) = page {
            let failed = |e| Failure::new(format!("cannot write `{}`: {e}", path.display()));
            std::fs::write(path, report.to_html()).map_err(failed)?;
        }
        self.report(report, text);
        Ok(())
    }

    /// Writes bytes to stdout. A reader that closed the pipe is not an error.
    #[allow(clippy::unused_self)] // all output passes through a terminal
    pub fn write(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }

    /// Prints a remark, unless quiet.
    pub fn note(&self, text: &str) {
        if !self.quiet {
            self.line(text);
        }
    }

    /// Prints an effect of the run that the user may not want.
    pub fn warning(&self, message: &str) {
        self.line(&format!("warning: {message}"));
    }

    /// Prints a failed check.
    pub fn failed_check(&self, message: &str) {
        self.line(&format!("failed: {message}"));
    }

    /// Prints a remedy.
    pub fn hint(&self, text: &str) {
        self.line(&format!("hint: {text}"));
    }

    /// Prints the reason why the command could not run.
    pub fn failure(&self, failure: &Failure) {
        self.line(&format!("error: {}", failure.message));
        if let Some(detail) = &failure.detail {
            self.line(detail);
        }
        if let Some(hint) = &failure.hint {
            self.hint(hint);
        }
    }

    fn line(&self, text: &str) {
        self.clear();
        eprintln!("{text}");
    }

    fn clear(&self) {
        if let Ok(mut bar) = self.bar.lock()
            && let Some((_, bar)) = bar.take()
        {
            bar.finish_and_clear();
        }
    }
}

impl Progress for Terminal {
    /// Draws a progress bar, if stderr is a terminal.
    fn step(&self, stage: &str, done: u64, total: u64) {
        if self.quiet || !std::io::stderr().is_terminal() {
            return;
        }
        let Ok(mut slot) = self.bar.lock() else { return };
        if slot.as_ref().is_none_or(|(known, _)| known != stage) {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr_with_hz(8));
            if let Ok(style) = ProgressStyle::with_template("{msg} {bar:30} {pos}/{len}, {eta} remaining") {
                bar.set_style(style);
            }
            bar.set_message(stage.to_owned());
            *slot = Some((stage.to_owned(), bar));
        }
        if let Some((_, bar)) = slot.as_ref() {
            bar.set_length(total);
            bar.set_position(done);
            if done >= total {
                bar.finish_and_clear();
            }
        }
    }

    fn event(&self, event: &Event<'_>) {
        if let Some(text) = events::text(event, Interface::Command) {
            self.note(&text);
        }
    }

    fn cancelled(&self) -> bool {
        interrupt::is_requested()
    }

    fn is_ending(&self) -> bool {
        interrupt::ends_training()
    }

    fn after_pass(&self, pass: &str, model: &Model) {
        if self.print_after.as_deref().is_some_and(|name| name == "all" || name == pass) {
            self.line(&format!("after {pass}:\n{}", model_text(model)));
        }
    }
}

/// The version of the reports, described in `REPORTS.md`.
const SCHEMA: u64 = 2;

/// A report as JSON, with its version as the first field, `schema`; `REPORTS.md` describes the others.
pub fn json(report: &impl Serialize) -> String {
    let report = serde_json::to_value(report).unwrap_or_default();
    let report = match report {
        serde_json::Value::Object(fields) => {
            let version = [("schema".to_owned(), SCHEMA.into())];
            serde_json::Value::Object(version.into_iter().chain(fields).collect())
        }
        other => other,
    };
    serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
}
