//! `pare inspect`.

use crate::{
    args::{InspectArgs, source},
    failure::{Failure, Status},
    format::{bytes, count, share, table},
    terminal::Terminal,
};
use onnx_pare::{
    BlockShare, Blocks, ChannelGroup, ChannelGroups, Environment, Gradients, GroupMember, InspectOptions,
    Inspection, LayerCost, Quantization, QuantizedLayer, TokenBlock, Tokens, WeightGradient, inspect,
    inspect_blocks, inspect_gradients, inspect_groups, inspect_quantization, inspect_text, inspect_tokens,
};

pub fn run(args: &InspectArgs, environment: Environment, terminal: &Terminal) -> Result<Status, Failure> {
    let model = source(&args.model)?;
    let path = || Some(args.model.clone());
    let mut options =
        InspectOptions::default().dims(args.dims.clone()).layers(args.layers).environment(environment);
    options.samples.clone_from(&args.samples);
    if args.text {
        terminal.write(inspect_text(model)?.as_bytes());
    } else if args.blocks {
        let mut blocks = inspect_blocks(model, &options)?;
        blocks.model = path();
        terminal.report(&blocks, || blocks_text(&blocks));
    } else if args.quantization {
        let mut quantization = inspect_quantization(model, &options)?;
        quantization.model = path();
        terminal.report(&quantization, || quantization_text(&quantization));
    } else if let Some(pattern) = &args.groups {
        let groups = inspect_groups(model, pattern, &options)?;
        terminal.report(&groups, || groups_text(&groups, !pattern.is_empty()));
    } else if args.gradients {
        let mut gradients = inspect_gradients(model, &options)?;
        gradients.model = path();
        terminal.report(&gradients, || gradients_text(&gradients));
    } else if args.tokens {
        let mut tokens = inspect_tokens(model, &options)?;
        tokens.model = path();
        terminal.report(&tokens, || tokens_text(&tokens));
    } else {
        let mut inspection = inspect(model, &options)?;
        inspection.model = path();
        terminal.report(&inspection, || text(&inspection, args.layers));
    }
    Ok(Status::Success)
}

fn text(inspection: &Inspection, layers: bool) -> String {
    let domain = |domain: &str| if domain.is_empty() { "ai.onnx".to_owned() } else { domain.to_owned() };
    let opsets: Vec<_> = inspection.opsets.iter().map(|(d, v)| format!("{} {v}", domain(d))).collect();
    let mut rows = vec![
        vec!["file".into(), bytes(inspection.bytes)],
        vec!["operator sets".into(), opsets.join(", ")],
        vec!["nodes".into(), inspection.nodes.to_string()],
        vec!["parameters".into(), count(inspection.parameters)],
        vec!["weights".into(), bytes(inspection.weight_bytes)],
        vec!["multiply-accumulates".into(), count(inspection.macs)],
        vec!["peak of activations".into(), bytes(inspection.activation_peak)],
    ];
    rows.extend(inspection.inputs.iter().map(|(name, ty)| vec![format!("input {name}"), ty.clone()]));
    rows.extend(inspection.outputs.iter().map(|(name, ty)| vec![format!("output {name}"), abbreviated(ty)]));
    let mut text = table(&["", ""], rows).trim_start_matches('\n').to_owned() + "\n";
    let mut operators: Vec<_> = inspection.operators.iter().collect();
    operators.sort_by_key(|(_, n)| std::cmp::Reverse(**n));
    let operators = operators.into_iter().map(|(op, n)| vec![op.clone(), n.to_string()]);
    text += &table(&["operator", "nodes"], operators.collect());
    if layers {
        let row = |l: &LayerCost| {
            let macs = l.macs.map_or_else(|| "?".into(), count);
            vec![l.name.clone(), l.output.clone(), count(l.params), macs]
        };
        text.push('\n');
        text +=
            &table(&["node", "output", "parameters", "MACs"], inspection.layers.iter().map(row).collect());
    }
    if !inspection.open_dims.is_empty() {
        let names = inspection.open_dims.join(", ");
        text += &format!("counted with 1 for {names}: `--dim NAME=SIZE` sets another size\n");
    }
    if inspection.incomplete {
        text += "some sizes are unknown: `--dim NAME=SIZE` sets symbolic ones\n";
    }
    text
}

/// A type without the sizes that are long expressions of symbols.
fn abbreviated(ty: &str) -> String {
    const LONGEST: usize = 24;
    let Some((dtype, dims)) = ty.strip_suffix(']').and_then(|ty| ty.split_once('[')) else {
        return ty.to_owned();
    };
    let mut depth = 0;
    let separates = |c: char| {
        depth += i32::from("([".contains(c)) - i32::from(")]".contains(c));
        c == ',' && depth == 0
    };
    let dims = dims.split(separates).map(|dim| if dim.len() > LONGEST { "…" } else { dim });
    format!("{dtype}[{}]", dims.collect::<Vec<_>>().join(","))
}

