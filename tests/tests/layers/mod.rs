//! The architecture: imports between files and dependencies between crates run in one direction.

mod imports;

use crate::support::root;
use imports::{Crate, Import, cyclic};
use std::{collections::BTreeSet, fs};

/// The crates and the crates of the workspace that each may depend on.
const CRATES: &[(&str, &[&str])] = &[
    ("graph", &[]),
    ("passes", &["pare-graph"]),
    ("runtime", &["pare-graph"]),
    ("optimizer", &["pare-graph", "pare-passes", "pare-runtime"]),
    ("cli", &["pare-graph", "pare-passes", "pare-runtime", "onnx-pare"]),
    ("python", &["pare-graph", "pare-passes", "pare-runtime", "onnx-pare", "onnx-pare-cli"]),
];

/// The folder of a file: a folder of `transforms`, or else a top-level folder. The modules of `graph.rs` in
/// `graph/` belong to the root folder, as `graph.rs` does.
fn folder(file: &str, files: &BTreeSet<&str>) -> String {
    let parts: Vec<_> = file.split('/').collect();
    match parts[..] {
        ["transforms", folder, _, ..] => format!("transforms/{folder}"),
        [folder, _, ..] if !files.contains(format!("{folder}.rs").as_str()) => folder.into(),
        _ => String::new(),
    }
}

/// The imports between folders that are part of a cycle.
fn cycles(sources: &Crate) -> Vec<String> {
    let imports = sources.imports();
    let files = imports.iter().flat_map(|i| [i.from.as_str(), i.to.as_str()]).collect();
    cyclic(&imports, |file| folder(file, &files)).iter().map(ToString::to_string).collect()
}

/// The rule of `passes` that an import violates.
fn violated(import: &Import) -> Option<&'static str> {
    let (from, to) = (folder(&import.from, &BTreeSet::new()), folder(&import.to, &BTreeSet::new()));
    let transforms = |folder: &str| folder.starts_with("transforms/");
    match (from.as_str(), to.as_str()) {
        ("statistics", "framework" | "analysis") => Some("`statistics` imports nothing"),
        ("framework", "analysis") => Some("`framework` does not import `analysis`"),
        ("statistics" | "framework" | "analysis", to) if transforms(to) => {
            Some("only the list of passes imports `transforms`")
        }
        (from, to) if transforms(from) && transforms(to) && from != to => {
            Some("a folder of `transforms` does not import another")
        }
        _ => None,
    }
}

fn violations(passes: &Crate) -> Vec<String> {
    let imports = passes.imports();
    imports.iter().filter_map(|i| Some(format!("{i}: {}", violated(i)?))).collect()
}

#[test]
fn passes_import_in_one_direction() {
    let violations = violations(&Crate::read(&root().join("passes/src")));
    assert!(violations.is_empty(), "\n{}", violations.join("\n"));
}

#[test]
fn no_cycles_between_folders() {
    let mut found = String::new();
    for (name, _) in CRATES {
        let sources = root().join(name).join("src");
        if !sources.exists() {
            continue;
        }
        for import in cycles(&Crate::read(&sources)) {
            found += &format!("{name}: {import}\n");
        }
    }
    assert!(found.is_empty(), "imports in a cycle:\n{found}");
}

#[test]
fn crates_depend_in_one_direction() {
    for (name, allowed) in CRATES {
        let Ok(text) = fs::read_to_string(root().join(name).join("Cargo.toml")) else { continue };
        let manifest: toml::Table = text.parse().unwrap();
        let Some(dependencies) = manifest.get("dependencies").and_then(|d| d.as_table()) else { continue };
        for dependency in dependencies.keys().filter(|d| d.starts_with("pare-") || d.contains("onnx-pare")) {
            assert!(allowed.contains(&dependency.as_str()), "`{name}` must not depend on `{dependency}`");
        }
        let engines = dependencies.keys().filter(|d| *d == "ort" || d.starts_with("tract"));
        let engines: Vec<_> = engines.collect();
        assert!(*name == "runtime" || engines.is_empty(), "`{name}` must not depend on {engines:?}");
    }
}

