//! Pipelines: ordered lists of passes, as text and as TOML.
//!
//! ```text
//! pipeline := step (',' step)*
//! step     := name ('{' key '=' value (',' key '=' value)* '}')? | '(' pipeline ')*'
//! value    := TOML value | bare word
//! ```
//!
//! `( … )*` repeats until nothing changes. A name is a pass or a preset such as `safe`.

use crate::framework::{Effect, Hint, Pass, Registry};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, ops::Range};
use toml::{Table, Value};
use toml_parser::{Source, lexer::TokenKind};

/// An ordered list of passes.
pub struct Pipeline {
    steps: Vec<Step>,
    registry: &'static Registry,
}

/// One step of a pipeline.
pub enum Step {
    /// A pass with the options that were written.
    Pass {
        /// The pass, built and checked.
        pass: Box<dyn Pass>,
        /// The options as written; defaults are absent.
        options: Table,
    },
    /// A named pipeline.
    Preset {
        /// Its name.
        name: &'static str,
        /// Its steps.
        steps: Pipeline,
    },
    /// Steps to repeat until nothing changes.
    Repeat(Pipeline),
}

/// A pipeline that cannot be understood, with the place in its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct PipelineError {
    /// What is wrong, one sentence.
    pub message: String,
    /// The place in the text, in bytes.
    pub at: Range<usize>,
    /// The remedy, if one is known.
    pub hint: Option<Hint>,
}

impl PipelineError {
    fn new(message: impl Into<String>, at: Range<usize>) -> Self {
        Self { message: message.into(), at, hint: None }
    }

    /// The line of `source` the error lies in, with the place underlined.
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

/// Brackets within brackets in a TOML file; no more is needed, and the parser behind follows them by recursion.
const MAX_NESTING: usize = 64;

/// Read TOML; an error comes with its place.
pub fn read_toml<T: DeserializeOwned>(text: &str) -> Result<T, PipelineError> {
    let mut open = vec![];
    for token in Source::new(text).lex() {
        match (open.last().copied(), token.kind()) {
            (_, opened @ (TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket)) => open.push(opened),
            (Some(TokenKind::LeftSquareBracket), TokenKind::RightSquareBracket)
            | (Some(TokenKind::LeftCurlyBracket), TokenKind::RightCurlyBracket) => {
                open.truncate(open.len() - 1);
            }
            // One that closes nothing is passed over: so does the parser, which goes on to find more mistakes.
            _ => {}
        }
        if open.len() > MAX_NESTING {
            let message = format!("more than {MAX_NESTING} brackets are open");
            return Err(PipelineError::new(message, token.span().start()..token.span().end()));
        }
    }
    toml::from_str(text).map_err(|e| PipelineError::new(e.message(), e.span().unwrap_or(0..text.len())))
}

impl Pipeline {
    /// A pipeline without steps. The passes in it may run those of `registry` as nested steps.
    pub fn empty(registry: &'static Registry) -> Self {
        Self { steps: vec![], registry }
    }

    /// Parses the text form; names are those of `registry`.
    pub fn parse(text: &str, registry: &'static Registry) -> Result<Self, PipelineError> {
        let mut parser = Parser { text, at: 0, depth: 0, registry };
        let steps = parser.steps()?;
        let at = parser.here();
        if at.is_empty() {
            Ok(Self { steps, registry })
        } else {
            Err(PipelineError::new("expected `,` or the end", at))
        }
    }

    /// The passes that its steps and their nested steps are looked up in.
    pub fn registry(&self) -> &'static Registry {
        self.registry
    }

    /// The steps in order.
    pub fn steps(&self) -> &[Step] {
        &self.steps
    }

    /// Whether there is no step.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// Append a pass, perhaps one that is written elsewhere.
    pub fn push(&mut self, pass: impl Pass + 'static) {
        self.steps.push(Step::Pass { pass: Box::new(pass), options: Table::new() });
    }

    /// Every pass in it, through presets and repetitions.
    pub fn passes(&self) -> Vec<&dyn Pass> {
        fn of(step: &Step) -> Vec<&dyn Pass> {
            match step {
                Step::Pass { pass, .. } => vec![pass.as_ref()],
                Step::Preset { steps, .. } | Step::Repeat(steps) => steps.passes(),
            }
        }
        self.steps.iter().flat_map(of).collect()
    }

    /// The weakest promise of its passes; an empty pipeline is exact.
    pub fn effect(&self) -> Effect {
        self.passes().iter().map(|p| p.info().effect).max().unwrap_or(Effect::Exact)
    }

