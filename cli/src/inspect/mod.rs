//! `pare inspect`: what a model consists of and what it costs.

mod blocks;
mod groups;
mod tokens;

use crate::{
    args::{Common, InspectArgs},
    failure::{Done, Failure},
    inputs,
    voice::{self, Voice},
};
use pare_graph::{Dim, Fact, Graph, Model, ops::Bindings, text};
use pare_runtime::{InputSpec, PortDim, PortKind, input_specs};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};

pub fn run(args: &InspectArgs, common: &Common, voice: &Voice) -> Result<Done, Failure> {
    let mut loaded = inputs::model(&args.model)?;
    let model = &mut loaded.model;
    model.check().map_err(|e| Failure { hint: e.hint(), ..Failure::new(e.to_string()) })?;
    model.infer().map_err(|e| Failure::new(e.to_string()))?;
    if args.text {
        voice.raw(text::print_model_with(model, text::PrintOptions { max_elements: Some(8) }).as_bytes());
        return Ok(Done::Well);
    }
    if args.blocks {
        blocks::run(args, common, voice, model);
        return Ok(Done::Well);
    }
    if let Some(pattern) = &args.groups {
        return groups::run(model, pattern, voice);
    }
    inputs::check_dims(&args.dims, model)?;
    let sizes = Bindings { sizes: args.dims.iter().cloned().collect(), ..Bindings::default() };
    if args.tokens {
        return Ok(tokens::run(&args.model, model, &sizes, voice));
    }
    let cost = model.cost(&sizes);
    let operators = operators(model);
    let outputs: Vec<_> = model.graph.outputs().iter().map(|&v| model.graph.value(v)).collect();
    let specs = input_specs(model);
    let layers = if args.layers { layers(model, &cost) } else { vec![] };
    voice.report(
        || {
            json!({
                "model": args.model, "bytes": loaded.bytes, "nodes": model.node_count(),
                "opsets": model.opsets.iter().map(|(d, v)| (d.clone(), json!(v))).collect::<serde_json::Map<_, _>>(),
                "parameters": cost.params, "weight_bytes": cost.bytes, "macs": cost.macs,
                "activation_peak": cost.activation_peak, "operators": operators,
                "inputs": specs.iter().map(|s| (&s.name, s.kind.to_string())).collect::<Vec<_>>(),
                "outputs": outputs.iter().map(|v| (&v.name, v.fact.to_string())).collect::<Vec<_>>(),
                "layers": layers,
            })
        },
        || {
            let opsets: Vec<_> = model.opsets.iter().map(|(d, v)| format!("{} {v}", domain(d))).collect();
            let mut rows = vec![
                vec!["file".into(), voice::bytes(loaded.bytes)],
                vec!["operator sets".into(), opsets.join(", ")],
                vec!["nodes".into(), model.node_count().to_string()],
                vec!["parameters".into(), voice::count(cost.params)],
                vec!["weights".into(), voice::bytes(cost.bytes)],
                vec!["multiply-accumulates".into(), voice::count(cost.macs)],
                vec!["activations at once".into(), voice::bytes(cost.activation_peak)],
            ];
            rows.extend(specs.iter().map(|s| vec![format!("input {}", s.name), s.kind.to_string()]));
            rows.extend(outputs.iter().map(|v| vec![format!("output {}", v.name), shortened(&v.fact)]));
            let mut out = voice::table(&["", ""], rows);
            out = out.trim_start_matches('\n').to_owned() + "\n";
            let mut counts: Vec<_> = operators.iter().collect();
            counts.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
            out += &voice::table(
                &["operator", "nodes"],
                counts.into_iter().map(|(op, n)| vec![op.clone(), n.to_string()]).collect(),
            );
            if args.layers {
                let row = |l: &Layer| {
                    let macs = l.macs.map_or_else(|| "?".into(), voice::count);
                    vec![l.name.clone(), l.output.clone(), voice::count(l.params), macs]
                };
                out.push('\n');
                out += &voice::table(&["node", "output", "parameters", "MACs"], layers.iter().map(row).collect());
            }
            let open = open_sizes(&specs, &sizes);
            if !open.is_empty() {
                out += &format!("counted with 1 for {}: `--dim NAME=SIZE` sets another size\n", open.join(", "));
            }
            if cost.unsized_values > 0 {
                out += "some sizes are not known: `--dim NAME=SIZE` sets symbolic ones\n";
            }
            out
        },
    );
    Ok(Done::Well)
}

/// A type in words, without the sizes that are long expressions of symbols.
fn shortened(fact: &Fact) -> String {
    const LONGEST: usize = 24;
    let (Some(dtype), Some(shape)) = (fact.dtype(), fact.shape()) else { return fact.to_string() };
    let size = |dim: &Dim| Some(dim.to_string()).filter(|s| s.len() <= LONGEST).unwrap_or_else(|| "…".into());
    format!("{dtype}[{}]", shape.iter().map(size).collect::<Vec<_>>().join(","))
}

/// Open dimensions of the inputs that have no size, without batches and other first ones: where they are 1, costs are not
/// those of any real run.
fn open_sizes(inputs: &[InputSpec], sizes: &Bindings) -> Vec<String> {
    let inner = |input: &InputSpec| match &input.kind {
        PortKind::Tensor { dims, .. } => dims.iter().flatten().skip(1).cloned().collect(),
        _ => vec![],
    };
    let symbol = |dim: PortDim| match dim {
        PortDim::Symbol(name) => Some(name).filter(|name| !sizes.sizes.contains_key(name)),
        _ => None,
    };
    let names: BTreeSet<String> = inputs.iter().flat_map(inner).filter_map(symbol).collect();
    names.into_iter().collect()
}

fn domain(domain: &str) -> &str {
    if domain.is_empty() { "ai.onnx" } else { domain }
}

#[derive(serde::Serialize)]
struct Layer {
    name: String,
    output: String,
    params: u64,
    macs: Option<u64>,
}

fn layers(model: &Model, cost: &pare_graph::ops::Cost) -> Vec<Layer> {
    let graph = &model.graph;
    let layer = |node: &pare_graph::ops::NodeCost| Layer {
        name: graph.describe(node.id),
        output: graph
            .outputs_of(node.id)
            .iter()
            .flatten()
            .next()
            .map_or_else(String::new, |&v| graph.value(v).fact.to_string()),
        params: node.params,
        macs: node.macs,
    };
    cost.nodes.iter().map(layer).collect()
}

/// Nodes by operator, subgraphs and functions included.
fn operators(model: &Model) -> BTreeMap<String, u64> {
    fn count(graph: &Graph, into: &mut BTreeMap<String, u64>) {
        for &id in graph.nodes().iter() {
            let node = graph.node(id);
            let name = if node.domain().is_empty() {
                node.op.clone()
            } else {
                format!("{}.{}", node.domain(), node.op)
            };
            *into.entry(name).or_default() += 1;
            node.subgraphs().for_each(|body| count(body, into));
        }
    }
    let mut counts = BTreeMap::new();
    count(&model.graph, &mut counts);
    model.functions.iter().for_each(|f| count(&f.body, &mut counts));
    counts
}
