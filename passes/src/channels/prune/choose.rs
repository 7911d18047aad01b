//! Which groups may be pruned.

use super::PruneChannels;
use crate::{
    Context, PassError,
    channels::{
        groups::{Groups, Kind},
        roles::Role,
    },
    prepare::matches,
};
use pare_graph::Graph;

/// The groups of these kinds whose names are asked for; what stays whole is reported.
pub fn choose(
    (pass, kinds): (&PruneChannels, &[Kind]),
    graph: &Graph,
    groups: &Groups,
    roles: &[Role],
    cx: &mut Context<'_>,
) -> Result<Vec<usize>, PassError> {
    let nothing = |p: &&String| !groups.groups.iter().any(|g| matches(p, &g.name));
    if let Some(pattern) = pass.only.iter().chain(&pass.except).find(nothing) {
        let example = groups.groups.first().map_or("", |g| &g.name);
        return Err(PassError::refused_with(
            format!("no group has a name that matches `{pattern}`"),
            format!("groups are named after layers, such as `{example}`"),
        ));
    }
    let mut chosen = vec![];
    for (id, group) in groups.groups.iter().enumerate() {
        let named = pass.only.is_empty() || pass.only.iter().any(|p| matches(p, &group.name));
        if !named || pass.except.iter().any(|p| matches(p, &group.name)) {
            continue;
        }
        if let Some(why) = &group.whole {
            cx.decline(format!("`{}` stays whole: {why}", group.name));
            continue;
        }
        let readers = roles.iter().filter(|r| r.reads(groups).contains(&id)).count();
        if readers == 0 || group.width < 2 {
            continue;
        }
        if !kinds.contains(&group.kind) {
            if group.kind == Kind::Stream && kinds.contains(&Kind::Channels) {
                cx.decline(format!(
                    "`{}` is a stream that several layers write to (`streams=true` allows it)",
                    group.name
                ));
            }
            continue;
        }
        chosen.push(id);
    }
    if chosen.is_empty() {
        return Err(PassError::refused(format!(
            "`{}` has no group that can lose channels",
            graph.name.as_deref().unwrap_or("the graph")
        )));
    }
    Ok(chosen)
}
