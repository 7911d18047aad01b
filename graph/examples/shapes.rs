//! Prints the inferred facts of all values of a model as JSON: `shapes MODEL [symbol=size]...`.
//!
//! `size` is the shape with the given sizes of symbols. `--bare` ignores the declarations of values other
//! than inputs.

use pare_graph::{Dim, Fact, onnx};
use std::{collections::HashMap, error::Error, fmt::Write, time::Instant};

fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c < ' ' => drop(write!(json, "\\u{:04x}", c as u32)),
            c => json.push(c),
        }
    }
    json + "\""
}

fn list(dims: &[Dim], item: impl Fn(&Dim) -> String) -> String {
    format!("[{}]", dims.iter().map(item).collect::<Vec<_>>().join(","))
}

fn json(fact: &Fact, sizes: &HashMap<String, i64>) -> String {
    let number = |d: &Dim| d.eval(&|s| sizes.get(s).copied()).map_or("null".into(), |n| n.to_string());
    match fact {
        Fact::Unknown => "null".into(),
        Fact::Other => r#"{"kind":"other"}"#.into(),
        Fact::Sequence(item) => format!(r#"{{"kind":"sequence","item":{}}}"#, json(item, sizes)),
        Fact::Optional(item) => format!(r#"{{"kind":"optional","item":{}}}"#, json(item, sizes)),
        Fact::Tensor(t) => {
            let or_null = |text: Option<String>| text.unwrap_or("null".into());
            let dims =
                |d: &Option<Vec<Dim>>, f: &dyn Fn(&Dim) -> String| or_null(d.as_ref().map(|d| list(d, f)));
            let text = |d: &Dim| quoted(&d.to_string());
            format!(
                r#"{{"dtype":{},"shape":{},"size":{},"content":{},"elements":{}}}"#,
                or_null(t.dtype.map(|d| quoted(d.name()))),
                dims(&t.shape, &text),
                dims(&t.shape, &number),
                dims(&t.content, &text),
                dims(&t.content, &number),
            )
        }
    }
}

#[allow(clippy::print_stdout, clippy::print_stderr)]
fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: shapes MODEL [symbol=size]...")?;
    let size = |a: String| a.rsplit_once('=').and_then(|(s, n)| Some((s.to_owned(), n.parse().ok()?)));
    let (bare, sizes): (Vec<_>, Vec<_>) = args.partition(|a| a == "--bare");
    let sizes: HashMap<String, i64> = sizes.into_iter().filter_map(size).collect();
    let mut model = onnx::read(&path, &onnx::ReadOptions::default())?;
    if !bare.is_empty() {
        let computed: Vec<_> = model.graph.values().filter(|&v| model.graph.producer(v).is_some()).collect();
        computed.into_iter().for_each(|v| model.graph.set_declared(v, None));
    }
    let start = Instant::now();
    model.infer()?;
    eprintln!("{} nodes in {:?}", model.graph.node_count(), start.elapsed());
    let mut values: Vec<_> = model.graph.values().map(|v| model.graph.value(v)).collect();
    values.sort_by_key(|v| v.name.as_str());
    let items = values.iter().map(|v| format!("{}:{}", quoted(&v.name), json(&v.fact, &sizes)));
    println!("{{{}}}", items.collect::<Vec<_>>().join(",\n"));
    Ok(())
}
