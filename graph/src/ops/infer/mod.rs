//! Inference of element types and symbolic shapes.
//!
//! Facts flow once through the nodes in topological order: each operator has a rule ([`rules`]) that sees the
//! facts of the inputs through a [`cx::Cx`] and answers with those of the outputs, or with a contradiction.
//! Elements of short integer tensors are followed as well, since shapes are computed from them. What no rule
//! tells, the declarations of the file may.

// All rules have one signature, also those that cannot fail.
#![allow(clippy::unnecessary_wraps)]

mod attention;
mod call;
mod content;
mod control;
mod create;
mod cx;
mod dims;
mod elementwise;
mod engine;
mod matmul;
mod microsoft;
mod ml;
mod norm;
mod pieces;
mod quantize;
mod reduce;
mod reshape;
mod resize;
mod rnn;
mod rules;
mod sequence;
mod signal;
mod window;

use crate::{Fact, Function, Graph, Model, NodeId};
use engine::Engine;

/// Types or shapes that contradict each other.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{node}: {why}")]
pub struct InferError {
    /// The node, in words.
    pub node: String,
    /// What does not fit.
    pub why: String,
}

impl Model {
    /// Infer all facts anew: of the main graph from its declared inputs and constants, of subgraphs from what they
    /// are given, of function bodies from what all calls have in common. Facts of nodes that contradict each other
    /// or the declared type of an output of the model are an error; which facts are set then is left open. An output
    /// whose declared shape never fitted has the one that is computed.
    pub fn infer(&mut self) -> Result<(), InferError> {
        let mut engine = Engine::new(&self.functions);
        engine.main(&mut self.graph)?;
        let bodies = engine.bodies();
        for (function, body) in self.functions.iter_mut().zip(bodies) {
            function.body = body;
        }
        Ok(())
    }
}

impl Graph {
    /// Forget inferred facts, then infer all anew from inputs and constants, calling these functions.
    pub fn infer_with(&mut self, functions: &[Function]) -> Result<(), InferError> {
        Engine::new(functions).main(self)
    }

    /// Infer all facts anew after a change inside. Inputs and captured values keep their facts, of which an outer
    /// graph may know more than the file declares; so do outputs of nodes without a shape rule (such as
    /// calls of functions) whose inputs did not change.
    pub fn reinfer(&mut self) -> Result<(), InferError> {
        Engine::new(&[]).again(self)
    }

    /// Infer the outputs of one node from its inputs; where they contradict what was known, that stays.
    pub(crate) fn infer_node(&mut self, node: NodeId) {
        let Ok(Some(facts)) = Engine::new(&[]).node(self, node) else { return };
        for (output, fact) in self.outputs_of(node).into_iter().zip(facts) {
            let Some(output) = output else { continue };
            if let Some(fact) = self.value(output).fact.unify(&fact).filter(|f| *f != Fact::Unknown) {
                self.set_fact(output, fact);
            }
        }
    }
}