    /// Parses the TOML form: a list `step` of tables, each with `pass` and options, or with `repeat` and
    /// such a list.
    pub fn parse_toml(text: &str, registry: &'static Registry) -> Result<Self, PipelineError> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct File {
            step: Vec<Table>,
        }
        let file: File = read_toml(text)?;
        Self::from_tables(file.step, registry).map_err(|(name, mut error)| {
            // Tables have lost their places: underline the name where it stands.
            error.at = text.find(&name).map_or(0..text.len(), |i| i..i + name.len());
            error
        })
    }

    /// Build from the tables of a TOML file; an error comes with the word it is about.
    pub fn from_tables(
        tables: Vec<Table>,
        registry: &'static Registry,
    ) -> Result<Self, (String, PipelineError)> {
        let mut steps = vec![];
        for mut table in tables {
            if let Some(repeat) = table.remove("repeat") {
                let inner: Vec<Table> = repeat.try_into().map_err(|e: toml::de::Error| {
                    (
                        "repeat".into(),
                        PipelineError::new(format!("`repeat` is a list of steps: {}", e.message()), 0..0),
                    )
                })?;
                if let Some(key) = table.keys().next() {
                    let message = format!("`{key}` does not belong to a repeated step");
                    return Err((key.clone(), PipelineError::new(message, 0..0)));
                }
                steps.push(Step::Repeat(Self::from_tables(inner, registry)?));
                continue;
            }
            let Some(Value::String(name)) = table.remove("pass") else {
                let message = "a step needs the name of its `pass`, or `repeat`";
                return Err(("[[step]]".into(), PipelineError::new(message, 0..0)));
            };
            steps.push(step(&name, table, 0..0, 0..0, registry).map_err(|e| (name, e))?);
        }
        Ok(Self { steps, registry })
    }

    /// The pipeline as TOML; `parse_toml` reads it back equal.
    pub fn to_toml(&self) -> String {
        #[derive(Serialize)]
        struct File {
            step: Vec<Table>,
        }
        toml::to_string(&File { step: self.to_tables() }).unwrap_or_default()
    }

    fn to_tables(&self) -> Vec<Table> {
        let named = |name: &str| Table::from_iter([("pass".to_owned(), Value::from(name))]);
        let table = |step: &Step| match step {
            Step::Pass { pass, options } => {
                let mut table = named(pass.info().name);
                table.extend(options.clone());
                table
            }
            Step::Preset { name, .. } => named(name),
            Step::Repeat(inner) => {
                let inner = inner.to_tables().into_iter().map(Value::Table).collect();
                Table::from_iter([("repeat".to_owned(), Value::Array(inner))])
            }
        };
        self.steps.iter().map(table).collect()
    }
}

/// Build the step `name` with its options, whose places in the text are given for errors.
fn step(
    name: &str,
    options: Table,
    at: Range<usize>,
    options_at: Range<usize>,
    registry: &'static Registry,
) -> Result<Step, PipelineError> {
    if let Some(preset) = registry.find_preset(name) {
        if !options.is_empty() {
            let message = format!("`{name}` is a preset and takes no options");
            return Err(PipelineError::new(message, options_at));
        }
        let steps = Pipeline::parse(preset.text, registry).map_err(|e| PipelineError { at, ..e })?;
        return Ok(Step::Preset { name: preset.name, steps });
    }
    let Some(info) = registry.find(name) else {
        let hint = match nearest(name, registry.names()) {
            Some(near) => Hint::DidYouMean(near.into()),
            None => Hint::ListPasses,
        };
        let message = if name.is_empty() {
            "a pass is missing here".into()
        } else {
            format!("there is no pass `{name}`")
        };
        return Err(PipelineError { hint: Some(hint), ..PipelineError::new(message, at) });
    };
    for key in options.keys() {
        if !info.options.iter().any(|o| o.name == key) {
            let hint = match nearest(key, info.options.iter().map(|o| o.name)) {
                Some(near) => Hint::DidYouMean(near.into()),
                None => Hint::ExplainPass(name.into()),
            };
            let message = format!("`{name}` has no option `{key}`");
            return Err(PipelineError { hint: Some(hint), ..PipelineError::new(message, options_at) });
        }
    }
    let pass = (info.build)(options.clone()).map_err(|why| PipelineError {
        message: format!("`{name}`: {}", why.trim_end().replace('\n', " ")),
        at: options_at,
        hint: Some(Hint::ExplainPass(name.into())),
    })?;
    Ok(Step::Pass { pass, options })
}

fn nearest<'n>(word: &str, names: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let scored = names.into_iter().map(|n| (strsim::jaro_winkler(word, n), n));
    // Below 0.7 the two words have little in common.
    scored.filter(|(score, _)| *score > 0.7).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, n)| n)
}

/// How deep repetitions and lists may nest.
const MAX_DEPTH: usize = 16;

struct Parser<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
    registry: &'static Registry,
}

