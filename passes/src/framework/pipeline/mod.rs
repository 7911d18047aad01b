//! Pipelines: ordered lists of passes, as text and as TOML.
//!
//! ```text
//! pipeline := step (',' step)*
//! step     := name ('{' option (',' option)* '}')? | '(' pipeline ')*'
//! option   := key '=' value | key
//! key      := bare word | quoted text
//! value    := TOML value | bare word
//! ```
//!
//! `( … )*` repeats until nothing changes. A name is a pass or a preset such as `safe`. A key without a value
//! is `true`; for an option that is a list, a single value is a list of one.

mod parser;
#[cfg(test)]
mod tests;
mod toml;

#[doc(hidden)]
pub use self::toml::read_toml;
pub use pare_graph::nearest;

use super::{Effect, Hint, Pass, Registry, pass_support::Options};
use ::toml::{Table, Value};
use parser::Parser;
use std::{fmt, ops::Range};

/// An ordered list of passes.
///
/// The text form is parsed with [`str::parse`] and printed with [`Display`](fmt::Display):
///
/// ```
/// use pare_passes::{Effect, Pipeline};
///
/// let pipeline: Pipeline = "safe,(fold-bn{max_scale=100.0},drop-noops)*".parse()?;
/// assert_eq!(pipeline.effect(), Effect::Rounding);
/// assert_eq!(Pipeline::from_toml(&pipeline.to_toml())?.to_string(), pipeline.to_string());
///
/// let error = "fold-bm".parse::<Pipeline>().unwrap_err();
/// assert_eq!(error.to_string(), "there is no pass `fold-bm`");
/// assert_eq!(error.hint.unwrap().to_string(), "did you mean `fold-bn`?");
/// # Ok::<(), pare_passes::PipelineError>(())
/// ```
pub struct Pipeline {
    steps: Vec<Step>,
    registry: &'static Registry,
}

/// One step of a pipeline.
pub(crate) enum Step {
    /// A pass.
    Pass {
        /// The pass, built and validated.
        pass: Box<dyn Pass>,
        /// The options as written, without defaults.
        options: Table,
    },
    /// A named pipeline.
    Preset {
        /// Its name.
        name: &'static str,
        /// The options as written.
        options: Table,
        /// Its steps.
        steps: Pipeline,
    },
    /// Steps that are repeated until nothing changes.
    Repeat(Pipeline),
}

/// An error in the text or TOML form of a pipeline.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
#[non_exhaustive]
pub struct PipelineError {
    /// One sentence.
    pub message: String,
    /// The position in the text, in bytes.
    pub at: Range<usize>,
    /// The remedy, if one is known.
    pub hint: Option<Hint>,
}

impl PipelineError {
    fn new(message: impl Into<String>, at: Range<usize>) -> Self {
        Self { message: message.into(), at, hint: None }
    }

    /// Returns the line of `source` that contains the error, with the position underlined.
    pub fn underline(&self, source: &str) -> String {
        let start = self.at.start.min(source.len());
        let line_start = source[..start].rfind('\n').map_or(0, |i| i + 1);
        let line = source[line_start..].lines().next().unwrap_or("");
        let column = source[line_start..start].chars().count();
        let marked = source.get(self.at.clone()).unwrap_or("").lines().next().unwrap_or("");
        let carets = marked.chars().count().clamp(1, line.chars().count().saturating_sub(column).max(1));
        format!("  {line}\n  {}{}", " ".repeat(column), "^".repeat(carets))
    }
}

impl Pipeline {
    /// Creates a pipeline without steps. Nested steps of its passes are looked up in `registry`.
    pub fn empty(registry: &'static Registry) -> Self {
        Self { steps: vec![], registry }
    }

    /// Parses the text form. Names are looked up in `registry`.
    ///
    /// # Errors
    ///
    /// With the position of the first error.
    pub fn parse(text: &str, registry: &'static Registry) -> Result<Self, PipelineError> {
        Parser::new(text, registry).pipeline()
    }

    /// The passes and presets in which names are looked up.
    pub fn registry(&self) -> &'static Registry {
        self.registry
    }

    /// The steps in order.
    pub(crate) fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Returns true if there are no steps.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Appends a pass, which need not be in the registry.
    pub fn push(&mut self, pass: impl Pass + 'static) {
        self.steps.push(Step::Pass { pass: Box::new(pass), options: Table::new() });
    }

    /// Appends the steps of another pipeline.
    pub fn append(&mut self, other: Self) {
        self.steps.extend(other.steps);
    }

    /// All passes, including those in presets and repetitions.
    pub fn passes(&self) -> Vec<&dyn Pass> {
        fn of(step: &Step) -> Vec<&dyn Pass> {
            match step {
                Step::Pass { pass, .. } => vec![pass.as_ref()],
                Step::Preset { steps, .. } | Step::Repeat(steps) => steps.passes(),
            }
        }
        self.steps.iter().flat_map(of).collect()
    }

    /// Removes every step that is this pass.
    fn omit(&mut self, pass: &str) {
        self.steps.retain_mut(|step| match step {
            Step::Pass { pass: step, .. } => step.info().name != pass,
            Step::Preset { steps, .. } | Step::Repeat(steps) => {
                steps.omit(pass);
                true
            }
        });
    }

    /// The weakest promise of its passes; an empty pipeline is exact.
    pub fn effect(&self) -> Effect {
        self.passes().iter().map(|p| p.info().effect).max().unwrap_or(Effect::Exact)
    }
}

