//! Which groups may be pruned.

use super::Ask;
use crate::{
    analysis::groups::{Group, GroupKind, Groups},
    framework::{Context, PassError, glob::matches},
};
use pare_graph::Graph;

/// So many reasons are told when nothing can be pruned; of more their number.
const TOLD: usize = 3;

/// The groups of these kinds whose names are asked for; what stays whole is reported.
pub fn choose(
    ask: &Ask,
    graph: &Graph,
    groups: &Groups,
    cx: &mut Context<'_>,
) -> Result<Vec<usize>, PassError> {
    let nothing = |p: &&String| !groups.groups.iter().any(|g| matches(p, &g.name));
    if let Some(pattern) = ask.only.iter().chain(&ask.except).find(nothing) {
        let example = groups.groups.first().map_or("", |g| &g.name);
        return Err(PassError::refused_with(
            format!("no group has a name that matches `{pattern}`"),
            format!("groups are named after layers, such as `{example}`"),
        ));
    }
    let summed = groups.summed(graph);
    let (mut chosen, mut reasons) = (vec![], vec![]);
    for (id, group) in groups.groups.iter().enumerate() {
        let named = ask.only.is_empty() || ask.only.iter().any(|p| matches(p, &group.name));
        if !named || ask.except.iter().any(|p| matches(p, &group.name)) {
            continue;
        }
        let other = other_kind(ask, group);
        // That a group is of another kind is worth telling only where nothing else is.
        let told =
            other.is_none() || group.kind == GroupKind::Stream && ask.kinds.contains(&GroupKind::Channels);
        let why = match &group.pinned {
            Some(why) => Some(format!("`{}` stays whole: {why}", group.name)),
            None if !summed.contains(&id) => Some(format!("no operator adds up what `{}` holds", group.name)),
            None => other,
        };
        match why {
            None if group.width > 1 => chosen.push(id),
            None => {}
            Some(why) => {
                if told || group.pinned.is_some() {
                    cx.decline(&why);
                }
                reasons.push((!told, why));
            }
        }
    }
    if chosen.is_empty() {
        return Err(PassError::refused(format!(
            "`{}` has no group that can lose {}{}",
            graph.name.as_deref().unwrap_or("the graph"),
            units(ask),
            because(reasons)
        )));
    }
    Ok(chosen)
}

/// Why a group that could lose units is not of those that are asked for.
fn other_kind(ask: &Ask, group: &Group) -> Option<String> {
    if ask.kinds.contains(&group.kind) {
        return None;
    }
    let name = &group.name;
    Some(match group.kind {
        GroupKind::Stream if ask.kinds.contains(&GroupKind::Channels) => {
            format!("`{name}` is a stream that several layers write to (`streams=true` allows it)")
        }
        GroupKind::Stream => format!("`{name}` is a stream that several layers write to"),
        GroupKind::Channels => format!("`{name}` holds channels inside a block"),
        GroupKind::Heads => format!("`{name}` holds heads"),
        GroupKind::Hidden => format!("`{name}` holds hidden units"),
    })
}

/// What groups of these kinds lose.
pub fn units(ask: &Ask) -> &'static str {
    match ask.kinds {
        [GroupKind::Heads] => "heads",
        [GroupKind::Hidden] => "hidden units",
        _ => "channels",
    }
}

/// The first reasons, those of groups of the right kind before the others.
fn because(mut reasons: Vec<(bool, String)>) -> String {
    reasons.sort_by_key(|(other, _)| *other);
    let more = reasons.len().saturating_sub(TOLD);
    let mut told: Vec<_> = reasons.into_iter().take(TOLD).map(|(_, why)| why).collect();
    match more {
        0 => {}
        1 => told.push("and 1 group more".into()),
        n => told.push(format!("and {n} groups more")),
    }
    if told.is_empty() { String::new() } else { format!(": {}", told.join("; ")) }
}
