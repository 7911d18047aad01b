//! Tokens and their positions.

use super::TextError;
use std::{borrow::Cow, fmt};

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A plain identifier or keyword.
    Word(&'a str),
    /// The text of a number: an integer, a decimal, `-inf`, `nan(0x…)`.
    Number(&'a str),
    /// The content of a quoted string.
    Text(Cow<'a, str>),
    /// A string `b"…"` of any bytes.
    Bytes(Vec<u8>),
    /// `=>`
    Arrow,
    /// Any other character of the syntax.
    Mark(char),
    End,
}

impl fmt::Display for Token<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let short = |text: &str| text.chars().take(40).collect::<String>();
        match self {
            Self::Word(word) => write!(f, "`{}`", short(word)),
            Self::Number(number) => write!(f, "the number {}", short(number)),
            Self::Text(text) => write!(f, "the string {:?}", short(text)),
            Self::Bytes(_) => f.write_str("a string of bytes"),
            Self::Arrow => f.write_str("`=>`"),
            Self::Mark(mark) => write!(f, "`{mark}`"),
            Self::End => f.write_str("the end of the text"),
        }
    }
}

pub(super) struct Lexer<'a> {
    source: &'a str,
    offset: usize,
}

impl<'a> Lexer<'a> {
    pub fn new(source: &'a str) -> Self {
        Self { source, offset: 0 }
    }

    /// An error at a byte of the text.
    pub fn error(&self, offset: usize, message: impl Into<String>) -> TextError {
        let before = self.source.get(..offset).unwrap_or(self.source);
        let line = before.bytes().filter(|&b| b == b'\n').count() + 1;
        let column = before.chars().rev().take_while(|&c| c != '\n').count() + 1;
        TextError { message: message.into(), line, column }
    }

    /// The next byte; 0 at the end, which starts no token.
    fn peek(&self) -> u8 {
        self.source.as_bytes().get(self.offset).copied().unwrap_or(0)
    }

    fn skip(&mut self, more: impl Fn(u8) -> bool) {
        while self.offset < self.source.len() && more(self.peek()) {
            self.offset += 1;
        }
    }

    /// The next token and its byte offset.
    pub fn next(&mut self) -> Result<(usize, Token<'a>), TextError> {
        loop {
            self.skip(|b| b.is_ascii_whitespace() || b == 0x0b);
            if self.peek() != b'#' {
                break;
            }
            self.skip(|b| b != b'\n');
        }
        let start = self.offset;
        let token = match self.peek() {
            _ if start == self.source.len() => Token::End,
            b'"' => Token::Text(self.text(start)?),
            b'b' if self.source[start + 1..].starts_with('"') => {
                self.offset += 1;
                Token::Bytes(self.bytes(start)?)
            }
            b if b.is_ascii_alphabetic() || b == b'_' => {
                self.skip(|b| b.is_ascii_alphanumeric() || b == b'_');
                let word = &self.source[start..self.offset];
                if word == "nan" && self.source[self.offset..].starts_with("(0x") {
                    self.skip(|b| b != b')' && b != b'\n');
                    self.offset += usize::from(self.peek() == b')');
                    Token::Number(&self.source[start..self.offset])
                } else {
                    Token::Word(word)
                }
            }
            b if b.is_ascii_digit() || b == b'-' => Token::Number(self.number(start)),
            b'=' if self.source[start..].starts_with("=>") => {
                self.offset += 2;
                Token::Arrow
            }
            b if b"()[]{}<>,:.=@?".contains(&b) => {
                self.offset += 1;
                Token::Mark(b.into())
            }
            _ => {
                let found = self.source[start..].chars().next().unwrap_or_default();
                return Err(self.error(start, format!("{found:?} is not a character of the syntax")));
            }
        };
        Ok((start, token))
    }

    /// `-? (letters | digits (. digits)? ((e|E) (+|-)? digits)?)`
    fn number(&mut self, start: usize) -> &'a str {
        self.offset += usize::from(self.peek() == b'-');
        if self.peek().is_ascii_alphabetic() {
            self.skip(|b| b.is_ascii_alphanumeric());
            return &self.source[start..self.offset];
        }
        self.skip(|b| b.is_ascii_digit());
        if self.peek() == b'.' {
            self.offset += 1;
            self.skip(|b| b.is_ascii_digit());
        }
        if matches!(self.peek(), b'e' | b'E') {
            self.offset += 1;
            self.offset += usize::from(matches!(self.peek(), b'+' | b'-'));
            self.skip(|b| b.is_ascii_digit());
        }
        &self.source[start..self.offset]
    }

    /// A quoted string; a backslash escapes the next character.
    fn text(&mut self, start: usize) -> Result<Cow<'a, str>, TextError> {
        self.offset += 1;
        let mut text = Cow::Borrowed("");
        loop {
            let from = self.offset;
            self.skip(|b| b != b'"' && b != b'\\');
            let part = &self.source[from..self.offset];
            if text.is_empty() {
                text = Cow::Borrowed(part);
            } else {
                text.to_mut().push_str(part);
            }
            match self.peek() {
                b'"' => {
                    self.offset += 1;
                    return Ok(text);
                }
                _ => match self.source[self.offset..].chars().nth(1) {
                    Some(escaped) => {
                        self.offset += 1 + escaped.len_utf8();
                        text.to_mut().push(escaped);
                    }
                    None => return Err(self.error(start, "the string that starts here is not closed")),
                },
            }
        }
    }

    /// The bytes of `"…"` with the escapes `\\`, `\"` and `\xHH`.
    fn bytes(&mut self, start: usize) -> Result<Vec<u8>, TextError> {
        let mut bytes = vec![];
        let source = self.source.as_bytes();
        let hex = |at: usize| {
            let digits = self.source.get(at..at + 2).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()))?;
            u8::from_str_radix(digits, 16).ok()
        };
        let mut offset = self.offset + 1;
        loop {
            let (byte, length) = match source.get(offset..) {
                Some([b'"', ..]) => break,
                Some([b'\\', b'x', ..]) => match hex(offset + 2) {
                    Some(byte) => (byte, 4),
                    None => {
                        return Err(self
                            .error(start, "`\\x` in a string of bytes must be followed by two hex digits"));
                    }
                },
                Some([b'\\', escaped, ..]) => (*escaped, 2),
                Some([byte, ..]) => (*byte, 1),
                _ => return Err(self.error(start, "the string that starts here is not closed")),
            };
            bytes.push(byte);
            offset += length;
        }
        self.offset = offset + 1;
        Ok(bytes)
    }
}
