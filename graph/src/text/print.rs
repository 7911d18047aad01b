//! Printing of models and graphs; without extensions the official parser reads the text.

use super::{PrintOptions, is_float_word, is_identifier, is_type_word};
use crate::{AxisSize, Constant, Function, Graph, Model, Node, NodeId, TypeKind, ValueId};
use std::fmt::{Display, Write};

pub(super) struct Printer {
    pub out: String,
    pub options: PrintOptions,
    indent: usize,
}

const STEP: usize = 3;

// ---- tokens
impl Printer {
    pub fn new(options: PrintOptions) -> Self {
        Self { out: String::new(), options, indent: 0 }
    }

    pub fn finish(mut self) -> String {
        self.out.push('\n');
        self.out
    }

    pub fn put(&mut self, text: impl Display) {
        write!(self.out, "{text}").expect("writing to a string does not fail");
    }

    fn line(&mut self) {
        self.out.push('\n');
        self.out.extend(std::iter::repeat_n(' ', self.indent));
    }

    pub fn separated<T>(
        &mut self,
        separator: &str,
        items: impl IntoIterator<Item = T>,
        mut each: impl FnMut(&mut Self, T),
    ) {
        for (i, item) in items.into_iter().enumerate() {
            if i > 0 {
                self.out.push_str(separator);
            }
            each(self, item);
        }
    }

    /// A quoted string; quotes and backslashes are escaped.
    pub fn quoted(&mut self, text: &str) {
        self.out.push('"');
        for part in text.split_inclusive(['"', '\\']) {
            match part.strip_suffix(['"', '\\']) {
                Some(plain) => {
                    self.out.push_str(plain);
                    self.out.push('\\');
                    self.out.push_str(&part[plain.len()..]);
                }
                None => self.out.push_str(part),
            }
        }
        self.out.push('"');
    }

    pub fn string(&mut self, bytes: &[u8]) {
        if let Ok(text) = std::str::from_utf8(bytes) {
            return self.quoted(text);
        }
        self.out.push_str("b\"");
        for &b in bytes {
            match b {
                b'"' | b'\\' => self.put(format_args!("\\{}", char::from(b))),
                b' '..=b'~' => self.out.push(b.into()),
                _ => self.put(format_args!("\\x{b:02x}")),
            }
        }
        self.out.push('"');
    }

    /// A name; also quoted if it could be parsed as a type or a number.
    fn name(&mut self, name: &str) {
        if is_identifier(name) && !is_type_word(name) && !is_float_word(name) {
            self.out.push_str(name);
        } else {
            self.quoted(name);
        }
    }

    /// A name where a type or a number is not allowed.
    pub fn plain(&mut self, name: &str) {
        if is_identifier(name) { self.out.push_str(name) } else { self.quoted(name) }
    }

    /// `a.b.c`
    pub fn dotted(&mut self, name: &str) {
        if name.split('.').all(is_identifier) { self.out.push_str(name) } else { self.quoted(name) }
    }
}

// ---- structure
impl Printer {
    pub fn model(&mut self, model: &Model) {
        let mut entries = vec![];
        let mut entry = |key: &str, write: &dyn Fn(&mut Self)| {
            let mut value = Self::new(self.options);
            write(&mut value);
            entries.push(format!("{key}: {}", value.out));
        };
        if let Some(version) = model.ir_version {
            entry("ir_version", &|p| p.put(version));
        }
        if !model.opsets.is_empty() {
            entry("opset_import", &|p| p.opsets(&model.opsets));
        }
        if let Some(version) = model.model_version {
            entry("model_version", &|p| p.put(version));
        }
        let texts = [
            ("producer_name", &model.producer_name),
            ("producer_version", &model.producer_version),
            ("domain", &model.domain),
            ("doc_string", &model.doc),
        ];
        for (key, text) in texts {
            if let Some(text) = text {
                entry(key, &|p| p.quoted(text));
            }
        }
        if !model.metadata.is_empty() {
            entry("metadata_props", &|p| {
                p.out.push('[');
                p.separated(", ", &model.metadata, |p, (key, value)| {
                    p.quoted(key.as_deref().unwrap_or_default());
                    p.out.push_str(": ");
                    p.quoted(value.as_deref().unwrap_or_default());
                });
                p.out.push(']');
            });
        }
        if !entries.is_empty() {
            self.header(&entries);
        }
        self.graph(&model.graph);
        for function in &model.functions {
            self.out.push('\n');
            self.function(function);
        }
    }

