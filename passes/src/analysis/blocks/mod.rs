//! Residual blocks: branches that are computed from a stream and added to it, and can be removed.
//!
//! | block | sum | without the block |
//! |---|---|---|
//! | identity (CNN blocks, attention, MLP) | `v = u + f(u)` | `v = u` |
//! | projection (CNN blocks that change the shape) | `v = s(u) + f(u)`, `s` linear | `v = s(u)` |
//! | parallel branches | `v = u + f(u) + g(u)` | `v = u + g(u)` |
//!
//! `u` dominates the body `f` and `v` post-dominates it. Other inputs of the body that do not depend on `u`
//! (attention masks, a KV cache) are allowed, and so are outputs of the model that only the body produces.

#[cfg(test)]
mod tests;

use super::{
    attention::attentions,
    flow::{Flow, read_by, readers},
};
use pare_graph::{Graph, NodeId, NodeRef, Patch, ValueId, ops::Trait};
use std::collections::{HashMap, HashSet};

/// The kind of a body, by its operators.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BlockKind {
    /// Convolutions.
    Conv,
    /// Attention.
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

/// A residual block. Ids are valid until the graph changes.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The name: the common scope of its nodes.
    pub name: String,
    /// The kind of the body.
    pub kind: BlockKind,
    /// The stream before the block: `u`.
    pub entry: ValueId,
    /// The output of the body, a term of the sum.
    pub branch: ValueId,
    /// The sum in which the branch is a term.
    pub add: NodeId,
    /// The sum without the branch: `u`, the shortcut, or the sum of the other terms.
    pub rest: ValueId,
    /// The stream after the block, with all terms added: `v`.
    pub exit: ValueId,
    /// `true` if the shortcut is the identity; otherwise it is a projection.
    pub identity: bool,
    /// The nodes of the body without users outside, in topological order.
    pub body: Vec<NodeId>,
    /// Outputs of the model that the body produces, such as keys and values of a cache.
    pub outputs: Vec<ValueId>,
}

impl Block {
    /// Returns the patch that removes the block.
    pub fn dropped(&self, graph: &Graph) -> Option<Patch> {
        let mut patch = Patch::anchored(self.add);
        patch.replace(graph.at(self.add).output().ok()?, self.rest);
        Some(patch)
    }
}

/// Returns all residual blocks of a graph, in the order of their sums.
pub fn blocks(graph: &Graph) -> Vec<Block> {
    let attention = attentions(graph).into_iter().flatten().map(|a| a.core).collect();
    let finder = Finder { graph, flow: Flow::of(graph), order: order(graph), attention };
    let mut blocks: Vec<_> = graph.nodes().iter().flat_map(|&id| finder.at(graph.at(id))).collect();
    set_names(graph, &mut blocks);
    blocks
}

/// Returns the indices of blocks that follow one another on one stream, perhaps with an activation or a norm
/// between them. Parallel branches are in one stage.
pub fn chains(graph: &Graph, blocks: &[Block]) -> Vec<Vec<Vec<usize>>> {
    let mut chains: Vec<Vec<Vec<usize>>> = vec![];
    for (i, block) in blocks.iter().enumerate() {
        let is_parallel = |chain: &&mut Vec<Vec<usize>>| {
            chain.last().is_some_and(|stage| stage.iter().any(|&j| blocks[j].exit == block.exit))
        };
        if let Some(stage) = chains.iter_mut().find(is_parallel).and_then(|chain| chain.last_mut()) {
            stage.push(i);
            continue;
        }
        let precedes = |chain: &&mut Vec<Vec<usize>>| {
            let exit = chain.last().and_then(|stage| stage.first()).map(|&j| blocks[j].exit);
            exit.is_some_and(|exit| leads(graph, exit, block.entry))
        };
        match chains.iter_mut().find(precedes) {
            Some(chain) => chain.push(vec![i]),
            None => chains.push(vec![vec![i]]),
        }
    }
    chains
}

