//! Residual blocks: what is computed beside a stream and added to it, so that the stream goes on without.
//!
//! | block | sum | without it |
//! |---|---|---|
//! | identity (CNN blocks, attention, MLP) | `v = u + f(u)` | `v = u` |
//! | projection (CNN blocks that change the shape) | `v = s(u) + f(u)`, `s` linear | `v = s(u)` |
//! | parallel branches | `v = u + f(u) + g(u)` | `v = u + g(u)` |
//!
//! `u` dominates the body `f` and `v` post-dominates it. What enters the body from elsewhere without depending on `u`
//! (attention masks, a KV cache) is no way around `u`; neither is an output of the model that only the body makes.

#[cfg(test)]
mod tests;

use super::{
    attention::attentions,
    flow::{Flow, read_by, readers},
};
use pare_graph::{Graph, NodeId, NodeRef, Patch, ValueId};
use std::collections::{HashMap, HashSet};

/// What a body consists of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockKind {
    /// Convolutions.
    Conv,
    /// Attention (see [`attentions`]).
    Attention,
    /// Matrix products.
    Mlp,
    /// A recurrence.
    Recurrent,
}

impl std::fmt::Display for BlockKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Conv => "convolution",
            Self::Attention => "attention",
            Self::Mlp => "mlp",
            Self::Recurrent => "recurrence",
        })
    }
}

/// A residual block. Ids hold until the graph changes; `branch` is known by its name afterwards.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// A name for people: what the names of its nodes have in common.
    pub name: String,
    /// What it computes.
    pub kind: BlockKind,
    /// The stream before: `u`.
    pub entry: ValueId,
    /// The body's result, which is added.
    pub branch: ValueId,
    /// The sum in which the branch is a term.
    pub add: NodeId,
    /// What the sum is without the branch: `u`, the shortcut, or the sum of the other terms.
    pub rest: ValueId,
    /// The stream behind, all terms added: `v`.
    pub exit: ValueId,
    /// Whether the stream goes through unchanged; else by a projection.
    pub identity: bool,
    /// The nodes of the body that nothing else needs, in order.
    pub body: Vec<NodeId>,
    /// Outputs of the model that come out of the body, such as keys and values to remember.
    pub outputs: Vec<ValueId>,
}

impl Block {
    /// The change that leaves the block out.
    pub fn dropped(&self, graph: &Graph) -> Option<Patch> {
        let mut patch = Patch::anchored(self.add);
        patch.replace(graph.at(self.add).output().ok()?, self.rest);
        Some(patch)
    }
}

/// All residual blocks of a graph, in the order of their sums.
pub fn blocks(graph: &Graph) -> Vec<Block> {
    let attention = attentions(graph).into_iter().flatten().map(|a| a.core).collect();
    let finder = Finder { graph, flow: Flow::of(graph), places: places(graph), attention };
    let mut blocks: Vec<_> = graph.nodes().iter().flat_map(|&id| finder.at(graph.at(id))).collect();
    name(graph, &mut blocks);
    blocks
}

/// Indices of blocks that follow one another on one stream: `b` reads what `a` leaves, perhaps through an activation
/// or a norm. Blocks beside one another (parallel branches) stand in one step.
pub fn chains(graph: &Graph, blocks: &[Block]) -> Vec<Vec<Vec<usize>>> {
    let mut chains: Vec<Vec<Vec<usize>>> = vec![];
    for (i, block) in blocks.iter().enumerate() {
        let beside = |chain: &&mut Vec<Vec<usize>>| {
            chain.last().is_some_and(|step| step.iter().any(|&j| blocks[j].exit == block.exit))
        };
        if let Some(step) = chains.iter_mut().find(beside).and_then(|chain| chain.last_mut()) {
            step.push(i);
            continue;
        }
        let before = |chain: &&mut Vec<Vec<usize>>| {
            let exit = chain.last().and_then(|step| step.first()).map(|&j| blocks[j].exit);
            exit.is_some_and(|exit| leads(graph, exit, block.entry))
        };
        match chains.iter_mut().find(before) {
            Some(chain) => chain.push(vec![i]),
            None => chains.push(vec![vec![i]]),
        }
    }
    chains
}

/// Operators between two blocks that belong to the stream.
const BETWEEN: [&str; 6] =
    ["Relu", "Clip", "LeakyRelu", "LayerNormalization", "BatchNormalization", "Identity"];

