//! Selection of the groups to prune.

use super::PruneOptions;
use crate::{
    analysis::groups::{Group, GroupKind, Groups, Keep, cut::cut},
    framework::{Context, PassError, glob::matches},
};
use pare_graph::{Graph, Model};
use std::fmt::Display;

/// Number of reasons given when no group can be pruned; the others are counted.
const REASONS: usize = 3;

/// The reason why a group is not pruned.
struct Exclusion {
    /// True if the only reason is that the pass prunes other kinds of groups.
    other_kind: bool,
    /// True if the reason is reported when other groups are pruned.
    reported: bool,
    reason: String,
}

/// The groups to prune, and the reasons why others are not.
pub struct Selection {
    pub groups: Vec<usize>,
    exclusions: Vec<Exclusion>,
}

impl Selection {
    /// Returns the groups of the pruned kinds whose names are selected and of which a unit can be removed.
    pub fn new(options: &PruneOptions, graph: &Graph, groups: &Groups) -> Self {
        let summed = groups.summed(graph);
        let mut selection = Self { groups: vec![], exclusions: vec![] };
        for (id, group) in groups.groups.iter().enumerate() {
            let included = options.only.is_empty() || options.only.iter().any(|p| matches(p, &group.name));
            if !included || options.except.iter().any(|p| matches(p, &group.name)) {
                continue;
            }
            let kind = excluded_kind(options, group);
            let other_kind = kind.is_some()
                && !(group.kind == GroupKind::Stream && options.kinds.contains(&GroupKind::Channels));
            let reason = match &group.pinned {
                Some(why) => Some(skipped(group, why)),
                None if !summed.contains(&id) => Some(format!("no operator sums over `{}`", group.name)),
                None => kind,
            };
            match reason {
                None if group.width > 1 => selection.groups.push(id),
                None => {}
                Some(reason) => {
                    // Another kind of group is worth a report only where it cannot be pruned at all.
                    let reported = !other_kind || group.pinned.is_some();
                    selection.exclusions.push(Exclusion { other_kind, reported, reason });
                }
            }
        }
        selection.exclude_uncut(graph, groups);
        selection
    }

    /// Excludes groups of which a unit cannot be removed together with one of each group before.
    fn exclude_uncut(&mut self, graph: &Graph, groups: &Groups) {
        let without_first = |&group: &usize| {
            let mut units = vec![true; groups.groups[group].width];
            units[0] = false;
            (group, units)
        };
        if cut(graph, groups, &self.groups.iter().map(without_first).collect()).is_ok() {
            return;
        }
        let mut keep = Keep::new();
        self.groups.retain(|group| {
            keep.extend([without_first(group)]);
            let Err(why) = cut(graph, groups, &keep) else { return true };
            keep.remove(group);
            let reason = skipped(&groups.groups[*group], &why);
            self.exclusions.push(Exclusion { other_kind: false, reported: true, reason });
            false
        });
    }

    /// Reports the reasons.
    ///
    /// # Errors
    /// If no group can be pruned.
    pub fn report(
        &self,
        options: &PruneOptions,
        model: &Model,
        cx: &mut Context<'_>,
    ) -> Result<(), PassError> {
        self.exclusions.iter().filter(|e| e.reported).for_each(|e| cx.decline(&e.reason));
        if !self.groups.is_empty() {
            return Ok(());
        }
        let why = format!(
            "`{}` has no group that can lose {}{}",
            model.graph.name.as_deref().unwrap_or("the graph"),
            units(options),
            because(&self.exclusions)
        );
        let hint = (!model.functions.is_empty()).then(|| IN_FUNCTIONS.into());
        Err(PassError::Refused { why, hint })
    }
}

/// The remedy where channels cannot be traced into functions.
pub const IN_FUNCTIONS: &str = "channels are traced through functions after `inline-functions`";

/// Checks that each pattern matches the name of a group.
pub fn check_patterns(options: &PruneOptions, groups: &Groups) -> Result<(), PassError> {
    let unmatched = |p: &&String| !groups.groups.iter().any(|g| matches(p, &g.name));
    let Some(pattern) = options.only.iter().chain(&options.except).find(unmatched) else { return Ok(()) };
    let example = groups.groups.first().map_or("", |g| &g.name);
    Err(PassError::refused_with(
        format!("no group has a name that matches `{pattern}`"),
        format!("groups are named after layers, such as `{example}`"),
    ))
}

/// Returns the sentence about a group that is not pruned.
fn skipped(group: &Group, why: &impl Display) -> String {
    format!("`{}` is skipped: {why}", group.name)
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
fn because(exclusions: &[Exclusion]) -> String {
    let mut exclusions: Vec<_> = exclusions.iter().collect();
    exclusions.sort_by_key(|e| e.other_kind);
    let more = exclusions.len().saturating_sub(REASONS);
    let mut reasons: Vec<_> = exclusions.into_iter().take(REASONS).map(|e| e.reason.clone()).collect();
    match more {
        0 => {}
        1 => reasons.push("and 1 more group".into()),
        n => reasons.push(format!("and {n} more groups")),
    }
    if reasons.is_empty() { String::new() } else { format!(": {}", reasons.join("; ")) }
}