    fn header(&mut self, entries: &[String]) {
        self.put(format_args!("<\n   {}\n>\n", entries.join(",\n   ")));
    }

    fn opsets(&mut self, opsets: &[(String, i64)]) {
        self.out.push('[');
        self.separated(", ", opsets, |p, (domain, version)| {
            p.quoted(domain);
            p.put(format_args!(" : {version}"));
        });
        self.out.push(']');
    }

    fn function(&mut self, function: &Function) {
        let value = |write: &dyn Fn(&mut Self)| {
            let mut value = Self::new(self.options);
            write(&mut value);
            value.out
        };
        let mut entries = vec![format!("domain: {}", value(&|p| p.quoted(&function.domain)))];
        if let Some(overload) = &function.overload {
            entries.push(format!("overload: {}", value(&|p| p.quoted(overload))));
        }
        if !function.body.opsets.is_empty() {
            entries.push(format!("opset_import: {}", value(&|p| p.opsets(&function.body.opsets))));
        }
        if let Some(doc) = &function.body.doc {
            entries.push(format!("doc_string: {}", value(&|p| p.quoted(doc))));
        }
        self.header(&entries);
        self.plain(&function.name);
        self.out.push(' ');
        if !function.attributes.is_empty() || !function.defaults.is_empty() {
            self.out.push('<');
            let plain = function.attributes.iter().map(|name| (name, None));
            let with_default = function.defaults.iter().map(|(name, value)| (name, Some(value)));
            self.separated(", ", plain.chain(with_default), |p, (name, value)| match value {
                Some(value) => p.attribute(name, value),
                None => p.plain(name),
            });
            self.out.push_str("> ");
        }
        self.interface_and_nodes(&function.body, |p, id| p.name(&function.body.value(id).name));
    }

    pub fn graph(&mut self, graph: &Graph) {
        let name = graph.name.as_deref().unwrap_or_default();
        self.name(name);
        self.out.push(' ');
        self.interface_and_nodes(graph, |p, id| p.declaration(graph, id));
    }

    fn interface_and_nodes(&mut self, graph: &Graph, mut entry: impl FnMut(&mut Self, ValueId)) {
        let mut initializers = graph.initializers();
        let inline = inline_initializers(graph, &initializers);
        initializers.drain(..inline);
        self.out.push('(');
        self.separated(", ", graph.inputs(), |p, &id| {
            entry(p, id);
            if inline > 0 && graph.value(id).data.is_some() {
                p.out.push_str(" = ");
                p.constant(graph, id);
            }
        });
        self.out.push_str(") => (");
        self.separated(", ", graph.outputs(), |p, &id| entry(p, id));
        self.out.push_str(") ");
        let infos = value_infos(graph);
        if !initializers.is_empty() || !infos.is_empty() {
            self.out.push('<');
            self.indent += STEP;
            let both =
                initializers.into_iter().map(|id| (id, true)).chain(infos.into_iter().map(|id| (id, false)));
            self.separated(",", both, |p, (id, has_data)| {
                p.line();
                if has_data {
                    p.initializer(graph, id);
                } else {
                    p.declaration(graph, id);
                }
            });
            self.indent -= STEP;
            self.line();
            self.out.push_str("> ");
        }
        self.out.push('{');
        self.indent += STEP;
        for &id in graph.nodes().iter().chain(&graph.unordered_nodes()) {
            self.line();
            self.node(graph, id);
        }
        self.indent -= STEP;
        self.line();
        self.out.push('}');
    }

    /// The declared type and the name of a value.
    fn declaration(&mut self, graph: &Graph, id: ValueId) {
        let value = graph.value(id);
        if let Some(ty) =
            value.declared.as_ref().and_then(|d| d.ty.as_ref()).filter(|t| t.kind != TypeKind::Unset)
        {
            self.ty(ty);
            self.out.push(' ');
        }
        self.name(&value.name);
    }

