//! Errors of validation.

/// An invalid model or graph.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}{}", .within.iter().fold(String::new(), |message, graph| message + ", in " + graph))]
#[non_exhaustive]
pub struct CheckError {
    /// The fault.
    pub fault: Box<Fault>,
    /// Descriptions of the enclosing subgraphs and function, innermost first; empty in the main graph.
    pub within: Vec<String>,
}

/// A fault of a model. Nodes are described as by [`Graph::describe`](crate::Graph::describe).
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum Fault {
    #[error("`{value}` is used by {user}, but has no producer")]
    Undefined { value: String, user: String },
    #[error("the output `{0}` has no producer")]
    OutputNoProducer(String),
    #[error("the output `{0}` is a value of an outer graph")]
    OutputOfOuterGraph(String),
    #[error("`{value}` has two producers, {first} and {second}")]
    MultipleProducers { value: String, first: String, second: String },
    #[error("the input `{0}` is listed twice")]
    InputTwice(String),
    #[error("the output `{value}` of {node} has the name of a value of an outer graph")]
    Shadowing { node: String, value: String },
    #[error("the nodes form a cycle: {}", .0.join(", "))]
    Cycle(Vec<String>),
    #[error("subgraphs are nested more than {0} deep")]
    TooDeep(usize),
    #[error("the graph is inconsistent at `{0}`")]
    Unsound(String),

    #[error("{node} is of the domain `{domain}`, which the model does not import")]
    NotImported { node: String, domain: String },
    #[error("operator set {version} of {domain} is unknown; the newest known one is {newest}")]
    UnknownOpset { domain: String, version: i64, newest: i64 },
    #[error("{node} is not an operator of {domain} in operator set {opset}")]
    UnknownOperator { node: String, domain: String, opset: i64, near: Option<String>, since: Option<i64> },
    #[error("{node} is deprecated in operator set {opset}")]
    Deprecated { node: String, opset: i64 },
    #[error("{who} has {given}, but {allowed}")]
    Count { who: String, given: String, allowed: String },
    #[error("{node} lacks its {what} `{name}`")]
    Lacks { node: String, what: &'static str, name: String },
    #[error("{0} must have exactly one value")]
    NotOneValue(String),
    #[error("{node} has the unknown attribute `{name}`")]
    UnknownAttribute { node: String, name: String, near: Option<String> },
    #[error("the attribute `{name}` of {node} is {given}, but must be {kind}")]
    AttributeKind { node: String, name: String, given: String, kind: String },
    #[error("`{value}` at {node} is {given}, which is not one of {allowed}")]
    Type { node: String, value: String, given: String, allowed: String },
    #[error("`{a}` ({a_type}) and `{b}` ({b_type}) at {node} must have the same type")]
    Types { node: String, a: String, a_type: String, b: String, b_type: String },

    #[error("the function `{0}` is defined twice")]
    FunctionTwice(String),
    #[error("functions are recursive: {}", .0.join(" calls "))]
    Recursion(Vec<String>),
}

impl CheckError {
    /// A remedy for the user.
    pub fn hint(&self) -> Option<String> {
        Some(match &*self.fault {
            Fault::OutputOfOuterGraph(_) => "pass it through an Identity node".into(),
            Fault::NotImported { domain, .. } => {
                format!("add an opset_import for `{}`", if domain.is_empty() { "ai.onnx" } else { domain })
            }
            Fault::UnknownOpset { .. } => "a newer release may support it".into(),
            Fault::UnknownOperator { since: Some(since), .. } => {
                format!("it was added in operator set {since}: import that or a newer one")
            }
            Fault::UnknownOperator { near: Some(near), .. }
            | Fault::UnknownAttribute { near: Some(near), .. } => {
                format!("did you mean `{near}`?")
            }
            Fault::Deprecated { .. } => "convert the model, or import an older operator set".into(),
            Fault::Types { .. } => "insert a Cast node".into(),
            _ => return None,
        })
    }
}

/// The name among `known` with the smallest Damerau-Levenshtein distance to `name`, if at most a third of its
/// letters differ.
pub fn nearest<'n>(name: &str, known: impl IntoIterator<Item = &'n str>) -> Option<&'n str> {
    let distance = |k: &str| strsim::damerau_levenshtein(&k.to_lowercase(), &name.to_lowercase());
    let distances = known.into_iter().map(|k| (distance(k), k));
    distances.filter(|(distance, k)| *distance <= k.len().max(name.len()) / 3).min().map(|(_, k)| k)
}