/// Whether the stream goes from `exit` to `entry` with no more than an activation and a norm in between.
fn leads(graph: &Graph, exit: ValueId, entry: ValueId) -> bool {
    let mut at = entry;
    for _ in 0..4 {
        if at == exit {
            return true;
        }
        match graph.value_ref(at).producer() {
            Some(producer) if BETWEEN.iter().any(|op| producer.is(op)) => match producer.input(0) {
                Ok(input) => at = input.id,
                Err(_) => return false,
            },
            _ => return false,
        }
    }
    false
}

/// The layers of a transformer: attention and the MLP behind or beside it. Every other block is a layer of its own.
pub fn layers(graph: &Graph, blocks: &[Block]) -> Vec<Vec<usize>> {
    let mut layers: Vec<Vec<usize>> = vec![];
    for chain in chains(graph, blocks) {
        for step in chain {
            let kinds = |members: &[usize]| members.iter().map(|&i| blocks[i].kind).collect::<Vec<_>>();
            let completes = layers.last().is_some_and(|last| {
                kinds(last) == [BlockKind::Attention]
                    && kinds(&step) == [BlockKind::Mlp]
                    && leads(graph, blocks[last[0]].exit, blocks[step[0]].entry)
            });
            match layers.last_mut().filter(|_| completes) {
                Some(last) => last.extend(step),
                None => layers.push(step),
            }
        }
    }
    layers
}

struct Finder<'g> {
    graph: &'g Graph,
    flow: Flow,
    places: HashMap<NodeId, usize>,
    /// The softmax, or the operator for all of it, of each attention.
    attention: HashSet<NodeId>,
}

fn places(graph: &Graph) -> HashMap<NodeId, usize> {
    graph.nodes().iter().enumerate().map(|(i, &n)| (n, i)).collect()
}

/// A term of a sum, with the node that adds it.
#[derive(Clone, Copy)]
struct Term {
    value: ValueId,
    add: NodeId,
}