    fn initializer(&mut self, graph: &Graph, id: ValueId) {
        let value = graph.value(id);
        match &value.data {
            Some(Constant::Dense(tensor)) => self.tensor_type(tensor),
            Some(Constant::Sparse(sparse)) => self.sparse_type(sparse),
            None => {}
        }
        self.out.push(' ');
        self.name(&value.name);
        self.out.push_str(" = ");
        self.constant(graph, id);
    }

    fn constant(&mut self, graph: &Graph, id: ValueId) {
        match &graph.value(id).data {
            Some(Constant::Dense(tensor)) => self.elements(tensor),
            Some(Constant::Sparse(sparse)) => self.sparse_elements(sparse),
            None => {}
        }
    }

    fn node(&mut self, graph: &Graph, id: NodeId) {
        let node = graph.node(id);
        if let Some(name) = &node.name {
            self.out.push('[');
            self.plain(name);
            self.out.push_str("] ");
        }
        let outputs = graph.outputs_of(id);
        let equals = if outputs.is_empty() { "= " } else { " = " };
        self.operands(graph, outputs);
        self.out.push_str(equals);
        if let Some(domain) = node.domain.as_ref().filter(|d| !d.is_empty()) {
            self.dotted(domain);
            self.out.push('.');
        }
        self.plain(&node.op);
        if let Some(overload) = node.overload.as_ref().filter(|o| !o.is_empty()) {
            self.out.push(':');
            self.plain(overload);
        }
        // Subgraphs are more readable after the inputs.
        let after = node.subgraphs().next().is_some();
        if !after {
            self.attributes(node);
        }
        self.out.push('(');
        self.operands(graph, graph.inputs_of(id));
        self.out.push(')');
        if after {
            self.out.push(' ');
            self.attributes(node);
        }
    }

    fn operands(&mut self, graph: &Graph, ids: Vec<Option<ValueId>>) {
        self.separated(", ", ids, |p, id| p.name(id.map_or("", |id| &graph.value(id).name)));
    }

    fn attributes(&mut self, node: &Node) {
        if !node.attributes.is_empty() {
            self.out.push('<');
            self.separated(", ", &node.attributes, |p, (name, value)| p.attribute(name, value));
            self.out.push('>');
        }
    }
}

/// The number of initializers that can be printed as values of inputs: all that are inputs, if they have the
/// declared types, and if parsing them in the order of the inputs preserves the order of the initializers.
fn inline_initializers(graph: &Graph, initializers: &[ValueId]) -> usize {
    let inputs: Vec<_> = graph.inputs().iter().copied().filter(|&v| graph.value(v).data.is_some()).collect();
    let typed = |&id: &ValueId| {
        let value = graph.value(id);
        let declared = value.declared.as_ref().and_then(|d| d.ty.as_ref());
        match (&value.data, declared.map(|ty| &ty.kind)) {
            (Some(Constant::Dense(t)), Some(TypeKind::Tensor { dtype: Some(dtype), shape: Some(axes) })) => {
                let sizes = t.shape().iter().map(|&d| AxisSize::Fixed(d as i64));
                *dtype == t.dtype() && axes.iter().map(|a| a.size.clone()).eq(sizes)
            }
            _ => false,
        }
    };
    if !graph.is_function && initializers.starts_with(&inputs) && inputs.iter().all(typed) {
        inputs.len()
    } else {
        0
    }
}

/// The values of `value_info`: those of the file, and new ones that are not declared elsewhere.
fn value_infos(graph: &Graph) -> Vec<ValueId> {
    let mut infos = vec![];
    for id in graph.values() {
        let value = graph.value(id);
        let elsewhere = value.is_input() || value.is_output() || value.is_captured();
        if let Some(declared) = value.declared.as_ref().filter(|d| d.order.is_some() || !elsewhere) {
            infos.push((declared.order.unwrap_or(u64::MAX), value.seq, id));
        }
    }
    infos.sort_unstable();
    infos.into_iter().map(|(.., id)| id).collect()
}
