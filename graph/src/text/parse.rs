//! Parsing of models, functions, graphs and nodes. Names are resolved at the end of a graph, so nodes may be
//! in any order.

use super::{
    TextError,
    build::{Call, Entry},
    is_float_word, is_type_word,
    lex::{Lexer, Token},
};
use crate::{Function, Graph, Model, Node};
use std::{mem, sync::Arc};

/// Limit of the nesting of graphs and types, since the parser is recursive.
const MAX_DEPTH: usize = 64;

pub(super) struct Parser<'a> {
    lexer: Lexer<'a>,
    /// The next token and its byte offset.
    pub token: Token<'a>,
    pub offset: usize,
    depth: usize,
}

// ---- tokens
impl<'a> Parser<'a> {
    pub fn new(source: &'a str) -> Result<Self, TextError> {
        let mut lexer = Lexer::new(source);
        let (offset, token) = lexer.next()?;
        Ok(Self { lexer, token, offset, depth: 0 })
    }

    pub fn advance(&mut self) -> Result<Token<'a>, TextError> {
        let (offset, token) = self.lexer.next()?;
        self.offset = offset;
        Ok(mem::replace(&mut self.token, token))
    }

    pub fn error(&self, offset: usize, message: impl Into<String>) -> TextError {
        self.lexer.error(offset, message)
    }

    pub fn error_at<T>(&self, offset: usize, message: impl Into<String>) -> Result<T, TextError> {
        Err(self.error(offset, message))
    }

    pub fn expected<T>(&self, what: &str) -> Result<T, TextError> {
        self.error_at(self.offset, format!("expected {what}, found {}", self.token))
    }

    pub fn is(&self, mark: char) -> bool {
        self.token == Token::Mark(mark)
    }

    /// Consumes the next token if it is `mark`.
    pub fn eat(&mut self, mark: char) -> Result<bool, TextError> {
        let is_next = self.is(mark);
        if is_next {
            self.advance()?;
        }
        Ok(is_next)
    }

    pub fn require(&mut self, mark: char) -> Result<(), TextError> {
        if self.eat(mark)? { Ok(()) } else { self.expected(&format!("`{mark}`")) }
    }

    pub fn end(&self) -> Result<(), TextError> {
        if self.token == Token::End { Ok(()) } else { self.expected("the end of the text") }
    }

    /// An identifier, optionally quoted.
    pub fn name(&mut self, what: &str) -> Result<String, TextError> {
        match &self.token {
            Token::Word(_) | Token::Text(_) => {}
            _ => return self.expected(what),
        }
        Ok(match self.advance()? {
            Token::Word(word) => word.into(),
            Token::Text(text) => text.into_owned(),
            _ => unreachable!("checked above"),
        })
    }

    fn text(&mut self, what: &str) -> Result<String, TextError> {
        if matches!(self.token, Token::Text(_)) { self.name(what) } else { self.expected(what) }
    }

    pub fn integer(&mut self, what: &str) -> Result<i64, TextError> {
        let Token::Number(number) = self.token else { return self.expected(what) };
        let Ok(number) = number.parse() else { return self.expected(what) };
        self.advance()?;
        Ok(number)
    }

    /// `(item (, item)*)?` and the closing mark.
    pub fn list<T>(
        &mut self,
        close: char,
        mut item: impl FnMut(&mut Self) -> Result<T, TextError>,
    ) -> Result<Vec<T>, TextError> {
        let mut items = vec![];
        if self.eat(close)? {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(close)? {
                return Ok(items);
            }
            if !self.eat(',')? {
                return self.expected(&format!("`,` or `{close}`"));
            }
        }
    }

    /// `a.b.c`, optionally quoted.
    pub fn dotted(&mut self, what: &str) -> Result<Vec<String>, TextError> {
        let mut parts = vec![self.name(what)?];
        while self.eat('.')? {
            parts.push(self.name(what)?);
        }
        Ok(parts)
    }

    /// Applies a recursive rule.
    pub fn nested<T>(
        &mut self,
        rule: impl FnOnce(&mut Self) -> Result<T, TextError>,
    ) -> Result<T, TextError> {
        if self.depth == MAX_DEPTH {
            return self
                .error_at(self.offset, format!("graphs and types are nested deeper than {MAX_DEPTH}"));
        }
        self.depth += 1;
        let result = rule(self);
        self.depth -= 1;
        result
    }
}