#[test]
fn reports_forbidden_imports() {
    let passes = Crate::parse(&[
        ("lib.rs", "pub mod analysis; pub mod framework; pub mod transforms; pub use framework::Context;"),
        (
            "framework/mod.rs",
            "mod context; pub use context::Context; #[macro_export] macro_rules! pass { () => {} }",
        ),
        ("framework/context.rs", "pub struct Context; fn f() { crate::analysis::blocks::blocks() }"),
        ("analysis/mod.rs", "pub mod blocks; pub mod groups;"),
        ("analysis/blocks.rs", "use super::super::transforms::fold::{self, is_plain}; pub fn blocks() {}"),
        ("analysis/groups.rs", "use crate::{Context, pass, analysis::blocks}; // crate::transforms"),
        ("transforms/mod.rs", "pub mod fold; pub mod fuse;"),
        ("transforms/fold/mod.rs", "mod bn; pub use self::bn::*; pub fn is_plain() {}"),
        (
            "transforms/fold/bn.rs",
            "use crate::Context; pub fn fold_bn() { let _ = \"crate::transforms::fuse\"; }",
        ),
        (
            "transforms/fuse/mod.rs",
            "use crate::transforms::fold::fold_bn as bn;
            #[cfg(test)] use crate::transforms::{fold::is_plain};
            #[cfg(test)] mod tests { use crate::transforms::fold::is_plain; }
            #[cfg(test)] pub(crate) mod testing;",
        ),
        ("transforms/fuse/testing.rs", "use crate::transforms::fold::is_plain;"),
        ("transforms/fuse/gelu/tests.rs", "use crate::transforms::fold::is_plain;"),
    ]);
    assert_eq!(
        violations(&passes),
        [
            "analysis/blocks.rs imports `super::super::transforms::fold` of transforms/fold/mod.rs: only the list of \
             passes imports `transforms`",
            "analysis/blocks.rs imports `super::super::transforms::fold::is_plain` of transforms/fold/mod.rs: only the \
             list of passes imports `transforms`",
            "framework/context.rs imports `crate::analysis::blocks::blocks` of analysis/blocks.rs: `framework` does \
             not import `analysis`",
            "transforms/fuse/mod.rs imports `crate::transforms::fold::fold_bn` of transforms/fold/bn.rs: a folder of \
             `transforms` does not import another",
        ]
    );
    let macros = passes.imports();
    assert!(macros.iter().any(|i| i.path == "crate::pass" && i.to == "framework/mod.rs"));
}

#[test]
fn reports_cycles_between_folders() {
    let sources = Crate::parse(&[
        ("lib.rs", "mod a; mod b; mod c;"),
        ("a/mod.rs", "mod x; mod y; pub use x::X;"),
        ("a/x.rs", "use crate::b::B; use super::y::Y; pub struct X;"),
        ("a/y.rs", "use super::X; pub struct Y;"),
        ("b.rs", "use crate::c::C; pub struct B;"),
        ("c/mod.rs", "mod inner { pub fn f() -> crate::a::X {} } pub struct C;"),
    ]);
    assert_eq!(
        cycles(&sources),
        [
            "a/x.rs imports `crate::b::B` of b.rs",
            "b.rs imports `crate::c::C` of c/mod.rs",
            "c/mod.rs imports `crate::a::X` of a/x.rs",
        ]
    );
    // Cycles within a folder are allowed, and between `a.rs` and `a/`.
    let inside = Crate::parse(&[
        ("a/x.rs", "use super::{A, y::Y};"),
        ("a/y.rs", "use super::x::X;"),
        ("a.rs", "mod x; mod y; use x::X; struct A;"),
    ]);
    assert!(cycles(&inside).is_empty());
    assert_eq!(inside.imports().len(), 4);
}
