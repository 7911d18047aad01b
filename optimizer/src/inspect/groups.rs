//! Groups of channels that can only be removed together.

use super::{Checked, InspectOptions};
use crate::{Error, Hint, Source};
use pare_graph::{Graph, ops::Bindings};
use pare_passes::{
    Pipeline, RunOptions,
    analysis::{
        groups::{Group, Groups, Member, Site, constant_of, cost::CostModel, matches},
        prepare::PREPARATION,
    },
    run,
};
use serde::Serialize;

/// The channel groups of a model.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ChannelGroups {
    /// The groups in topological order.
    pub groups: Vec<ChannelGroup>,
}

/// Channels that can only be removed together.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct ChannelGroup {
    /// The name of its first layer.
    pub name: String,
    /// Its kind.
    pub kind: &'static str,
    /// Number of units, each of which can be removed.
    pub width: usize,
    /// Why no unit can be removed, if so.
    #[serde(rename = "whole")]
    pub fixed: Option<String>,
    /// Share of the parameters that is proportional to the width.
    pub share_of_parameters: f64,
    /// Share of the multiply-accumulates that is proportional to the width.
    pub share_of_macs: f64,
    /// The axes that must be cut together.
    pub members: Vec<GroupMember>,
}

/// An axis of a tensor.
#[derive(Clone, Debug, Serialize)]
#[non_exhaustive]
pub struct GroupMember {
    /// The tensor.
    pub tensor: String,
    /// The node that produces it, or that uses it if it is constant.
    #[serde(rename = "of")]
    pub node: String,
    /// The axis.
    pub axis: usize,
    /// Indices of the axis per unit.
    pub per_unit: usize,
}

/// Returns the channel groups whose names match `pattern` (all with an empty one), after constants and batch
/// norms are folded.
///
/// # Errors
///
/// [`Error::Read`], and [`Error::Invalid`] for an invalid model, or if no group matches.
pub fn inspect_groups(
    source: impl Into<Source>,
    pattern: &str,
    options: &InspectOptions,
) -> Result<ChannelGroups, Error> {
    let mut model = Checked::load(source.into())?.model;
    let sizes = options.bindings(&model)?;
    let pipeline: Pipeline = PREPARATION.parse().map_err(|e| Error::pipeline(e, PREPARATION))?;
    run(&pipeline, &mut model, RunOptions::default(), &mut ()).map_err(Error::Run)?;
    let graph = &model.graph;
    let groups = Groups::of(graph);
    let costs = GroupCosts::of(graph, &groups, &sizes);
    let wanted = groups.groups.iter().enumerate();
    let wanted: Vec<_> = wanted.filter(|(_, g)| pattern.is_empty() || matches(pattern, &g.name)).collect();
    if wanted.is_empty() && !pattern.is_empty() {
        let names = groups.groups.iter().take(3).map(|g| g.name.clone()).collect();
        let message = format!("no group has a name that matches `{pattern}`");
        return Err(Error::invalid_with(message, Hint::Groups(names)));
    }
    let describe = |(id, group): (usize, &Group)| ChannelGroup {
        name: group.name.clone(),
        kind: group.kind.name(),
        width: group.width,
        fixed: group.pinned.clone(),
        share_of_parameters: GroupCosts::share(&costs.params, id),
        share_of_macs: GroupCosts::share(&costs.macs, id),
        members: group.members.iter().map(|m| describe_member(graph, m)).collect(),
    };
    Ok(ChannelGroups { groups: wanted.into_iter().map(describe).collect() })
}

/// The cost of a model as functions of the widths of its groups.
struct GroupCosts {
    params: CostModel,
    macs: CostModel,
}

impl GroupCosts {
    fn of(graph: &Graph, groups: &Groups, sizes: &Bindings) -> Self {
        Self { params: CostModel::params(graph, groups, sizes), macs: CostModel::macs(graph, groups, sizes) }
    }

    /// The share of the cost that is proportional to the width of the group.
    fn share(cost: &CostModel, group: usize) -> f64 {
        let all = cost.at(&|_| 0);
        if all > 0.0 { cost.of(group).at(&|_| 0) / all } else { 0.0 }
    }
}

fn describe_member(graph: &Graph, member: &Member) -> GroupMember {
    let describe = |node| graph.describe(node);
    let (tensor, node) = match (constant_of(graph, member.site), member.site) {
        (Some(constant), Site::Use(node, _)) => (constant.name().to_owned(), describe(node)),
        (Some(constant), Site::Value(value)) => {
            let user = graph.users(value).first().map(|u| describe(u.0));
            (constant.name().to_owned(), user.unwrap_or_default())
        }
        (None, Site::Use(node, slot)) => (format!("input {slot}"), describe(node)),
        (None, Site::Value(value)) => {
            let producer = graph.producer(value).map(|(node, _)| describe(node));
            (graph.value(value).name.clone(), producer.unwrap_or_default())
        }
    };
    GroupMember { tensor, node, axis: member.axis, per_unit: member.per_unit }
}
