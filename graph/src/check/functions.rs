//! Checks of the functions of a model and of their calls.

use super::{CheckError, Fault, operator::check_count};
use crate::{Function, NodeRef, functions::FunctionsError};

impl From<FunctionsError> for CheckError {
    fn from(error: FunctionsError) -> Self {
        let fault = match error {
            FunctionsError::Duplicate(name) => Fault::FunctionTwice(name),
            FunctionsError::Recursion(names) => Fault::Recursion(names),
        };
        Self { fault: fault.into(), within: vec![] }
    }
}

/// Checks that a call has at most as many inputs and outputs as the function; trailing ones may be omitted.
pub(super) fn check_call(at: NodeRef<'_>, function: &Function) -> Result<(), Fault> {
    let domain = at.node().domain();
    if at.graph.opset(domain).is_none() {
        return Err(Fault::NotImported { node: at.describe(), domain: domain.into() });
    }
    let (inputs, outputs) = (function.body.inputs().len(), function.body.outputs().len());
    check_count(|| at.describe(), "input", at.inputs().len(), 0, Some(inputs))?;
    check_count(|| at.describe(), "output", at.outputs().len(), 0, Some(outputs))
}
