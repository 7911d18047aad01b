//! The imports between the files of a crate, read from its sources. Test code is skipped.

use proc_macro2::{Delimiter, TokenStream, TokenTree};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs,
    path::Path as FilePath,
};

/// The segments of a module path or of an import, `crate` excluded.
type Path = Vec<String>;

/// A file that imports an item of another file of the same crate.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    pub from: String,
    pub to: String,
    /// The path as written.
    pub path: String,
}

impl fmt::Display for Import {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} imports `{}` of {}", self.from, self.path, self.to)
    }
}

#[derive(Default)]
struct Module {
    file: String,
    uses: Vec<Use>,
    /// Paths outside of `use` items.
    mentions: Vec<Path>,
    items: BTreeSet<String>,
}

/// One leaf of a `use` item.
struct Use {
    path: Path,
    /// The name that it defines; `None` for `*`.
    name: Option<String>,
}

/// The modules of a crate.
#[derive(Default)]
pub struct Crate {
    modules: BTreeMap<Path, Module>,
    /// The files of exported macros.
    macros: BTreeMap<String, String>,
    tests: BTreeSet<Path>,
}

impl Crate {
    /// Reads the sources in a folder.
    pub fn read(folder: &FilePath) -> Self {
        let (mut files, mut folders) = (vec![], vec![folder.to_owned()]);
        while let Some(next) = folders.pop() {
            for entry in fs::read_dir(&next).unwrap_or_else(|e| panic!("`{}`: {e}", next.display())) {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let name = path.strip_prefix(folder).unwrap().to_str().unwrap().replace('\\', "/");
                    files.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        Self::parse(&files)
    }

    /// Parses sources, given as pairs of file and text.
    pub fn parse<S: AsRef<str>>(files: &[(S, S)]) -> Self {
        let mut parsed = Self::default();
        for (file, text) in files {
            let file = file.as_ref();
            let tokens: TokenStream = text.as_ref().parse().unwrap_or_else(|e| panic!("{file}: {e}"));
            parsed.module(tokens, module_of(file), file);
        }
        let tests = std::mem::take(&mut parsed.tests);
        parsed.modules.retain(|path, _| {
            !path.iter().any(|name| name == "tests") && !tests.iter().any(|test| path.starts_with(test))
        });
        parsed
    }

    fn module(&mut self, tokens: TokenStream, path: Path, file: &str) {
        self.modules.entry(path.clone()).or_default().file = file.into();
        self.walk(&tokens.into_iter().collect::<Vec<_>>(), &path, file);
    }

    fn walk(&mut self, tokens: &[TokenTree], module: &Path, file: &str) {
        let mut i = 0;
        while i < tokens.len() {
            let next = tokens.get(i + 1);
            if is_punct(&tokens[i], '#') && next.is_some_and(|t| compact(t) == "[cfg(test)]") {
                i = self.skip_item(tokens, i + 2, module);
                continue;
            }
            match &tokens[i] {
                TokenTree::Group(group) => {
                    self.walk(&group.stream().into_iter().collect::<Vec<_>>(), module, file);
                }
                TokenTree::Ident(ident) => {
                    let keyword = ident.to_string();
                    match (keyword.as_str(), next, tokens.get(i + 2)) {
                        ("mod", Some(TokenTree::Ident(name)), Some(TokenTree::Group(body))) => {
                            self.module(body.stream(), child(module, &name.to_string()), file);
                            i += 3;
                            continue;
                        }
                        ("use", ..) => {
                            let (mut leaves, end) = (vec![], end_of_use(tokens, i));
                            use_tree(&tokens[i + 1..end], &vec![], &mut leaves);
                            self.modules.entry(module.clone()).or_default().uses.extend(leaves);
                            i = end;
                            continue;
                        }
                        ("crate" | "super" | "self", Some(colon), _) if is_punct(colon, ':') => {
                            let (path, end) = plain_path(tokens, i);
                            self.modules.entry(module.clone()).or_default().mentions.push(path);
                            i = end;
                            continue;
                        }
                        ("macro_rules", _, Some(TokenTree::Ident(name))) => {
                            self.macros.insert(name.to_string(), file.into());
                        }
                        (
                            "fn" | "struct" | "enum" | "trait" | "type" | "const" | "static",
                            Some(TokenTree::Ident(name)),
                            _,
                        ) => {
                            self.modules.entry(module.clone()).or_default().items.insert(name.to_string());
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
            i += 1;
        }
    }

    /// Returns the index after the item at `i`, which is compiled for tests only. If it is a module in
    /// another file, that file is test code too.
    fn skip_item(&mut self, tokens: &[TokenTree], mut i: usize, module: &Path) -> usize {
        let is_use =
            tokens[i..].iter().map_while(|t| if let TokenTree::Ident(t) = t { Some(t) } else { None });
        if is_use.into_iter().any(|ident| ident == "use") {
            return end_of_use(tokens, i) + 1;
        }
        while i < tokens.len() {
            match &tokens[i] {
                TokenTree::Ident(keyword) if keyword == "mod" => {
                    if let Some(TokenTree::Ident(name)) = tokens.get(i + 1) {
                        self.tests.insert(child(module, &name.to_string()));
                    }
                }
                TokenTree::Group(group) if group.delimiter() == Delimiter::Brace => return i + 1,
                token if is_punct(token, ';') => return i + 1,
                _ => {}
            }
            i += 1;
        }
        i
    }

    /// The imports between files, without the re-exports of the root file.
    pub fn imports(&self) -> BTreeSet<Import> {
        let mut imports = BTreeSet::new();
        for (path, module) in self.modules.iter().filter(|(path, _)| !path.is_empty()) {
            let uses = module.uses.iter().map(|u| &u.path);
            for import in uses.chain(&module.mentions) {
                let target = self.absolute(import, path).and_then(|target| self.file_of(&target, 0));
                if let Some(to) = target.filter(|to| *to != module.file) {
                    let (from, path) = (module.file.clone(), import.join("::"));
                    imports.insert(Import { from, to, path });
                }
            }
        }
        imports
    }

    /// The path from the root of the crate; `None` for other crates.
    fn absolute(&self, path: &Path, module: &Path) -> Option<Path> {
        let (mut base, mut rest) = match path.first()?.as_str() {
            "crate" => (vec![], &path[1..]),
            "self" => (module.clone(), &path[1..]),
            "super" => (module.clone(), &path[..]),
            name => {
                self.modules.contains_key(&child(module, name)).then_some(())?;
                (module.clone(), &path[..])
            }
        };
        while rest.first().is_some_and(|s| s == "super") {
            base.pop();
            rest = &rest[1..];
        }
        base.extend_from_slice(rest);
        Some(base)
    }

    /// The file that defines the item at an absolute path, through re-exports; `None` for items of other
    /// crates.
    fn file_of(&self, path: &Path, depth: usize) -> Option<String> {
        const MAX_DEPTH: usize = 16;
        let modules = (0..=path.len()).rev().find(|&n| self.modules.contains_key(&path[..n]))?;
        let (base, module) = (path[..modules].to_vec(), &self.modules[&path[..modules]]);
        let Some(name) = path.get(modules).filter(|_| depth < MAX_DEPTH) else {
            return Some(module.file.clone());
        };
        if module.items.contains(name) {
            return Some(module.file.clone());
        }
        if let Some(import) = module.uses.iter().find(|u| u.name.as_ref() == Some(name)) {
            let mut target = self.absolute(&import.path, &base)?;
            target.extend_from_slice(&path[modules + 1..]);
            return self.file_of(&target, depth + 1);
        }
        let globs = module.uses.iter().filter(|u| u.name.is_none());
        let mut globs = globs.filter_map(|u| self.absolute(&u.path, &base));
        if let Some(glob) = globs.find(|glob| self.modules.get(glob).is_some_and(|m| m.defines(name))) {
            return self.file_of(&child(&glob, name), depth + 1);
        }
        Some(self.macros.get(name).filter(|_| modules == 0).unwrap_or(&module.file).clone())
    }
}

impl Module {
    fn defines(&self, name: &String) -> bool {
        self.items.contains(name) || self.uses.iter().any(|u| u.name.as_ref() == Some(name))
    }
}

/// The imports between folders that are part of a cycle. Between two folders that import each other, those of
/// the less frequent direction.
pub fn cyclic(imports: &BTreeSet<Import>, folder: impl Fn(&str) -> String) -> Vec<&Import> {
    let reaches = |from: &str, to: &str| {
        let (mut seen, mut queue) = (BTreeSet::from([from]), vec![from]);
        while let Some(file) = queue.pop() {
            let next = imports.iter().filter(|i| i.from == file).map(|i| i.to.as_str());
            queue.extend(next.filter(|next| seen.insert(next)));
        }
        seen.contains(to)
    };
    let folders = |i: &Import| (folder(&i.from), folder(&i.to));
    let across = imports.iter().filter(|i| folder(&i.from) != folder(&i.to));
    let mut cyclic: Vec<_> = across.filter(|i| reaches(&i.to, &i.from)).collect();
    let mut counts = BTreeMap::new();
    cyclic.iter().for_each(|i| *counts.entry(folders(i)).or_insert(0) += 1);
    cyclic.retain(|i| {
        let (from, to) = folders(i);
        counts.get(&(to.clone(), from.clone())).is_none_or(|opposite| counts[&(from, to)] <= *opposite)
    });
    cyclic
}

/// The module path of a file.
fn module_of(file: &str) -> Path {
    let mut path: Path = file.trim_end_matches(".rs").split('/').map(Into::into).collect();
    if matches!(path.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        path.pop();
    }
    path
}

fn child(module: &Path, name: &str) -> Path {
    module.iter().cloned().chain([name.to_owned()]).collect()
}

fn is_punct(token: &TokenTree, c: char) -> bool {
    matches!(token, TokenTree::Punct(p) if p.as_char() == c)
}

fn compact(token: &TokenTree) -> String {
    token.to_string().replace(' ', "")
}

fn end_of_use(tokens: &[TokenTree], start: usize) -> usize {
    tokens[start..].iter().position(|t| is_punct(t, ';')).map_or(tokens.len(), |n| start + n)
}

/// The longest path of plain segments from `start`, and the index after it.
fn plain_path(tokens: &[TokenTree], start: usize) -> (Path, usize) {
    let (mut path, mut i) = (vec![], start);
    while let Some(TokenTree::Ident(segment)) = tokens.get(i) {
        path.push(segment.to_string());
        i += 1;
        if !(tokens.get(i).is_some_and(|t| is_punct(t, ':'))
            && tokens.get(i + 1).is_some_and(|t| is_punct(t, ':')))
        {
            break;
        }
        i += 2;
    }
    (path, i)
}

/// Collects the leaves of the tree of a `use` item.
fn use_tree(tokens: &[TokenTree], prefix: &Path, leaves: &mut Vec<Use>) {
    for tree in tokens.split(|t| is_punct(t, ',')) {
        let mut path = prefix.clone();
        let mut name = None;
        let mut tokens = tree.iter();
        while let Some(token) = tokens.next() {
            match token {
                TokenTree::Ident(alias) if *alias == "as" => {
                    name = tokens.next().map(ToString::to_string);
                }
                TokenTree::Ident(segment) if *segment == "self" && !path.is_empty() => {}
                TokenTree::Ident(segment) => path.push(segment.to_string()),
                TokenTree::Group(group) => {
                    use_tree(&group.stream().into_iter().collect::<Vec<_>>(), &path, leaves);
                    path.clear();
                }
                star if is_punct(star, '*') => {
                    leaves.push(Use { path: std::mem::take(&mut path), name: None });
                }
                _ => {}
            }
        }
        if let Some(last) = path.last().cloned() {
            leaves.push(Use { path, name: Some(name.unwrap_or(last)) });
        }
    }
}
