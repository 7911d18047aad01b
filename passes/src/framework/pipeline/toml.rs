//! The TOML form of pipelines.

use super::{Pipeline, PipelineError, Places, Step};
use crate::framework::Registry;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use toml::{Table, Value};
use toml_parser::{Source, lexer::TokenKind};

/// Open brackets up to which a TOML file is parsed, since the parser recurses.
const MAX_NESTING: usize = 64;

/// Deserialises TOML. Errors carry their position.
///
/// # Errors
///
/// If the text is not valid TOML, is nested too deeply, or does not fit `T`.
pub fn read_toml<T: DeserializeOwned>(text: &str) -> Result<T, PipelineError> {
    let mut open = vec![];
    for token in Source::new(text).lex() {
        match (open.last().copied(), token.kind()) {
            (_, opened @ (TokenKind::LeftSquareBracket | TokenKind::LeftCurlyBracket)) => open.push(opened),
            (Some(TokenKind::LeftSquareBracket), TokenKind::RightSquareBracket)
            | (Some(TokenKind::LeftCurlyBracket), TokenKind::RightCurlyBracket) => {
                open.truncate(open.len() - 1);
            }
            // An unmatched closing bracket is skipped, as the parser does to find further errors.
            _ => {}
        }
        if open.len() > MAX_NESTING {
            let message = format!("more than {MAX_NESTING} brackets are open");
            return Err(PipelineError::new(message, token.span().start()..token.span().end()));
        }
    }
    toml::from_str(text).map_err(|e| PipelineError::new(e.message(), e.span().unwrap_or(0..text.len())))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    step: Vec<Table>,
}

/// An error in a step, which has lost its position.
struct StepError {
    /// A word of the file at which the error is reported.
    word: String,
    error: PipelineError,
}

impl StepError {
    fn new(word: &str, message: impl Into<String>) -> Self {
        Self { word: word.into(), error: PipelineError::new(message, 0..0) }
    }
}

impl Pipeline {
    /// Parses the TOML form: a list `step` of tables, each with `pass` and its options, or with `repeat` and
    /// such a list.
    ///
    /// # Errors
    ///
    /// With the position of the first invalid step.
    pub fn parse_toml(text: &str, registry: &'static Registry) -> Result<Self, PipelineError> {
        let file: File = read_toml(text)?;
        from_tables(file.step, registry).map_err(|StepError { word, error }| {
            let at = text.find(&word).map_or(0..text.len(), |i| i..i + word.len());
            PipelineError { at, ..error }
        })
    }

    /// Prints the TOML form; [`parse_toml`](Self::parse_toml) reads it back equal.
    pub fn to_toml(&self) -> String {
        toml::to_string(&File { step: to_tables(self) }).unwrap_or_default()
    }
}

fn from_tables(tables: Vec<Table>, registry: &'static Registry) -> Result<Pipeline, StepError> {
    let steps = tables.into_iter().map(|table| from_table(table, registry)).collect::<Result<_, _>>()?;
    Ok(Pipeline { steps, registry })
}

fn from_table(mut table: Table, registry: &'static Registry) -> Result<Step, StepError> {
    if let Some(repeat) = table.remove("repeat") {
        let inner: Vec<Table> = repeat.try_into().map_err(|e: toml::de::Error| {
            StepError::new("repeat", format!("`repeat` is a list of steps: {}", e.message()))
        })?;
        if let Some(key) = table.keys().next() {
            return Err(StepError::new(key, format!("`{key}` does not belong to a repeated step")));
        }
        return Ok(Step::Repeat(from_tables(inner, registry)?));
    }
    let Some(Value::String(name)) = table.remove("pass") else {
        return Err(StepError::new("[[step]]", "a step needs the name of its `pass`, or `repeat`"));
    };
    Step::build(&name, table, &Places::default(), registry).map_err(|error| StepError { word: name, error })
}

fn to_tables(pipeline: &Pipeline) -> Vec<Table> {
    let named = |name: &str| Table::from_iter([("pass".to_owned(), Value::from(name))]);
    let with = |name: &str, options: &Table| {
        let mut table = named(name);
        table.extend(options.clone());
        table
    };
    let table = |step: &Step| match step {
        Step::Pass { pass, options } => with(pass.info().name, options),
        Step::Preset { name, options, .. } => with(name, options),
        Step::Repeat(inner) => {
            let inner = to_tables(inner).into_iter().map(Value::Table).collect();
            Table::from_iter([("repeat".to_owned(), Value::Array(inner))])
        }
    };
    pipeline.steps.iter().map(table).collect()
}