fn blocks_text(blocks: &Blocks) -> String {
    if blocks.blocks.is_empty() {
        return "there are no residual blocks\n".to_owned();
    }
    let row = |block: &BlockShare| {
        vec![
            block.name.clone(),
            block.kind.clone(),
            block.skip.to_owned(),
            share(block.parameters),
            share(block.macs),
            block.time.map_or_else(|| "?".into(), share),
        ]
    };
    let head = ["block", "kind", "skip", "weights", "MACs", "time"];
    let table = table(&head, blocks.blocks.iter().map(row).collect());
    let note = match &blocks.timed_in {
        Ok(engine) => {
            format!("time: saved by a run without the block, measured in interleaved rounds, in {engine}")
        }
        Err(why) => format!("not timed: {why}"),
    };
    let (count, layers, cuts) = (blocks.blocks.len(), blocks.layers, blocks.cuts.len());
    format!(
        "{table}\n{count} blocks in {layers} layers; {cuts} values that all data passes through\n{note}\n"
    )
}

fn quantization_text(quantization: &Quantization) -> String {
    let row = |layer: &QuantizedLayer| {
        vec![
            layer.name.clone(),
            layer.operator.clone(),
            layer.weight_snr.map_or_else(String::new, |snr| format!("{snr:.1} dB")),
            format!("{:.1e}", layer.drift),
            share(layer.saved),
        ]
    };
    let head = ["layer", "operator", "weights", "drift", "time saved"];
    let table = table(&head, quantization.layers.iter().map(row).collect());
    let engine = &quantization.engine;
    format!(
        "{table}\ndrift: with this layer alone in eight bits\n\
         time saved: of the latency in float, beside the other layers in eight bits, in {engine}\n"
    )
}

fn groups_text(groups: &ChannelGroups, with_members: bool) -> String {
    let (fixed, open): (Vec<_>, Vec<_>) = groups.groups.iter().partition(|g| g.fixed.is_some());
    let mut parts = vec![];
    if !open.is_empty() {
        let row = |g: &ChannelGroup| {
            let (width, axes) = (g.width.to_string(), g.members.len().to_string());
            let (params, macs) = (share(g.share_of_parameters), share(g.share_of_macs));
            vec![g.name.clone(), g.kind.into(), width, axes, params, macs]
        };
        let head = ["group", "kind", "width", "axes", "of parameters", "of MACs"];
        parts.push(table(&head, open.into_iter().map(row).collect()));
    }
    if !fixed.is_empty() {
        let row =
            |g: &ChannelGroup| vec![g.name.clone(), g.width.to_string(), g.fixed.clone().unwrap_or_default()];
        parts.push(table(&["fixed group", "width", "reason"], fixed.into_iter().map(row).collect()));
    }
    for group in groups.groups.iter().filter(|_| with_members) {
        let row = |m: &GroupMember| {
            vec![m.tensor.clone(), m.node.clone(), m.axis.to_string(), m.per_unit.to_string()]
        };
        let head = ["tensor", "node", "axis", "indices per unit"];
        let members = table(&head, group.members.iter().map(row).collect());
        parts.push(format!("{}\n{members}", group.name));
    }
    if parts.is_empty() { "no channels are produced by weights\n".into() } else { parts.join("\n") }
}

fn tokens_text(tokens: &Tokens) -> String {
    let row = |(i, block): (usize, &TokenBlock)| {
        let (name, before, after) = (block.attention.clone(), block.before.clone(), block.after.clone());
        vec![i.to_string(), name, before, after, count(block.macs), share(block.share)]
    };
    let head = ["block", "attention", "tokens", "after", "MACs", "share"];
    let table = table(&head, tokens.blocks.iter().enumerate().map(row).collect());
    let verdict = match (tokens.protected, &tokens.refusal) {
        (Some(protected), _) => {
            let unused = "; no other is used after the last attention";
            let unused = if tokens.others_unused { unused } else { "" };
            format!("tokens can be merged, except {protected} at the front{unused}")
        }
        (None, refusal) => format!("tokens cannot be merged: {}", refusal.as_deref().unwrap_or_default()),
    };
    format!("{table}\n{verdict}\n")
}

fn gradients_text(gradients: &Gradients) -> String {
    let row = |weight: &WeightGradient| {
        let gradient = if weight.gradient { "yes" } else { "no" };
        vec![weight.name.clone(), weight.ty.clone(), gradient.into()]
    };
    let mut text = table(&["weight", "type", "gradient"], gradients.weights.iter().map(row).collect());
    let count = gradients.weights.iter().filter(|weight| weight.gradient).count();
    let (all, nodes) = (gradients.weights.len(), gradients.nodes);
    text += &format!("\n{count} of {all} weights get a gradient, computed by {nodes} nodes\n");
    gradients.stopped.iter().for_each(|reason| text += &format!("stopped: {reason}\n"));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn abbreviates_long_dimensions() {
        assert_eq!(abbreviated("float[N,10]"), "float[N,10]");
        assert_eq!(abbreviated("float[max(a,b),floor(a*b/c + a*b/d + 17),3]"), "float[max(a,b),…,3]");
        assert_eq!(abbreviated("seq(float[N])"), "seq(float[N])");
    }
}
