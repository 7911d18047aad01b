//! Sums over the inputs of linear operators.

use super::{choose, floats, observe};
use crate::{
    analysis::linear::{Linear, Positions},
    framework::{PassError, Tools},
    statistics::{Rows, Statistics, Sums},
};
use pare_graph::{Dim, EvaluateError, Graph, Model, ValueId};
use std::{collections::HashMap, ops::Range};

/// The rows of each sample that are used.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Positions of each sample, chosen at random. Of a feature map, 32 give the same estimates as 64.
    pub positions: usize,
    /// The seed of the choice.
    pub seed: u64,
}

/// Returns the sums over the inputs of each operator, for each of its groups, over the samples in `range`.
/// Operators that read the same rows share their sums.
///
/// # Errors
/// If the model cannot be run, or if activations are not finite.
pub fn input_sums(
    tools: Tools<'_>,
    model: &Model,
    operators: &[&Linear],
    range: Range<usize>,
    sampling: Sampling,
) -> Result<Vec<Vec<Sums>>, PassError> {
    let graph = &model.graph;
    let mut first = HashMap::new();
    let of: Vec<_> =
        operators.iter().enumerate().map(|(i, op)| *first.entry(op.window()).or_insert(i)).collect();
    let mut distinct: Vec<_> = first.into_values().collect();
    distinct.sort_unstable();
    let known = |i: &usize| Some((*i, known_sums(tools, graph, operators[*i])?));
    let mut sums: HashMap<usize, Vec<Sums>> = distinct.iter().filter_map(known).collect();
    distinct.retain(|i| !sums.contains_key(i));
    for chunk in chunks(&distinct, operators, tools.memory / 2).into_iter().filter(|chunk| !chunk.is_empty())
    {
        let mut inputs: Vec<ValueId> = chunk.iter().map(|&i| operators[i].input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        for &i in &chunk {
            let op = operators[i];
            sums.insert(i, (0..op.groups).map(|_| Sums::new(op.width(), 0)).collect());
        }
        observe(tools, model, &inputs, range.clone(), "statistics", &mut |batch, values| {
            for &i in &chunk {
                let op = operators[i];
                let slot = inputs.binary_search(&op.input).unwrap_or_default();
                let rows = input_rows(op, graph, &values[slot], batch.start, sampling)?;
                let groups = sums.entry(i).or_default();
                for (q, sums) in groups.iter_mut().enumerate() {
                    sums.add_inputs(rows.columns(q * op.width(), op.width()));
                }
            }
            Ok(())
        })?;
    }
    if let Some((&i, _)) = sums.iter().find(|(_, groups)| !groups.iter().all(Sums::is_finite)) {
        let name = &graph.value(operators[i].input).name;
        return Err(PassError::refused(format!("`{name}` is not finite on the samples")));
    }
    Ok(of.into_iter().map(|i| sums.get(&i).cloned().unwrap_or_default()).collect())
}

/// The sums of an operator in the caller's statistics, if they have its shape.
fn known_sums(tools: Tools<'_>, graph: &Graph, op: &Linear) -> Option<Vec<Sums>> {
    let sums = tools.statistics?.find(&graph.value(op.output).name, op.groups, op.width())?;
    Some(sums.to_vec())
}

/// Returns the statistics of all linear operators of a model, over the samples in `range`.
pub fn collect_statistics(
    tools: Tools<'_>,
    model: &Model,
    range: Range<usize>,
    sampling: Sampling,
) -> Result<Statistics, PassError> {
    let graph = &model.graph;
    let operators: Vec<_> = graph.nodes().iter().filter_map(|&id| Linear::of(graph.at(id)).ok()).collect();
    let sums = input_sums(tools, model, &operators.iter().collect::<Vec<_>>(), range, sampling)?;
    let name = |op: &Linear| graph.value(op.output).name.clone();
    Ok(operators.iter().map(name).zip(sums).collect())
}

/// The input rows of an operator for a batch that starts with sample `from`.
fn input_rows(
    op: &Linear,
    graph: &Graph,
    x: &pare_graph::Tensor,
    from: usize,
    sampling: Sampling,
) -> Result<Rows, PassError> {
    let output = op.output_shape(x.shape()).ok_or_else(|| misfit(op, graph))?;
    let values = floats(x)?;
    let mut rows = Rows::new(op.groups * op.width());
    for sample in 0..x.shape()[0] {
        let chosen = choose(sampling.seed, from + sample, op.positions(&output), sampling.positions);
        let at = Positions { sample, chosen: &chosen };
        op.gather_inputs(&values, x.shape(), &output, at, &mut rows);
    }
    Ok(rows)
}

/// The error for an activation whose shape differs from the inferred one.
pub fn misfit(op: &Linear, graph: &Graph) -> PassError {
    let name = &graph.value(op.input).name;
    EvaluateError::new(format!("the shape of `{name}` differs from the inferred one")).into()
}

/// Splits operators into chunks whose sums fit into this many bytes.
fn chunks(distinct: &[usize], operators: &[&Linear], bytes: u64) -> Vec<Vec<usize>> {
    let (mut chunks, mut size) = (vec![vec![]], 0_u64);
    for &i in distinct {
        let width = operators[i].width() as u64;
        let own = 8 * width * width * operators[i].groups as u64;
        if size + own > bytes && size > 0 {
            chunks.push(vec![]);
            size = 0;
        }
        size += own;
        if let Some(chunk) = chunks.last_mut() {
            chunk.push(i);
        }
    }
    chunks
}

/// The size of a dimension for one sample: symbols are 1.
pub fn size_of(dim: &Dim) -> Option<usize> {
    usize::try_from(dim.eval(&|_| Some(1))?).ok()
}