impl Finder<'_> {
    /// The blocks that end in this sum.
    fn at(&self, at: NodeRef<'_>) -> Vec<Block> {
        if !at.is("Add") || self.inner(at) {
            return vec![];
        }
        let Ok(exit) = at.output() else { return vec![] };
        let mut terms = vec![];
        self.terms(at, &mut terms);
        if terms.len() < 2 {
            return vec![];
        }
        // The stream is the term that all others come from.
        for stream in &terms {
            let after = self.after(stream.value, at.id);
            let others: Vec<_> = terms.iter().filter(|t| t.value != stream.value).collect();
            if others.len() + 1 == terms.len() && others.iter().all(|t| after.contains(&t.value)) {
                return self.beside(stream.value, exit.id, &others, &after);
            }
        }
        match terms[..] {
            [a, b] => self.projection(exit.id, a, b).into_iter().collect(),
            _ => vec![],
        }
    }

    /// Whether a sum is a term of another one, and of nothing else.
    fn inner(&self, at: NodeRef<'_>) -> bool {
        let user = at.output().and_then(|o| o.sole_user());
        user.is_ok_and(|user| self.adds(user) && self.adds(at))
    }

    /// Whether a node adds two activations of one shape.
    fn adds(&self, at: NodeRef<'_>) -> bool {
        let Ok(output) = at.output() else { return false };
        let fact = &output.value().fact;
        at.is("Add")
            && at.inputs().into_iter().flatten().filter(|v| self.flow.flows(v.id)).count() == 2
            && at.inputs().into_iter().flatten().all(|v| v.value().fact == *fact)
    }

    fn terms(&self, at: NodeRef<'_>, terms: &mut Vec<Term>) {
        if !self.adds(at) {
            return;
        }
        for input in at.inputs().into_iter().flatten() {
            match input.producer().filter(|&producer| self.inner(producer)) {
                Some(inner) if terms.len() < 16 => self.terms(inner, terms),
                _ => terms.push(Term { value: input.id, add: at.id }),
            }
        }
    }

    /// Values that depend on `from`, up to the place of a node.
    fn after(&self, from: ValueId, until: NodeId) -> HashSet<ValueId> {
        let (mut after, mut queue) = (HashSet::from([from]), vec![from]);
        while let Some(value) = queue.pop() {
            for node in readers(self.graph, value).filter(|n| self.places[n] < self.places[&until]) {
                let outputs = self.graph.outputs_of(node).into_iter().flatten();
                queue.extend(outputs.filter(|&o| after.insert(o)));
            }
        }
        after
    }

    /// Nodes on the ways from a value, behind which `after` lies, to another.
    fn between(&self, after: &HashSet<ValueId>, from: ValueId, to: ValueId) -> HashSet<NodeId> {
        let (mut nodes, mut queue) = (HashSet::new(), vec![to]);
        while let Some(value) = queue.pop().filter(|&v| v != from) {
            let Some((node, _)) = self.graph.producer(value) else { continue };
            if nodes.insert(node) {
                let read = read_by(self.graph, node).into_iter();
                queue.extend(read.filter(|v| after.contains(v) && *v != from));
            }
        }
        nodes
    }

    /// Blocks `v = u + f(u) + …`.
    fn beside(
        &self,
        entry: ValueId,
        exit: ValueId,
        others: &[&Term],
        after: &HashSet<ValueId>,
    ) -> Vec<Block> {
        let bodies: Vec<_> = others.iter().map(|t| self.between(after, entry, t.value)).collect();
        let all: HashSet<_> = bodies.iter().flatten().copied().collect();
        let terms: Vec<_> = others.iter().map(|t| t.value).collect();
        if self.own(&all, &terms).len() != all.len() {
            // Something of it is used elsewhere: no post-dominator.
            return vec![];
        }
        let block = |(term, body): (&&Term, &HashSet<NodeId>)| {
            self.block(entry, exit, **term, true, self.own(body, &[term.value]))
        };
        others.iter().zip(&bodies).filter_map(block).collect()
    }

    /// Those of the nodes whose results flow nowhere but into each other and the sum.
    fn own(&self, nodes: &HashSet<NodeId>, terms: &[ValueId]) -> HashSet<NodeId> {
        let mut order: Vec<_> = nodes.iter().copied().collect();
        order.sort_unstable_by_key(|n| std::cmp::Reverse(self.places[n]));
        let mut own = HashSet::new();
        for node in order {
            let outputs = self.graph.outputs_of(node).into_iter().flatten();
            let stays = |o: ValueId| {
                if terms.contains(&o) {
                    return self.graph.use_count(o) == 1;
                }
                readers(self.graph, o).all(|user| own.contains(&user) || self.leads_out(user))
            };
            if outputs.into_iter().all(stays) {
                own.insert(node);
            }
        }
        own
    }

    /// Whether a node only arranges what then is an output of the model.
    fn leads_out(&self, node: NodeId) -> bool {
        const ARRANGE: [&str; 7] =
            ["Transpose", "Reshape", "Unsqueeze", "Squeeze", "Concat", "Identity", "Cast"];
        let out = |o: ValueId| {
            let mut users = readers(self.graph, o).peekable();
            (self.graph.value(o).is_output() || users.peek().is_some()) && users.all(|n| self.leads_out(n))
        };
        ARRANGE.iter().any(|op| self.graph.at(node).is(op))
            && self.graph.outputs_of(node).into_iter().flatten().all(out)
    }

    /// Outputs of the model among what these nodes make, and what is arranged from it.
    fn outputs(&self, body: &[NodeId]) -> Vec<ValueId> {
        let mut queue: Vec<_> = body.to_vec();
        let (mut seen, mut outputs) = (HashSet::new(), vec![]);
        while let Some(node) = queue.pop() {
            for o in self.graph.outputs_of(node).into_iter().flatten() {
                outputs.extend(self.graph.value(o).is_output().then_some(o));
                queue.extend(readers(self.graph, o).filter(|&n| self.leads_out(n) && seen.insert(n)));
            }
        }
        outputs.sort_unstable();
        outputs.dedup();
        outputs
    }

    fn block(
        &self,
        entry: ValueId,
        exit: ValueId,
        term: Term,
        identity: bool,
        body: HashSet<NodeId>,
    ) -> Option<Block> {
        let graph = self.graph;
        let mut body: Vec<_> = body.into_iter().collect();
        body.sort_unstable_by_key(|n| self.places[n]);
        let kind = self.kind(&body)?;
        let rest = graph.at(term.add).inputs().into_iter().flatten().find(|v| v.id != term.value)?.id;
        let (name, branch, add, outputs) = (String::new(), term.value, term.add, self.outputs(&body));
        Some(Block { name, kind, entry, branch, add, rest, exit, identity, body, outputs })
    }

    /// What a body computes; `None` if it has no weights.
    fn kind(&self, body: &[NodeId]) -> Option<BlockKind> {
        let at = |&n: &NodeId| self.graph.at(n);
        let has = |ops: &[&str]| body.iter().map(at).any(|at| ops.contains(&at.op()));
        if !body.iter().any(|&n| self.is_weighted(n)) {
            return None;
        }
        Some(if body.iter().any(|n| self.attention.contains(n)) {
            BlockKind::Attention
        } else if has(&["GRU", "LSTM", "RNN"]) {
            BlockKind::Recurrent
        } else if has(&["Conv", "ConvTranspose", "ConvInteger", "QLinearConv"]) {
            BlockKind::Conv
        } else {
            BlockKind::Mlp
        })
    }

    /// Whether a node multiplies by weights: by a matrix, or a larger tensor, that no input changes.
    fn is_weighted(&self, node: NodeId) -> bool {
        const WEIGHTED: [&str; 13] = [
            "Conv",
            "ConvTranspose",
            "ConvInteger",
            "QLinearConv",
            "MatMul",
            "Gemm",
            "MatMulInteger",
            "QLinearMatMul",
            "MatMulNBits",
            "GRU",
            "LSTM",
            "RNN",
            "Attention",
        ];
        let at = self.graph.at(node);
        WEIGHTED.contains(&at.op()) && {
            let constant = at.inputs().into_iter().flatten().filter(|v| !self.flow.flows(v.id));
            constant.into_iter().any(|v| v.rank().is_ok_and(|rank| rank >= 2))
        }
    }

    /// A block `v = s(u) + f(u)` with a linear `s` and more than one layer in `f`.
    fn projection(&self, exit: ValueId, a: Term, b: Term) -> Option<Block> {
        let entry = self.flow.dominator(exit)?;
        if !self.flow.passes(entry, exit) {
            return None;
        }
        let after = self.after(entry, self.graph.producer(exit)?.0);
        let (in_a, in_b) = (self.between(&after, entry, a.value), self.between(&after, entry, b.value));
        let weighted = |nodes: &HashSet<NodeId>| nodes.iter().filter(|&&n| self.is_weighted(n)).count();
        let short =
            |nodes: &HashSet<NodeId>| weighted(nodes) <= 1 && nodes.iter().all(|&n| self.is_linear(n));
        let (main, body, shortcut) = match (short(&in_a), short(&in_b)) {
            (true, false) => (b, in_b, in_a),
            (false, true) => (a, in_a, in_b),
            _ => return None,
        };
        let apart = body.is_disjoint(&shortcut) && weighted(&body) >= 2;
        let own = self.own(&body, &[main.value]);
        if apart && own.len() == body.len() { self.block(entry, exit, main, false, own) } else { None }
    }

    /// Whether a node is a linear function of the one activation it reads, or pools.
    fn is_linear(&self, node: NodeId) -> bool {
        const LINEAR: [&str; 17] = [
            "Conv",
            "BatchNormalization",
            "MatMul",
            "Gemm",
            "Add",
            "Sub",
            "Mul",
            "Div",
            "AveragePool",
            "MaxPool",
            "Pad",
            "Slice",
            "Concat",
            "Identity",
            "Reshape",
            "Transpose",
            "Squeeze",
        ];
        let at = self.graph.at(node);
        LINEAR.iter().any(|op| at.is(op))
            && at.inputs().into_iter().flatten().filter(|v| self.flow.flows(v.id)).count() == 1
    }
}

