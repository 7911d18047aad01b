use super::{
    DowngradeOpset, UpgradeOpset,
    table::{ADAPTERS, adapter},
};
use crate::framework::testing::{model_at, run_pass, same};
use pare_graph::{
    Model,
    ops::{newest_opset, operators, schema},
    text::{parse_model, print_graph},
};

/// The versions of an operator that change something in an operator set after the oldest that is converted.
fn changes(op: &str) -> impl Iterator<Item = i64> {
    let newest = newest_opset("").unwrap();
    (8..=newest).filter(move |&version| {
        let (old, new) = (schema("", op, version - 1), schema("", op, version));
        old.zip(new).is_some_and(|(old, new)| new.since == version && !new.extends(old))
    })
}

#[test]
fn every_version_that_changes_more_than_types_has_a_row() {
    let newest = newest_opset("").unwrap();
    let mut names: Vec<_> = (7..=newest).flat_map(|version| operators("", version)).collect();
    names.sort_unstable();
    names.dedup();
    let mut missing = vec![];
    for op in &names {
        missing.extend(changes(op).filter(|&v| adapter(op, v).is_none()).map(|v| format!("{op} {v}")));
    }
    assert_eq!(missing, [""; 0]);
}

#[test]
fn every_row_belongs_to_a_version() {
    for row in ADAPTERS {
        for op in row.ops {
            let rows = ADAPTERS.iter().filter(|a| a.since == row.since && a.ops.contains(op)).count();
            assert_eq!(rows, 1, "{op} {}", row.since);
            // `Upsample` is replaced where `Resize` has its coordinates.
            let known = changes(op).any(|version| version == row.since) || (*op, row.since) == ("Upsample", 11);
            assert!(known, "{op} {}", row.since);
        }
    }
}