/// Returns whether `entry` is `exit`, perhaps after an activation and a norm.
fn leads(graph: &Graph, exit: ValueId, entry: ValueId) -> bool {
    let mut at = entry;
    for _ in 0..4 {
        if at == exit {
            return true;
        }
        let belongs = |at: &NodeRef<'_>| {
            at.has(Trait::Activation)
                || at.is("LayerNormalization")
                || at.is("BatchNormalization")
                || at.is("Identity")
        };
        match graph.value_ref(at).producer() {
            Some(producer) if belongs(&producer) => match producer.input(0) {
                Ok(input) => at = input.id,
                Err(_) => return false,
            },
            _ => return false,
        }
    }
    false
}

/// Returns the layers of a graph: for a transformer, attention with the MLP after or beside it. Every other
/// block is a layer.
pub fn layers(graph: &Graph, blocks: &[Block]) -> Vec<Vec<usize>> {
    let mut layers: Vec<Vec<usize>> = vec![];
    for chain in chains(graph, blocks) {
        for stage in chain {
            let kinds = |members: &[usize]| members.iter().map(|&i| blocks[i].kind).collect::<Vec<_>>();
            let completes = layers.last().is_some_and(|last| {
                kinds(last) == [BlockKind::Attention]
                    && kinds(&stage) == [BlockKind::Mlp]
                    && leads(graph, blocks[last[0]].exit, blocks[stage[0]].entry)
            });
            match layers.last_mut().filter(|_| completes) {
                Some(last) => last.extend(stage),
                None => layers.push(stage),
            }
        }
    }
    layers
}

struct Finder<'g> {
    graph: &'g Graph,
    flow: Flow,
    /// The topological order of the nodes.
    order: HashMap<NodeId, usize>,
    /// The softmax, or the fused operator, of each attention.
    attention: HashSet<NodeId>,
}

fn order(graph: &Graph) -> HashMap<NodeId, usize> {
    graph.nodes().iter().enumerate().map(|(i, &n)| (n, i)).collect()
}

/// A term of a sum, and the node that adds it.
#[derive(Clone, Copy)]
struct Term {
    value: ValueId,
    add: NodeId,
}

/// The stream before and after a block.
#[derive(Clone, Copy)]
struct Span {
    entry: ValueId,
    exit: ValueId,
}

