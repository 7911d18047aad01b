//! The text form of pipelines.

use super::{Pipeline, PipelineError, Places, Step};
use crate::framework::Registry;
use std::ops::Range;
use toml::{Table, Value};

/// The largest depth of nested repetitions and lists.
const MAX_DEPTH: usize = 16;

/// A recursive-descent parser.
pub(super) struct Parser<'t> {
    text: &'t str,
    /// The position in `text`, in bytes.
    at: usize,
    depth: usize,
    registry: &'static Registry,
}

impl<'t> Parser<'t> {
    pub fn new(text: &'t str, registry: &'static Registry) -> Self {
        Self { text, at: 0, depth: 0, registry }
    }

    /// Parses the entire text as a pipeline.
    pub fn pipeline(mut self) -> Result<Pipeline, PipelineError> {
        let steps = self.steps()?;
        let at = self.here();
        if at.is_empty() {
            Ok(Pipeline { steps, registry: self.registry })
        } else {
            Err(PipelineError::new("expected `,` or the end", at))
        }
    }

    /// Returns true if the entire text has been read.
    pub fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    fn skip_space(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn peek(&mut self) -> Option<char> {
        self.skip_space();
        self.text[self.at..].chars().next()
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    /// The range of the next character; empty at the end.
    fn here(&mut self) -> Range<usize> {
        let len = self.peek().map_or(0, char::len_utf8);
        self.at..self.at + len
    }

    fn enter(&mut self) -> Result<(), PipelineError> {
        self.depth += 1;
        let at = self.here();
        if self.depth > MAX_DEPTH { Err(PipelineError::new("the nesting is too deep", at)) } else { Ok(()) }
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
            self.enter()?;
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
        let places = Places { name: at, options: start..self.at };
        Step::build(name, options, &places, self.registry)
    }

    fn option(&mut self, open: usize) -> Result<(String, Value), PipelineError> {
        let key = self.key(open)?;
        if !self.eat('=') {
            // An option without a value is a boolean set to true.
            return Ok((key, Value::Boolean(true)));
        }
        Ok((key, self.value()?))
    }

    /// A bare or quoted key; `open` is the position of the brace.
    pub fn key(&mut self, open: usize) -> Result<String, PipelineError> {
        if let Some(quote @ ('"' | '\'')) = self.peek()
            && let Value::String(key) = self.quoted(quote)?
        {
            return Ok(key);
        }
        let at = self.word(&|c| c.is_alphanumeric() || "_-./:*".contains(c));
        if at.is_empty() {
            let here = self.here();
            let at = if here.is_empty() { open..open + 1 } else { here };
            return Err(PipelineError::new("expected `option=value`", at));
        }
        Ok(self.text[at].to_owned())
    }

    pub fn value(&mut self) -> Result<Value, PipelineError> {
        let start = self.here().start;
        if self.eat('[') {
            self.enter()?;
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
        // Anything but a TOML number or boolean is a bare word, dates included.
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

    /// Takes the longest run of characters that satisfy `part`.
    fn word(&mut self, part: &dyn Fn(char) -> bool) -> Range<usize> {
        self.skip_space();
        let rest = &self.text[self.at..];
        let len = rest.find(|c| !part(c)).unwrap_or(rest.len());
        self.at += len;
        self.at - len..self.at
    }
}
