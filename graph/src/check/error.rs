//! What can be wrong with a model, in words.

/// A model or graph that is not sound.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}{}", .within.iter().fold(String::new(), |place, graph| place + ", in " + graph))]
pub struct CheckError {
    /// What is wrong.
    pub fault: Box<Fault>,
    /// The subgraphs and the function around it, innermost first; empty in the main graph.
    pub within: Vec<String>,
}

/// What is wrong. Nodes are given in words: operator and name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Fault {
    #[error("`{value}` is used by {user}, but nothing makes it")]
    Undefined { value: String, user: String },
    #[error("the output `{0}` is made by nothing")]
    OutputNoProducer(String),
    #[error("the output `{0}` is a value of an outer graph")]
    OutputOfOuterGraph(String),
    #[error("`{value}` has two producers, {first} and by {second}")]
    MultipleProducers { value: String, first: String, second: String },
    #[error("the input `{0}` is listed twice")]
    InputTwice(String),
    #[error("{node} makes `{value}`, which is also the name of a value of an outer graph")]
    Shadowing { node: String, value: String },
    #[error("the nodes form a cycle: {}", .0.join(", "))]
    Cycle(Vec<String>),
    #[error("subgraphs are nested more than {0} deep")]
    TooDeep(usize),
    #[error("the graph does not agree with itself about `{0}`")]
    Unsound(String),

    #[error("{node} is of the domain `{domain}`, which the model does not import")]
    NotImported { node: String, domain: String },
    #[error("operator set {version} of {domain} is not known; the newest known one is {newest}")]
    UnknownOpset { domain: String, version: i64, newest: i64 },
    #[error("{node} is no operator of {domain} in operator set {opset}")]
    UnknownOperator { node: String, domain: String, opset: i64, near: Option<String>, since: Option<i64> },
    #[error("{node} is deprecated in operator set {opset}")]
    Deprecated { node: String, opset: i64 },
    #[error("{who} has {given}, but {allowed}")]
    Count { who: String, given: String, allowed: String },
    #[error("{node} lacks its {what} `{name}`")]
    Lacks { node: String, what: &'static str, name: String },
    #[error("{0} must hold one value")]
    NotOneValue(String),
    #[error("{node} has an attribute `{name}`, which it does not know")]
    UnknownAttribute { node: String, name: String, near: Option<String> },
    #[error("the attribute `{name}` of {node} is {given}, but must be {kind}")]
    AttributeKind { node: String, name: String, given: String, kind: String },
    #[error("`{value}` at {node} is {given}, which is none of {allowed}")]
    Type { node: String, value: String, given: String, allowed: String },
    #[error("`{a}` ({a_type}) and `{b}` ({b_type}) at {node} must be of one type")]
    Types { node: String, a: String, a_type: String, b: String, b_type: String },

    #[error("the function `{0}` is there twice")]
    FunctionTwice(String),
    #[error("functions call each other in a circle: {}", .0.join(" calls "))]
    Recursion(Vec<String>),
}

impl CheckError {
    /// What could be done about it.
    pub fn hint(&self) -> Option<String> {
        Some(match &*self.fault {
            Fault::OutputOfOuterGraph(_) => "pass it through an Identity node".into(),
            Fault::NotImported { domain, .. } => {
                format!("add an opset_import for `{}`", if domain.is_empty() { "ai.onnx" } else { domain })
            }
            Fault::UnknownOpset { .. } => "a newer release may know it".into(),
            Fault::UnknownOperator { since: Some(since), .. } => {
                format!("it came with operator set {since}: import that or a newer one")
            }
            Fault::UnknownOperator { near: Some(near), .. }
            | Fault::UnknownAttribute { near: Some(near), .. } => {
                format!("did you mean `{near}`?")
            }
            Fault::Deprecated { .. } => "convert the model, or import an older operator set".into(),
            Fault::Types { .. } => "a Cast node can join them".into(),
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