impl Finder<'_> {
    /// Returns the blocks that end in a sum.
    fn at(&self, at: NodeRef<'_>) -> Vec<Block> {
        if !at.is("Add") || self.is_inner(at) {
            return vec![];
        }
        let Ok(exit) = at.output() else { return vec![] };
        let mut terms = vec![];
        self.terms(at, &mut terms);
        if terms.len() < 2 {
            return vec![];
        }
        // The stream is the term that all others depend on.
        for stream in &terms {
            let after = self.dependents(stream.value, at.id);
            let others: Vec<_> = terms.iter().filter(|t| t.value != stream.value).collect();
            if others.len() + 1 == terms.len() && others.iter().all(|t| after.contains(&t.value)) {
                return self.branches(Span { entry: stream.value, exit: exit.id }, &others, &after);
            }
        }
        match terms[..] {
            [a, b] => self.projection(exit.id, a, b).into_iter().collect(),
            _ => vec![],
        }
    }

    /// Returns whether a sum is only used as a term of another sum.
    fn is_inner(&self, at: NodeRef<'_>) -> bool {
        let user = at.output().and_then(|o| o.sole_user());
        user.is_ok_and(|user| self.is_sum(user) && self.is_sum(at))
    }

    /// Returns whether a node adds two activations of one shape.
    fn is_sum(&self, at: NodeRef<'_>) -> bool {
        let Ok(output) = at.output() else { return false };
        let fact = &output.value().fact;
        at.is("Add")
            && at.inputs().into_iter().flatten().filter(|v| self.flow.flows(v.id)).count() == 2
            && at.inputs().into_iter().flatten().all(|v| v.value().fact == *fact)
    }

    fn terms(&self, at: NodeRef<'_>, terms: &mut Vec<Term>) {
        if !self.is_sum(at) {
            return;
        }
        for input in at.inputs().into_iter().flatten() {
            match input.producer().filter(|&producer| self.is_inner(producer)) {
                Some(inner) if terms.len() < 16 => self.terms(inner, terms),
                _ => terms.push(Term { value: input.id, add: at.id }),
            }
        }
    }

    /// Returns the values that depend on `from` and are computed before a node.
    fn dependents(&self, from: ValueId, until: NodeId) -> HashSet<ValueId> {
        let (mut dependents, mut queue) = (HashSet::from([from]), vec![from]);
        while let Some(value) = queue.pop() {
            for node in readers(self.graph, value).filter(|n| self.order[n] < self.order[&until]) {
                let outputs = self.graph.outputs_of(node).into_iter().flatten();
                queue.extend(outputs.filter(|&o| dependents.insert(o)));
            }
        }
        dependents
    }

    /// Returns the nodes on paths between two values, given the dependents of the first.
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

    /// Returns the blocks of a sum `v = u + f(u) + …`.
    fn branches(&self, span: Span, others: &[&Term], after: &HashSet<ValueId>) -> Vec<Block> {
        let bodies: Vec<_> = others.iter().map(|t| self.between(after, span.entry, t.value)).collect();
        let all: HashSet<_> = bodies.iter().flatten().copied().collect();
        let terms: Vec<_> = others.iter().map(|t| t.value).collect();
        if self.own(&all, &terms).len() != all.len() {
            // A value of a body has other users, so `v` does not post-dominate it.
            return vec![];
        }
        let block = |(term, body): (&&Term, &HashSet<NodeId>)| {
            self.block(span, **term, true, self.own(body, &[term.value]))
        };
        others.iter().zip(&bodies).filter_map(block).collect()
    }

    /// Returns the nodes whose outputs are used only by each other and as `terms` of the sum.
    fn own(&self, nodes: &HashSet<NodeId>, terms: &[ValueId]) -> HashSet<NodeId> {
        let mut order: Vec<_> = nodes.iter().copied().collect();
        order.sort_unstable_by_key(|n| std::cmp::Reverse(self.order[n]));
        let mut own = HashSet::new();
        for node in order {
            let outputs = self.graph.outputs_of(node).into_iter().flatten();
            let is_inner = |o: ValueId| {
                if terms.contains(&o) {
                    return self.graph.use_count(o) == 1;
                }
                readers(self.graph, o).all(|user| own.contains(&user) || self.only_exports(user))
            };
            if outputs.into_iter().all(is_inner) {
                own.insert(node);
            }
        }
        own
    }

    /// Returns whether a node only rearranges a value to an output of the model.
    fn only_exports(&self, node: NodeId) -> bool {
        let out = |o: ValueId| {
            let mut users = readers(self.graph, o).peekable();
            (self.graph.value(o).is_output() || users.peek().is_some()) && users.all(|n| self.only_exports(n))
        };
        let at = self.graph.at(node);
        (at.has(Trait::View) || at.is("Concat") || at.is("Cast"))
            && self.graph.outputs_of(node).into_iter().flatten().all(out)
    }

    /// Returns the outputs of the model that these nodes produce, or that are rearranged from their outputs.
    fn outputs(&self, body: &[NodeId]) -> Vec<ValueId> {
        let mut queue: Vec<_> = body.to_vec();
        let (mut seen, mut outputs) = (HashSet::new(), vec![]);
        while let Some(node) = queue.pop() {
            for o in self.graph.outputs_of(node).into_iter().flatten() {
                outputs.extend(self.graph.value(o).is_output().then_some(o));
                queue.extend(readers(self.graph, o).filter(|&n| self.only_exports(n) && seen.insert(n)));
            }
        }
        outputs.sort_unstable();
        outputs.dedup();
        outputs
    }

    fn block(&self, span: Span, term: Term, identity: bool, body: HashSet<NodeId>) -> Option<Block> {
        let (graph, Span { entry, exit }) = (self.graph, span);
        let mut body: Vec<_> = body.into_iter().collect();
        body.sort_unstable_by_key(|n| self.order[n]);
        let kind = self.kind(&body)?;
        let rest = graph.at(term.add).inputs().into_iter().flatten().find(|v| v.id != term.value)?.id;
        let (name, branch, add, outputs) = (String::new(), term.value, term.add, self.outputs(&body));
        Some(Block { name, kind, entry, branch, add, rest, exit, identity, body, outputs })
    }

    /// Returns the kind of a body; `None` if it has no weights.
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

    /// Returns whether a node multiplies by weights: by a tensor of rank 2 or more that does not depend on an
    /// input.
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

    /// Returns a block `v = s(u) + f(u)` with a linear `s` and more than one layer in `f`.
    fn projection(&self, exit: ValueId, a: Term, b: Term) -> Option<Block> {
        let entry = self.flow.dominator(exit)?;
        if !self.flow.passes(entry, exit) {
            return None;
        }
        let after = self.dependents(entry, self.graph.producer(exit)?.0);
        let (in_a, in_b) = (self.between(&after, entry, a.value), self.between(&after, entry, b.value));
        let weighted = |nodes: &HashSet<NodeId>| nodes.iter().filter(|&&n| self.is_weighted(n)).count();
        let is_shortcut =
            |nodes: &HashSet<NodeId>| weighted(nodes) <= 1 && nodes.iter().all(|&n| self.is_linear(n));
        let (main, body, shortcut) = match (is_shortcut(&in_a), is_shortcut(&in_b)) {
            (true, false) => (b, in_b, in_a),
            (false, true) => (a, in_a, in_b),
            _ => return None,
        };
        let disjoint = body.is_disjoint(&shortcut) && weighted(&body) >= 2;
        let own = self.own(&body, &[main.value]);
        if disjoint && own.len() == body.len() {
            self.block(Span { entry, exit }, main, false, own)
        } else {
            None
        }
    }

    /// Returns whether a node is a linear function, or a pool, of the only activation that it reads.
    fn is_linear(&self, node: NodeId) -> bool {
        let at = self.graph.at(node);
        (at.has(Trait::Linear) || at.is("MaxPool"))
            && at.inputs().into_iter().flatten().filter(|v| self.flow.flows(v.id)).count() == 1
    }
}