/// Name blocks after what their nodes, or else their weights, are called in common.
fn name(graph: &Graph, blocks: &mut [Block]) {
    let named = |block: &Block| {
        let nodes =
            block.body.iter().filter_map(|&n| graph.node(n).name.as_deref()).filter(|n| !n.is_empty());
        let weights = block.body.iter().flat_map(|&n| graph.inputs_of(n).into_iter().flatten());
        let weights = weights.filter(|&v| graph.value(v).data.is_some());
        let weights: Vec<_> = weights.map(|v| graph.value(v).name.as_str()).collect();
        common(&nodes.collect::<Vec<_>>()).or_else(|| common(&weights))
    };
    let names: Vec<_> = blocks.iter().map(named).collect();
    let kinds: Vec<_> = blocks
        .iter()
        .map(|b| b.kind)
        .zip(&names)
        .map(|(k, n)| Some(format!("{}/{k}", n.as_ref()?)))
        .collect();
    let of_kind = |i: usize| kinds[i].clone();
    for (i, block) in blocks.iter_mut().enumerate() {
        let unique = |n: &String| names.iter().flatten().filter(|m| *m == n).count() == 1;
        let name = names[i]
            .clone()
            .filter(unique)
            .or_else(|| of_kind(i).filter(|n| kinds.iter().flatten().filter(|m| *m == n).count() == 1));
        block.name = name.unwrap_or_else(|| graph.value(block.exit).name.clone());
    }
}

/// The scope that all names lie in.
fn common(names: &[&str]) -> Option<String> {
    let (first, rest) = names.split_first()?;
    let shared = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let length = rest.iter().map(|n| shared(first, n)).min().unwrap_or(first.len());
    let scope = first.get(..length)?;
    let end = scope.rfind(['/', '.'])?;
    let scope = scope[..end].trim_matches(['/', '.']);
    (!scope.is_empty()).then(|| scope.to_owned())
}
