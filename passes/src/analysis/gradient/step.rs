//! A node during the backward pass, as its rule sees it.

use super::term::{Tape, Term};
use pare_graph::{Decline, NodeId, NodeRef, ValueId};
use std::cell::RefCell;

/// The result of a rule: it has given a gradient to each wanted input, or declines.
pub(super) type Done = Result<(), Decline>;

/// A node whose outputs have gradients.
pub(super) struct Step<'t> {
    pub(super) tape: &'t Tape,
    node: NodeId,
    inputs: Vec<Option<ValueId>>,
    outputs: Vec<Option<ValueId>>,
    /// The gradients of the outputs.
    gradients: Vec<Option<ValueId>>,
    /// Inputs that have a gradient.
    wanted: Vec<bool>,
    /// The units of the gradient of each input, where others are left out.
    units: Vec<Option<Vec<usize>>>,
    given: RefCell<Vec<(ValueId, ValueId)>>,
    declined: RefCell<Vec<Decline>>,
}

/// The gradients that a rule gave, by value, and the reasons why it could not give others.
pub(super) struct Given {
    pub(super) gradients: Vec<(ValueId, ValueId)>,
    pub(super) declined: Vec<Decline>,
}

impl<'t> Step<'t> {
    pub(super) fn new(
        tape: &'t Tape,
        node: NodeId,
        gradients: Vec<Option<ValueId>>,
        wanted: Vec<bool>,
        units: Vec<Option<Vec<usize>>>,
    ) -> Self {
        let (inputs, outputs) = tape.read(|graph| (graph.inputs_of(node), graph.outputs_of(node)));
        let (given, declined) = (RefCell::default(), RefCell::default());
        Self { tape, node, inputs, outputs, gradients, wanted, units, given, declined }
    }

    pub(super) fn finish(self) -> Given {
        Given { gradients: self.given.into_inner(), declined: self.declined.into_inner() }
    }

    /// Reads the node.
    pub(super) fn read<T>(&self, read: impl FnOnce(NodeRef<'_>) -> T) -> T {
        self.tape.read(|graph| read(graph.at(self.node)))
    }

    /// Declines with a reason that names the node.
    pub(super) fn because<T>(&self, why: &str) -> Result<T, Decline> {
        self.read(|at| Err(Decline::because(format!("{} {why}", at.describe()))))
    }

    /// Input `slot`; declines if it is omitted.
    pub(super) fn x(&self, slot: usize) -> Result<Term<'t>, Decline> {
        self.optional(slot).ok_or(Decline::Mismatch)
    }

    pub(super) fn optional(&self, slot: usize) -> Option<Term<'t>> {
        self.inputs.get(slot).copied().flatten().map(|id| self.tape.term(id))
    }

    /// The number of input slots.
    pub(super) fn arity(&self) -> usize {
        self.inputs.len()
    }

    /// The first output.
    pub(super) fn y(&self) -> Result<Term<'t>, Decline> {
        self.output(0).ok_or(Decline::Mismatch)
    }

    pub(super) fn output(&self, slot: usize) -> Option<Term<'t>> {
        self.outputs.get(slot).copied().flatten().map(|id| self.tape.term(id))
    }

    /// The gradient of the first output; declines if another output has a gradient.
    pub(super) fn dy(&self) -> Result<Term<'t>, Decline> {
        if self.gradients.iter().skip(1).any(Option::is_some) {
            return self.because("has a gradient in an output other than the first");
        }
        self.gradient(0).ok_or(Decline::Mismatch)
    }

    /// The gradient of an output.
    pub(super) fn gradient(&self, slot: usize) -> Option<Term<'t>> {
        self.gradients.get(slot).copied().flatten().map(|id| self.tape.term(id))
    }

    /// The number of output slots.
    pub(super) fn results(&self) -> usize {
        self.outputs.len()
    }

    /// Returns true if input `slot` has a gradient.
    pub(super) fn wants(&self, slot: usize) -> bool {
        self.wanted.get(slot).copied().unwrap_or(false)
    }

    /// Gives input `slot` its gradient, summed over the axes along which the input is broadcast.
    pub(super) fn give(&self, slot: usize, gradient: Term<'t>) {
        let Some(x) = self.optional(slot).filter(|_| self.wants(slot)) else { return };
        match gradient.sum_to(x) {
            Ok(gradient) => self.given.borrow_mut().push((x.id, gradient.id)),
            Err(why) => self.declined.borrow_mut().push(why),
        }
    }

    /// Gives input `slot` a gradient that is computed only if it is wanted.
    pub(super) fn give_with(&self, slot: usize, gradient: impl FnOnce() -> Result<Term<'t>, Decline>) {
        if !self.wants(slot) {
            return;
        }
        match gradient() {
            Ok(gradient) => self.give(slot, gradient),
            Err(why) => self.declined.borrow_mut().push(why),
        }
    }

    /// Gives the weight in `slot` its gradient: `weight` of the gradient of the output, which has its units along `axis`.
    /// Units that need none are left out of it.
    pub(super) fn give_weight(
        &self,
        slot: usize,
        dy: Term<'t>,
        axis: usize,
        weight: impl FnOnce(Term<'t>) -> Result<Term<'t>, Decline>,
    ) {
        match self.units.get(slot).and_then(Option::as_ref).filter(|_| self.wants(slot)) {
            None => self.give_with(slot, || weight(dy)),
            Some(units) => match (self.inputs[slot], weight(dy.take(axis, units))) {
                (Some(id), Ok(gradient)) => self.given.borrow_mut().push((id, gradient.id)),
                (None, _) => {}
                (_, Err(why)) => self.declined.borrow_mut().push(why),
            },
        }
    }

    /// The rule of a function of one operand: `dx` from `x`, `y` and `dy`.
    pub(super) fn unary(&self, dx: impl FnOnce(Term<'t>, Term<'t>, Term<'t>) -> Term<'t>) -> Done {
        let (x, y, dy) = (self.x(0)?, self.y()?, self.dy()?);
        self.give_with(0, || Ok(dx(x, y, dy)));
        Ok(())
    }

    pub(super) fn int(&self, name: &str, default: i64) -> i64 {
        self.read(|at| at.int(name, default))
    }

    pub(super) fn float(&self, name: &str, default: f32) -> f64 {
        self.read(|at| at.float(name, default))
    }

    pub(super) fn string(&self, name: &str, default: &'static str) -> String {
        self.read(|at| at.string(name, default).to_owned())
    }
}