/// Names blocks after the common scope of their nodes, or else of their weights.
fn set_names(graph: &Graph, blocks: &mut [Block]) {
    let named = |block: &Block| {
        let nodes =
            block.body.iter().filter_map(|&n| graph.node(n).name.as_deref()).filter(|n| !n.is_empty());
        let weights = block.body.iter().flat_map(|&n| graph.inputs_of(n).into_iter().flatten());
        let weights = weights.filter(|&v| graph.value(v).data.is_some());
        let weights: Vec<_> = weights.map(|v| graph.value(v).name.as_str()).collect();
        common_scope(&nodes.collect::<Vec<_>>()).or_else(|| common_scope(&weights))
    };
    let names: Vec<_> = blocks.iter().map(named).collect();
    let with_kind: Vec<_> = blocks
        .iter()
        .zip(&names)
        .map(|(block, name)| Some(format!("{}/{}", name.as_ref()?, block.kind)))
        .collect();
    let is_unique =
        |all: &[Option<String>], name: &String| all.iter().flatten().filter(|n| *n == name).count() == 1;
    for (i, block) in blocks.iter_mut().enumerate() {
        let candidates = [(&names, names[i].clone()), (&with_kind, with_kind[i].clone())];
        let unique = candidates.into_iter().find_map(|(all, name)| name.filter(|n| is_unique(all, n)));
        block.name = unique.unwrap_or_else(|| graph.value(block.exit).name.clone());
    }
}

/// Returns the innermost scope that contains all names.
fn common_scope(names: &[&str]) -> Option<String> {
    let (first, rest) = names.split_first()?;
    let shared = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(x, y)| x == y).count();
    let length = rest.iter().map(|n| shared(first, n)).min().unwrap_or(first.len());
    let scope = first.get(..length)?;
    let end = scope.rfind(['/', '.'])?;
    let scope = scope[..end].trim_matches(['/', '.']);
    (!scope.is_empty()).then(|| scope.to_owned())
}