// ---- structure
impl Parser<'_> {
    pub fn model(&mut self) -> Result<Model, TextError> {
        let mut model = Model::default();
        if self.eat('<')? {
            self.list('>', |p| {
                let (offset, key) = (p.offset, p.name("a keyword")?);
                p.require(':')?;
                match key.as_str() {
                    "ir_version" => model.ir_version = Some(p.integer("an integer")?),
                    "model_version" => model.model_version = Some(p.integer("an integer")?),
                    "opset_import" => model.opsets = p.opsets()?,
                    "producer_name" => model.producer_name = Some(p.text("a string")?),
                    "producer_version" => model.producer_version = Some(p.text("a string")?),
                    "domain" => model.domain = Some(p.text("a string")?),
                    "doc_string" => model.doc = Some(p.text("a string")?),
                    "metadata_props" => {
                        model.metadata = p.pairs()?.into_iter().map(|(k, v)| (Some(k), Some(v))).collect();
                    }
                    _ => return p.error_at(offset, format!("a model has no `{key}`")),
                }
                Ok(())
            })?;
        }
        model.graph = self.graph(Graph::new(model.opsets.clone()))?;
        while self.token != Token::End {
            let function = self.function()?;
            model.functions.push(function);
        }
        Ok(model)
    }

    fn function(&mut self) -> Result<Function, TextError> {
        let mut function = Function::default();
        let (mut opsets, mut doc) = (Arc::default(), None);
        if self.eat('<')? {
            self.list('>', |p| {
                let (offset, key) = (p.offset, p.name("a keyword")?);
                p.require(':')?;
                match key.as_str() {
                    "opset_import" => opsets = p.opsets()?,
                    "domain" => function.domain = p.text("a string")?,
                    "overload" => function.overload = Some(p.text("a string")?),
                    "doc_string" => doc = Some(p.text("a string")?),
                    _ => return p.error_at(offset, format!("a function has no `{key}`")),
                }
                Ok(())
            })?;
        }
        let body = &mut function.body;
        *body = Graph::new(opsets);
        (body.is_function, body.doc) = (true, doc);
        function.name = self.name("the name of a function")?;
        if self.eat('<')? {
            self.list('>', |p| {
                let (offset, name) = (p.offset, p.name("the name of an attribute")?);
                if function.attributes.contains(&name) || function.defaults.contains_key(&name) {
                    return p.error_at(offset, format!("the function has two attributes `{name}`"));
                }
                if p.is(':') || p.is('=') {
                    let default = p.attribute_value(&name, &function.body)?;
                    function.defaults.insert(name, default);
                } else {
                    function.attributes.push(name);
                }
                Ok(())
            })?;
        }
        self.interface_and_nodes(&mut function.body)?;
        Ok(function)
    }

    /// Parses a graph into `graph`, which is empty but has its operator sets and pool of names.
    pub fn graph(&mut self, mut graph: Graph) -> Result<Graph, TextError> {
        let name = self.name("the name of a graph")?;
        self.named_graph(name, &mut graph)?;
        Ok(graph)
    }

    pub fn named_graph(&mut self, name: String, graph: &mut Graph) -> Result<(), TextError> {
        graph.name = Some(name);
        self.nested(|p| p.interface_and_nodes(graph))
    }

    /// `(inputs) => (outputs) <initializers and types> {nodes}`
    fn interface_and_nodes(&mut self, graph: &mut Graph) -> Result<(), TextError> {
        self.require('(')?;
        let inputs = self.list(')', Self::entry)?;
        if self.token != Token::Arrow {
            return self.expected("`=>`");
        }
        self.advance()?;
        self.require('(')?;
        let outputs = self.list(')', Self::entry)?;
        if let Some(output) = outputs.iter().find(|o| o.data.is_some()) {
            return self.error_at(output.offset, format!("the output `{}` cannot have a value", output.name));
        }
        let others = if self.eat('<')? { self.list('>', Self::entry)? } else { vec![] };
        self.require('{')?;
        let mut calls = vec![];
        while !self.eat('}')? {
            let call = self.call(graph)?;
            calls.push(call);
        }
        self.build(graph, &inputs, &outputs, &others, calls)
    }

    fn entry(&mut self) -> Result<Entry, TextError> {
        let ty = if self.at_type() { Some(self.ty()?) } else { None };
        let (offset, name) = (self.offset, self.name("a type or a name")?);
        let data = match &ty {
            Some(ty) if self.eat('=')? => Some(self.constant(ty, offset, &name)?),
            None if self.is('=') => {
                return self.error_at(offset, format!("`{name}` has a value but no type"));
            }
            _ => None,
        };
        Ok(Entry { ty, name, data, offset })
    }

    /// `[name] outputs = domain.Op:overload<attributes>(inputs)`, attributes before or after the inputs.
    fn call(&mut self, graph: &Graph) -> Result<Call, TextError> {
        let offset = self.offset;
        let mut node = Node::default();
        if self.eat('[')? {
            node.name = Some(if self.is(']') { String::new() } else { self.name("the name of a node")? });
            self.require(']')?;
        }
        let outputs = self.operands()?;
        self.require('=')?;
        let mut parts = self.dotted("an operator")?;
        node.op = parts.pop().unwrap_or_default();
        node.domain = (!parts.is_empty()).then(|| parts.join("."));
        if self.eat(':')? {
            node.overload = Some(self.name("an overload")?);
        }
        self.attributes(&mut node, graph)?;
        self.require('(')?;
        let inputs = self.operands()?;
        self.require(')')?;
        if node.attributes.is_empty() {
            self.attributes(&mut node, graph)?;
        }
        Ok(Call { node, inputs, outputs, offset })
    }

    /// Names separated by commas. An empty item and `""` are omitted operands; a trailing comma is ignored.
    fn operands(&mut self) -> Result<Vec<String>, TextError> {
        let mut names = vec![];
        loop {
            match self.token {
                Token::Word(_) | Token::Text(_) => names.push(self.name("a name")?),
                Token::Mark(',') => names.push(String::new()),
                _ => return Ok(names),
            }
            if !self.eat(',')? {
                return Ok(names);
            }
        }
    }

    fn attributes(&mut self, node: &mut Node, graph: &Graph) -> Result<(), TextError> {
        if !self.eat('<')? {
            return Ok(());
        }
        self.list('>', |p| {
            let (offset, name) = (p.offset, p.name("the name of an attribute")?);
            if node.attributes.contains_key(&name) {
                return p.error_at(offset, format!("the node has two attributes `{name}`"));
            }
            let value = p.attribute_value(&name, graph)?;
            node.attributes.insert(name, value);
            Ok(())
        })?;
        Ok(())
    }

    /// `["" : 17, "x.y" : 1]`
    fn opsets(&mut self) -> Result<Arc<Vec<(String, i64)>>, TextError> {
        self.require('[')?;
        let opsets = self.list(']', |p| {
            let domain = p.text("a domain in quotes")?;
            p.require(':')?;
            Ok((domain, p.integer("a version")?))
        })?;
        Ok(Arc::new(opsets))
    }

    /// `["key": "value"]`
    pub fn pairs(&mut self) -> Result<Vec<(String, String)>, TextError> {
        self.require('[')?;
        self.list(']', |p| {
            let key = p.text("a key in quotes")?;
            p.require(':')?;
            Ok((key, p.text("a value in quotes")?))
        })
    }

    pub fn at_type(&self) -> bool {
        match self.token {
            Token::Word(word) => is_type_word(word),
            Token::Mark(mark) => mark == '?',
            _ => false,
        }
    }

    pub fn at_number(&self) -> bool {
        match self.token {
            Token::Word(word) => is_float_word(word),
            Token::Number(_) => true,
            _ => false,
        }
    }
}
