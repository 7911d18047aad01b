//! Selection of the groups to prune.

use super::PruneOptions;
use crate::{
    analysis::groups::{Group, GroupKind, Groups},
    framework::{Context, PassError, glob::matches},
};
use pare_graph::Graph;

/// Number of reasons given when no group can be pruned; the others are counted.
const REASONS: usize = 3;

/// The reason why a group is not pruned.
struct Exclusion {
    /// True if the only reason is that the pass prunes other kinds of groups.
    other_kind: bool,
    reason: String,
}

/// Returns the groups of the pruned kinds whose names are selected, and reports why others are skipped.
pub fn select_groups(
    options: &PruneOptions,
    graph: &Graph,
    groups: &Groups,
    cx: &mut Context<'_>,
) -> Result<Vec<usize>, PassError> {
    let unmatched = |p: &&String| !groups.groups.iter().any(|g| matches(p, &g.name));
    if let Some(pattern) = options.only.iter().chain(&options.except).find(unmatched) {
        let example = groups.groups.first().map_or("", |g| &g.name);
        return Err(PassError::refused_with(
            format!("no group has a name that matches `{pattern}`"),
            format!("groups are named after layers, such as `{example}`"),
        ));
    }
    let summed = groups.summed(graph);
    let (mut selected, mut exclusions) = (vec![], vec![]);
    for (id, group) in groups.groups.iter().enumerate() {
        let included = options.only.is_empty() || options.only.iter().any(|p| matches(p, &group.name));
        if !included || options.except.iter().any(|p| matches(p, &group.name)) {
            continue;
        }
        let kind = excluded_kind(options, group);
        let other_kind = kind.is_some()
            && !(group.kind == GroupKind::Stream && options.kinds.contains(&GroupKind::Channels));
        let reason = match &group.pinned {
            Some(why) => Some(format!("`{}` is skipped: {why}", group.name)),
            None if !summed.contains(&id) => Some(format!("no operator sums over `{}`", group.name)),
            None => kind,
        };
        match reason {
            None if group.width > 1 => selected.push(id),
            None => {}
            Some(reason) => {
                // Another kind of group is worth a report only where it cannot be pruned at all.
                if !other_kind || group.pinned.is_some() {
                    cx.decline(&reason);
                }
                exclusions.push(Exclusion { other_kind, reason });
            }
        }
    }
    if selected.is_empty() {
        return Err(PassError::refused(format!(
            "`{}` has no group that can lose {}{}",
            graph.name.as_deref().unwrap_or("the graph"),
            units(options),
            because(exclusions)
        )));
    }
    Ok(selected)
}

/// Returns why a group is not of the pruned kinds; `None` if it is.
fn excluded_kind(options: &PruneOptions, group: &Group) -> Option<String> {
    if options.kinds.contains(&group.kind) {
        return None;
    }
    let name = &group.name;
    Some(match group.kind {
        GroupKind::Stream if options.kinds.contains(&GroupKind::Channels) => {
            format!("`{name}` is a residual stream, which only `streams=true` prunes")
        }
        GroupKind::Stream => format!("`{name}` is a residual stream"),
        GroupKind::Channels => format!("`{name}` is a group of channels"),
        GroupKind::Heads => format!("`{name}` is a group of heads"),
        GroupKind::Hidden => format!("`{name}` is a group of hidden units"),
    })
}

/// Returns the name of the units that the pass removes.
fn units(options: &PruneOptions) -> &'static str {
    match options.kinds {
        [GroupKind::Heads] => "heads",
        [GroupKind::Hidden] => "hidden units",
        _ => "channels",
    }
}

/// Returns the first reasons as the end of a sentence; groups of the pruned kinds come first.
fn because(mut exclusions: Vec<Exclusion>) -> String {
    exclusions.sort_by_key(|e| e.other_kind);
    let more = exclusions.len().saturating_sub(REASONS);
    let mut reasons: Vec<_> = exclusions.into_iter().take(REASONS).map(|e| e.reason).collect();
    match more {
        0 => {}
        1 => reasons.push("and 1 more group".into()),
        n => reasons.push(format!("and {n} more groups")),
    }
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}