impl Parser<'_> {
    fn space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> Option<char> {
        self.space();
        self.text[self.at..].chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn here(&mut self) -> Range<usize> {
        let len = self.peek().map_or(0, char::len_utf8);
        self.at..self.at + len
    }

    fn deeper(&mut self) -> Result<(), PipelineError> {
        self.depth += 1;
        let at = self.here();
        if self.depth > MAX_DEPTH { Err(PipelineError::new("this nests too deep", at)) } else { Ok(()) }
    }

    fn steps(&mut self) -> Result<Vec<Step>, PipelineError> {
        let mut steps = vec![];
        loop {
            if matches!(self.peek(), None | Some(')')) && steps.is_empty() {
                return Ok(steps);
            }
            steps.push(self.step()?);
            if !self.eat(',') {
                return Ok(steps);
            }
        }
    }

    fn step(&mut self) -> Result<Step, PipelineError> {
        let open = self.here();
        if self.eat('(') {
            self.deeper()?;
            let steps = self.steps()?;
            self.depth -= 1;
            if !self.eat(')') {
                let at = if self.peek().is_none() { open } else { self.here() };
                return Err(PipelineError::new("this `(` is not closed", at));
            }
            let at = self.here();
            return if self.eat('*') {
                Ok(Step::Repeat(Pipeline { steps, registry: self.registry }))
            } else {
                Err(PipelineError::new("a repetition ends in `)*`", at))
            };
        }
        let at = self.word(&|c| c.is_alphanumeric() || c == '-' || c == '_');
        let name = &self.text[at.clone()];
        let (mut options, start) = (Table::new(), self.here().start);
        if self.eat('{') {
            while !self.eat('}') {
                let (key, value) = self.option(start)?;
                options.insert(key, value);
                if !self.eat(',') && self.peek() != Some('}') {
                    let at = self.here();
                    let what = if at.is_empty() { "this `{` is not closed" } else { "expected `,` or `}`" };
                    let at = if at.is_empty() { start..start + 1 } else { at };
                    return Err(PipelineError::new(what, at));
                }
            }
        }
        step(name, options, at, start..self.at, self.registry)
    }

    fn option(&mut self, open: usize) -> Result<(String, Value), PipelineError> {
        let at = self.word(&|c| c.is_alphanumeric() || c == '_' || c == '-');
        if at.is_empty() {
            let here = self.here();
            let at = if here.is_empty() { open..open + 1 } else { here };
            return Err(PipelineError::new("expected `option=value`", at));
        }
        let key = self.text[at].to_owned();
        if !self.eat('=') {
            // A bare option is a switch.
            return Ok((key, Value::Boolean(true)));
        }
        Ok((key, self.value()?))
    }

    fn value(&mut self) -> Result<Value, PipelineError> {
        let start = self.here().start;
        if self.eat('[') {
            self.deeper()?;
            let mut items = vec![];
            while !self.eat(']') {
                if self.peek().is_none() {
                    return Err(PipelineError::new("this `[` is not closed", start..start + 1));
                }
                items.push(self.value()?);
                if !self.eat(',') && self.peek() != Some(']') {
                    let at = self.here();
                    return Err(PipelineError::new("expected `,` or `]`", at));
                }
            }
            self.depth -= 1;
            return Ok(Value::Array(items));
        }
        if let Some(quote @ ('"' | '\'')) = self.peek() {
            return self.quoted(quote);
        }
        let at = self.word(&|c| !c.is_whitespace() && !",{}[]()=\"'".contains(c));
        if at.is_empty() {
            return Err(PipelineError::new("a value is missing here", at));
        }
        let word = &self.text[at];
        let parsed = format!("v={word}").parse::<Table>().ok().and_then(|mut t| t.remove("v"));
        // What is no TOML number or boolean is a bare word; dates are none of ours.
        Ok(match parsed {
            Some(value @ (Value::Integer(_) | Value::Float(_) | Value::Boolean(_))) => value,
            _ => Value::String(word.into()),
        })
    }

    fn quoted(&mut self, quote: char) -> Result<Value, PipelineError> {
        let start = self.at;
        let mut escaped = false;
        let end = self.text[start + 1..].find(|c| {
            let closes = c == quote && !escaped;
            escaped = quote == '"' && c == '\\' && !escaped;
            closes
        });
        let unclosed = || PipelineError::new("this text is not closed", start..start + 1);
        self.at = start + 1 + end.ok_or_else(unclosed)? + 1;
        let parsed = format!("v={}", &self.text[start..self.at]).parse::<Table>();
        let bad = |e: toml::de::Error| PipelineError::new(e.message(), start..self.at);
        parsed.map_err(bad)?.remove("v").ok_or_else(unclosed)
    }

    fn word(&mut self, part: &dyn Fn(char) -> bool) -> Range<usize> {
        self.space();
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !part(c)).unwrap_or(rest.len());
        self.at += len;
        self.at - len..self.at
    }
}

