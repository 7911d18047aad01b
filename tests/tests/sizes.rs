//! The size of each fixture under each preset, as a committed table, so that review shows the effect of a
//! change.
//!
//! `PARE_BLESS=1` updates the table.

use crate::support::{after, bytes, root};
use pare_graph::{Model, onnx, ops::Bindings};
use pare_passes::registry::PRESETS;
use std::{fmt::Write as _, fs};

fn row(name: &str, preset: &str, model: &mut Model) -> String {
    model.infer().unwrap();
    let macs = model.cost(&Bindings::default()).macs;
    let (nodes, bytes) = (model.node_count(), bytes(model).unwrap().len());
    format!("{name:<12} {preset:<8} {nodes:>6} {bytes:>9} {macs:>11}\n")
}

#[test]
fn sizes_match_the_table() {
    let fixtures = fs::read_dir(root().join("fixtures")).unwrap().map(|e| e.unwrap().path());
    let mut fixtures: Vec<_> = fixtures.filter(|p| p.extension().is_some_and(|e| e == "onnx")).collect();
    fixtures.sort();
    let mut table =
        format!("{:<12} {:<8} {:>6} {:>9} {:>11}\n", "fixture", "preset", "nodes", "bytes", "MACs");
    for path in fixtures {
        let mut model = onnx::read(&path, &onnx::ReadOptions::default()).unwrap();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let _ = write!(table, "{}", row(name, "-", &mut model));
        for preset in PRESETS {
            let (mut changed, _) = after(&preset.name.parse().unwrap(), &model).unwrap();
            let _ = write!(table, "{}", row(name, preset.name, &mut changed));
        }
    }
    let path = root().join("tests/sizes.snap");
    if std::env::var_os("PARE_BLESS").is_some() {
        fs::write(&path, &table).unwrap();
    }
    let wanted = fs::read_to_string(&path).unwrap();
    assert_eq!(
        table, wanted,
        "sizes changed: if they should, set PARE_BLESS=1 and commit the table\n{table}"
    );
}
