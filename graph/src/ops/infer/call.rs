//! Calls of model-local functions, whose bodies are inferred with the facts and attributes of the caller.

use super::{InferError, dims::common, engine::Engine};
use crate::{Attribute, Fact, Function, Graph, NodeId};
use indexmap::IndexMap;
use std::collections::HashSet;

/// The largest number of cached results per function.
const MAX_MEMOS: usize = 32;

/// The calls of one function.
#[derive(Default)]
pub(super) struct Calls {
    memos: Vec<Memo>,
    /// The common facts of the inputs of all calls; `None` before the first call.
    inputs: Option<Vec<Fact>>,
    /// True if the function is being inferred: recursive calls, which are invalid, are skipped.
    active: bool,
}

struct Memo {
    inputs: Vec<Fact>,
    attributes: IndexMap<String, Attribute>,
    result: Result<Vec<Fact>, InferError>,
}

impl Function {
    /// The body for a call with these facts of its inputs and these attributes. Without facts of inputs, the
    /// facts of the body are those of all calls. Contradictions leave facts unknown.
    pub(crate) fn called(
        &self,
        inputs: &[Fact],
        attributes: &IndexMap<String, Attribute>,
        functions: &[Self],
    ) -> Graph {
        let mut body = self.body.clone();
        if !inputs.is_empty() {
            body.bind_attributes(attributes, &self.defaults);
            let _ = Engine::new(functions).nested(&mut body, inputs, HashSet::new());
        }
        body
    }
}

impl Engine<'_> {
    /// The facts of the outputs of a call.
    pub fn call(&mut self, graph: &Graph, id: NodeId, function: usize) -> Result<Vec<Fact>, InferError> {
        let inputs = graph.inputs_of(id).into_iter();
        let inputs: Vec<Fact> =
            inputs.map(|v| v.map(|v| graph.value(v).fact.clone()).unwrap_or_default()).collect();
        let attributes = &graph.node(id).attributes;
        let calls = &mut self.calls[function];
        if calls.active {
            return Ok(vec![]);
        }
        calls.inputs = Some(match calls.inputs.take() {
            None => inputs.clone(),
            Some(all) if all.len() == inputs.len() => {
                all.iter().zip(&inputs).map(|(a, b)| common(a, b)).collect()
            }
            Some(all) => vec![Fact::Unknown; all.len().max(inputs.len())],
        });
        if let Some(memo) = calls.memos.iter().find(|m| m.inputs == inputs && m.attributes == *attributes) {
            return memo.result.clone();
        }
        calls.active = true;
        let definition = &self.functions[function];
        let mut body = definition.body.clone();
        body.bind_attributes(attributes, &definition.defaults);
        let result = self.nested(&mut body, &inputs, HashSet::new()).map_err(|error| InferError {
            node: format!("{}, in the function, {}", graph.describe(id), error.node),
            why: error.why,
        });
        let calls = &mut self.calls[function];
        calls.active = false;
        if calls.memos.len() < MAX_MEMOS {
            let attributes = attributes.clone();
            calls.memos.push(Memo { inputs, attributes, result: result.clone() });
        }
        result
    }

    /// The bodies of all functions, with the facts that hold in every call.
    pub fn bodies(mut self) -> Vec<Graph> {
        let inputs: Vec<_> = self.calls.iter_mut().map(|c| c.inputs.take().unwrap_or_default()).collect();
        self.lenient = true;
        let functions = self.functions.iter().zip(inputs);
        functions
            .map(|(function, inputs)| {
                let mut body = function.body.clone();
                // Contradictions are reported for calls; functions that are not called may contain any.
                let _ = self.nested(&mut body, &inputs, HashSet::new());
                body
            })
            .collect()
    }
}
