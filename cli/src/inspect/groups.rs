//! `pare inspect --groups`: which channels can only be removed together, and why others stay.

use crate::{
    failure::{Done, Failure},
    voice::{self, Voice},
};
use pare_graph::{Graph, Model};
use pare_passes::{
    Pipeline, RunOptions,
    analysis::{
        groups::{Group, Groups, Member, Site, constant_of, cost::CostModel, matches},
        prepare::PREPARATION,
    },
    run as run_pipeline,
};
use serde_json::json;

/// All groups, or the members of those whose names match.
pub fn run(model: &mut Model, pattern: &str, voice: &Voice) -> Result<Done, Failure> {
    let failed = |e: &dyn std::fmt::Display| Failure::new(e.to_string());
    let pipeline: Pipeline = PREPARATION.parse().map_err(|e| failed(&e))?;
    run_pipeline(&pipeline, model, RunOptions::default(), &mut ()).map_err(|e| failed(&e))?;
    let graph = &model.graph;
    let groups = Groups::of(graph);
    let costs = Costs::of(graph, &groups);
    let wanted = groups.groups.iter().enumerate();
    let wanted: Vec<_> = wanted.filter(|(_, g)| pattern.is_empty() || matches(pattern, &g.name)).collect();
    if wanted.is_empty() && !pattern.is_empty() {
        let names =
            groups.groups.iter().take(3).map(|g| format!("`{}`", g.name)).collect::<Vec<_>>().join(", ");
        return Err(Failure::new(format!("no group has a name that matches `{pattern}`"))
            .hint(format!("groups are named after layers, such as {names}")));
    }
    let json = || {
        let group = |(id, g): &(usize, &Group)| {
            let (weights, macs) = costs.shares(*id);
            json!({
                "name": g.name, "kind": g.kind.name(), "width": g.width, "whole": g.pinned,
                "share_of_parameters": weights, "share_of_macs": macs,
                "members": g.members.iter().map(|m| {
                    let (tensor, user) = place(graph, m);
                    json!({"tensor": tensor, "of": user, "axis": m.axis, "per_unit": m.per_unit})
                }).collect::<Vec<_>>(),
            })
        };
        json!({ "groups": wanted.iter().map(group).collect::<Vec<_>>() })
    };
    let people = || {
        let mut out = String::new();
        let open: Vec<_> = wanted.iter().filter(|(_, g)| g.pinned.is_none()).collect();
        if !open.is_empty() {
            let row = |(id, g): &(usize, &Group)| {
                let (weights, macs) = costs.shares(*id);
                let percent = |share: f64| format!("{:.1} %", 100.0 * share);
                let (width, axes) = (g.width.to_string(), g.members.len().to_string());
                vec![g.name.clone(), g.kind.name().into(), width, axes, percent(weights), percent(macs)]
            };
            let head = ["group", "kind", "width", "axes", "of parameters", "of MACs"];
            out += &voice::table(&head, open.into_iter().map(row).collect());
        }
        let whole: Vec<_> = wanted.iter().filter(|(_, g)| g.pinned.is_some()).collect();
        if !whole.is_empty() {
            out += if out.is_empty() { "" } else { "\n" };
            let why = |g: &Group| g.pinned.clone().unwrap_or_default();
            let row = |(_, g): &(usize, &Group)| vec![g.name.clone(), g.width.to_string(), why(g)];
            out += &voice::table(&["stays whole", "width", "because"], whole.into_iter().map(row).collect());
        }
        if !pattern.is_empty() {
            for (_, group) in &wanted {
                let row = |m: &Member| {
                    let (tensor, user) = place(graph, m);
                    vec![tensor, user, m.axis.to_string(), m.per_unit.to_string()]
                };
                out += &format!("\n{}\n", group.name);
                let head = ["tensor", "of", "axis", "indices per unit"];
                out += &voice::table(&head, group.members.iter().map(row).collect());
            }
        }
        if out.is_empty() {
            out = "no channels are made by weights\n".into();
        }
        out
    };
    voice.report(json, people);
    Ok(Done::Well)
}

/// What a model costs, and what of it grows with each group.
struct Costs {
    params: CostModel,
    macs: CostModel,
}

impl Costs {
    fn of(graph: &Graph, groups: &Groups) -> Self {
        Self { params: CostModel::params(graph, groups), macs: CostModel::macs(graph, groups) }
    }

    /// Shares of the parameters and multiply-accumulates that grow with the group.
    fn shares(&self, group: usize) -> (f64, f64) {
        let share = |cost: &CostModel| {
            let all = cost.at(&|_| 0);
            if all > 0.0 { cost.of(group).at(&|_| 0) / all } else { 0.0 }
        };
        (share(&self.params), share(&self.macs))
    }
}

/// The tensor that a member lies in, and the node that makes it or (of a constant) reads it.
fn place(graph: &Graph, member: &Member) -> (String, String) {
    if let Some(constant) = constant_of(graph, member.site) {
        let user = match member.site {
            Site::Use(node, _) => Some(node),
            Site::Value(value) => graph.users(value).first().map(|u| u.0),
        };
        return (constant.name().to_owned(), user.map_or_else(String::new, |n| graph.describe(n)));
    }
    match member.site {
        Site::Value(value) => {
            let producer = graph.producer(value).map_or_else(String::new, |(node, _)| graph.describe(node));
            (graph.value(value).name.clone(), producer)
        }
        Site::Use(node, slot) => (format!("input {slot}"), graph.describe(node)),
    }
}
