//! The calls between the functions of a model.

use crate::{Function, Graph, Model, NodeRef, standard_domain};
use std::collections::{HashMap, HashSet};

/// The reason why the functions of a model are invalid.
pub(crate) enum FunctionsError {
    /// Two functions have this name.
    Duplicate(String),
    /// The functions call each other, the first also being the last.
    Recursion(Vec<String>),
}

/// The functions of a model by domain, name and overload.
#[derive(Default)]
pub(crate) struct Functions<'m> {
    list: &'m [Function],
    indices: HashMap<(&'m str, &'m str, &'m str), usize>,
}

impl<'m> Functions<'m> {
    /// Rejects duplicate names, and recursion, which ONNX does not support.
    pub(crate) fn of(model: &'m Model) -> Result<Self, FunctionsError> {
        let mut functions = Self { list: &model.functions, indices: HashMap::new() };
        for (i, f) in model.functions.iter().enumerate() {
            let key = (standard_domain(&f.domain), f.name.as_str(), f.overload.as_deref().unwrap_or(""));
            if functions.indices.insert(key, i).is_some() {
                return Err(FunctionsError::Duplicate(f.name.clone()));
            }
        }
        functions.reject_recursion()?;
        Ok(functions)
    }

    /// The index of the function that a node calls.
    pub(crate) fn index(&self, at: NodeRef<'_>) -> Option<usize> {
        if self.list.is_empty() {
            return None;
        }
        let node = at.node();
        self.indices.get(&(node.domain(), node.op.as_str(), node.overload.as_deref().unwrap_or(""))).copied()
    }

    /// The function with this index.
    pub(crate) fn get(&self, index: usize) -> &'m Function {
        &self.list[index]
    }

    /// All functions.
    pub(crate) fn all(&self) -> &'m [Function] {
        self.list
    }

    /// The functions that nodes of a graph and its subgraphs call directly.
    fn calls(&self, graph: &Graph) -> HashSet<usize> {
        let (mut found, mut graphs) = (HashSet::new(), vec![graph]);
        while let Some(graph) = graphs.pop() {
            for &id in graph.nodes().iter() {
                found.extend(self.index(graph.at(id)));
                graphs.extend(graph.node(id).subgraphs());
            }
        }
        found
    }

    /// The functions that a graph calls directly or indirectly.
    pub(crate) fn called_from(&self, graph: &Graph) -> HashSet<usize> {
        let mut found = self.calls(graph);
        let mut queue: Vec<_> = found.iter().copied().collect();
        while let Some(i) = queue.pop() {
            queue.extend(self.calls(&self.list[i].body).into_iter().filter(|&callee| found.insert(callee)));
        }
        found
    }

    /// Removes functions that call no remaining function; the others are recursive.
    fn reject_recursion(&self) -> Result<(), FunctionsError> {
        let calls: Vec<_> = self.list.iter().map(|f| self.calls(&f.body)).collect();
        let mut callers = vec![vec![]; calls.len()];
        for (caller, callees) in calls.iter().enumerate() {
            callees.iter().for_each(|&callee| callers[callee].push(caller));
        }
        let mut open: Vec<_> = calls.iter().map(HashSet::len).collect();
        let mut done: Vec<_> = (0..calls.len()).filter(|&i| open[i] == 0).collect();
        while let Some(callee) = done.pop() {
            for &caller in &callers[callee] {
                open[caller] -= 1;
                done.extend((open[caller] == 0).then_some(caller));
            }
        }
        let Some(start) = open.iter().position(|&n| n > 0) else { return Ok(()) };
        let mut path =
            find_cycle(start, |i| calls[i].iter().copied().filter(|&callee| open[callee] > 0).min());
        path.extend(path.first().copied());
        Err(FunctionsError::Recursion(path.into_iter().map(|i| self.list[i].name.clone()).collect()))
    }
}

/// The cycle that is reached from `start` along `next`.
pub(crate) fn find_cycle<T: Copy + Eq + std::hash::Hash>(start: T, next: impl Fn(T) -> Option<T>) -> Vec<T> {
    let (mut path, mut seen, mut here) = (vec![], HashSet::new(), start);
    while seen.insert(here) {
        path.push(here);
        match next(here) {
            Some(there) => here = there,
            None => return vec![],
        }
    }
    path.into_iter().skip_while(|&step| step != here).collect()
}