/// Positions of a step in the text, for errors.
#[derive(Default)]
struct Places {
    name: Range<usize>,
    options: Range<usize>,
}

impl Step {
    /// Builds the step `name` with its options.
    fn build(
        name: &str,
        options: Table,
        places: &Places,
        registry: &'static Registry,
    ) -> Result<Self, PipelineError> {
        let error =
            |message: String, at: &Range<usize>, hint| PipelineError { message, at: at.clone(), hint };
        if let Some(preset) = registry.find_preset(name) {
            let mut steps = Pipeline::parse(preset.text, registry)
                .map_err(|e| PipelineError { at: places.name.clone(), ..e })?;
            for (key, value) in &options {
                let Some(option) = preset.options.iter().find(|o| o.name == *key) else {
                    let message = format!("`{name}` is a preset and has no option `{key}`");
                    let hint = did_you_mean(key, preset.options.iter().map(|o| o.name));
                    return Err(error(message, &places.options, hint));
                };
                match value {
                    Value::Boolean(true) => steps.omit(option.omits),
                    Value::Boolean(false) => {}
                    _ => {
                        let message = format!("`{name}`: `{key}` is true or false");
                        return Err(error(message, &places.options, None));
                    }
                }
            }
            return Ok(Self::Preset { name: preset.name, options, steps });
        }
        let Some(info) = registry.find(name) else {
            let message = match name {
                "" => "a pass is missing here".into(),
                name => format!("there is no pass `{name}`"),
            };
            let hint = did_you_mean(name, registry.names()).unwrap_or(Hint::ListPasses);
            return Err(error(message, &places.name, Some(hint)));
        };
        let explain = || Hint::ExplainPass(name.into());
        let declared = || info.options.iter().map(|o| o.name);
        let given = match info.open {
            Some(open) => collect_free_keys(options.clone(), open, &declared().collect::<Vec<_>>()),
            None => options.clone(),
        };
        if let Some(key) = given.keys().find(|key| declared().all(|name| name != *key)) {
            let message = format!("`{name}` has no option `{key}`");
            let hint = did_you_mean(key, declared()).unwrap_or_else(explain);
            return Err(error(message, &places.options, Some(hint)));
        }
        let is_list = |key: &str| info.options.iter().any(|o| o.name == key && o.ty.starts_with("Vec"));
        // A single value is a list of one.
        let listed = given.iter().map(|(key, value)| match value {
            Value::Array(_) => (key.clone(), value.clone()),
            single if is_list(key) => (key.clone(), Value::Array(vec![single.clone()])),
            other => (key.clone(), other.clone()),
        });
        let pass = (info.build)(Options(listed.collect())).map_err(|why| {
            let message = format!("`{name}`: {}", why.trim_end().replace('\n', " "));
            error(message, &places.options, Some(explain()))
        })?;
        Ok(Self::Pass { pass, options })
    }
}

/// Moves the keys that are not in `declared` into the table `open`. In TOML, `x.0 = 1` without quotes is a
/// table in a table, whose keys are joined again.
fn collect_free_keys(options: Table, open: &str, declared: &[&str]) -> Table {
    fn flatten(key: String, value: Value, to: &mut Table) {
        match value {
            Value::Table(inner) => {
                inner.into_iter().for_each(|(k, v)| flatten(format!("{key}.{k}"), v, to));
            }
            value => drop(to.insert(key, value)),
        }
    }
    let (mut given, mut free) = (Table::new(), Table::new());
    for (key, value) in options {
        if declared.contains(&key.as_str()) {
            given.insert(key, value);
        } else {
            flatten(key, value, &mut free);
        }
    }
    if !free.is_empty() {
        given.entry(open).or_insert_with(|| Value::Table(Table::new()));
    }
    if let Some(Value::Table(table)) = given.get_mut(open) {
        table.extend(free);
    }
    given
}

fn did_you_mean<'n>(word: &str, names: impl Iterator<Item = &'n str>) -> Option<Hint> {
    nearest(word, names).map(|name| Hint::DidYouMean(name.into()))
}

/// Prints a key as written in pipelines.
fn show_key(key: &str) -> String {
    let mut parser = Parser::new(key, &Registry::EMPTY);
    let is_bare = parser.key(0).is_ok_and(|read| read == key) && parser.is_at_end();
    if is_bare { key.to_owned() } else { Value::String(key.to_owned()).to_string() }
}

/// Prints a value as written in pipelines.
pub(crate) fn show_value(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = |c: char| c.is_alphanumeric() || "-_.*/:<>".contains(c);
            let reads_back = matches!(
                Parser::new(text, &Registry::EMPTY).value(),
                Ok(Value::String(read)) if read == *text
            );
            if !text.is_empty() && text.chars().all(plain) && reads_back {
                text.clone()
            } else {
                Value::String(text.clone()).to_string()
            }
        }
        Value::Array(items) => format!("[{}]", items.iter().map(show_value).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            match step {
                Step::Preset { name, options, .. } => write_step(f, name, options)?,
                Step::Repeat(inner) => write!(f, "({inner})*")?,
                Step::Pass { pass, options } => write_step(f, pass.info().name, options)?,
            }
        }
        Ok(())
    }
}

fn write_step(f: &mut fmt::Formatter<'_>, name: &str, options: &Table) -> fmt::Result {
    f.write_str(name)?;
    if options.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = options.iter().map(|(k, v)| format!("{}={}", show_key(k), show_value(v))).collect();
    write!(f, "{{{}}}", shown.join(","))
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