/// A value as written in pipelines.
pub(crate) fn show_value(value: &Value) -> String {
    match value {
        Value::String(text) => {
            let plain = |c: char| c.is_alphanumeric() || "-_.*/:<>".contains(c);
            let reads_back = matches!(
                Parser { text, at: 0, depth: 0, registry: &Registry::EMPTY }.value(),
                Ok(Value::String(read)) if read == *text
            );
            if !text.is_empty() && text.chars().all(plain) && reads_back {
                text.clone()
            } else {
                Value::String(text.clone()).to_string()
            }
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(show_value).collect::<Vec<_>>().join(","))
        }
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
                Step::Preset { name, .. } => f.write_str(name)?,
                Step::Repeat(inner) => write!(f, "({inner})*")?,
                Step::Pass { pass, options } => {
                    f.write_str(pass.info().name)?;
                    if !options.is_empty() {
                        let shown: Vec<_> =
                            options.iter().map(|(k, v)| format!("{k}={}", show_value(v))).collect();
                        write!(f, "{{{}}}", shown.join(","))?;
                    }
                }
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> PipelineError {
        text.parse::<Pipeline>().unwrap_err()
    }

    #[test]
    fn brackets_without_end_are_refused() {
        let wrong = Pipeline::from_toml(&format!("step = {}", "[{a = ".repeat(10_000))).unwrap_err();
        assert_eq!(wrong.message, "more than 64 brackets are open");
        assert_eq!(wrong.at, 199..200);
        // Brackets that close nothing, and those in strings and comments, do not count.
        for part in ["[{a = ]", "[{ \"]\" = ", "[{a = [\"}]}\", ", "[ # ]\n"] {
            let wrong = Pipeline::from_toml(&format!("step = {}", part.repeat(10_000))).unwrap_err();
            assert_eq!(wrong.message, "more than 64 brackets are open", "{part}");
        }
        let many = "[[step]]\npass = \"safe\" # [\n".repeat(100);
        assert_eq!(Pipeline::from_toml(&many).unwrap().steps().len(), 100);
    }

    #[test]
    fn text_and_toml_round_trip() {
        for text in
            ["", "safe", "(fold-bn,drop-noops)*,fold-bn{max_scale=100.0}", "fold-constants{max_growth=0.5}"]
        {
            let pipeline: Pipeline = text.parse().unwrap();
            assert_eq!(pipeline.to_string(), text);
            let toml = pipeline.to_toml();
            if !text.is_empty() {
                assert_eq!(Pipeline::from_toml(&toml).unwrap().to_string(), text, "{toml}");
            }
        }
    }

    #[test]
    fn spaces_and_lines_do_not_count() {
        let pipeline: Pipeline =
            " ( fold-bn ,\n drop-noops )* , fold-bn { max_scale = 5e3 } ".parse().unwrap();
        assert_eq!(pipeline.to_string(), "(fold-bn,drop-noops)*,fold-bn{max_scale=5000.0}");
    }

    #[test]
    fn errors_point_at_the_place_and_suggest() {
        let text = "drop-noops,fold-bm{}";
        let e = error(text);
        assert_eq!((e.message.as_str(), e.at.clone()), ("there is no pass `fold-bm`", 11..18));
        assert_eq!(e.hint, Some(Hint::DidYouMean("fold-bn".into())));
        assert_eq!(e.underline(text), "  drop-noops,fold-bm{}\n             ^^^^^^^");
        let e = error("fold-bn{max_scal=3}");
        assert_eq!(e.message, "`fold-bn` has no option `max_scal`");
        assert_eq!(e.hint, Some(Hint::DidYouMean("max_scale".into())));
        assert!(error("fold-bn{max_scale=lots}").message.contains("invalid type: string \"lots\""));
    }

    #[test]
    fn broken_texts_are_errors_never_panics() {
        for text in [
            "(fold-bn",
            "fold-bn{",
            "fold-bn{max_scale",
            "fold-bn{max_scale=",
            "fold-bn{=3}",
            "(fold-bn)",
            "fold-bn,,",
            ",",
            ")",
            "fold-bn}",
            "fold-bn{max_scale=[1,",
            "fold-bn{max_scale=\"x}",
            "☃",
            "safe{x=1}",
        ] {
            let e = error(text);
            assert!(!e.message.is_empty() && !e.underline(text).is_empty(), "{text}");
        }
        assert_eq!(error(&"(".repeat(100_000)).message, "this nests too deep");
    }

    #[test]
    fn words_that_look_like_numbers_are_quoted_when_shown() {
        for text in ["obs", "12", "true", "a b", "", "layer*/conv", "it's"] {
            let shown = show_value(&Value::String(text.into()));
            let read = Parser { text: &shown, at: 0, depth: 0, registry: &Registry::EMPTY }.value().unwrap();
            assert_eq!(read, Value::String(text.into()), "{shown}");
        }
    }
}
