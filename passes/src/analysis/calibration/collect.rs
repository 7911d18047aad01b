//! Sums of what linear operators read, over samples.

use super::{Linear, choose, floats, observe};
use crate::framework::{PassError, Tools};
use crate::statistics::{Rows, Statistics, Sums};
use pare_graph::{Dim, EvaluateError, Graph, Model, ValueId};
use std::{collections::HashMap, ops::Range};

/// Which rows are looked at.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Places of each sample, chosen at random: 32 of a feature map tell as much as 64.
    pub places: usize,
    /// Seed of the choice.
    pub seed: u64,
}

/// The sums over the inputs of each operator, for each of its groups, over the samples in `range`. Operators that
/// read the same value the same way share their sums.
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
        operators.iter().enumerate().map(|(i, op)| *first.entry(op.reads()).or_insert(i)).collect();
    let mut distinct: Vec<_> = first.into_values().collect();
    distinct.sort_unstable();
    // What is known from elsewhere need not be seen again.
    let known = |i: &usize| Some((*i, known_sums(tools, graph, operators[*i])?));
    let mut sums: HashMap<usize, Vec<Sums>> = distinct.iter().filter_map(known).collect();
    distinct.retain(|i| !sums.contains_key(i));
    for lot in lots(&distinct, operators, tools.memory / 2).into_iter().filter(|lot| !lot.is_empty()) {
        let mut inputs: Vec<ValueId> = lot.iter().map(|&i| operators[i].input).collect();
        inputs.sort_unstable();
        inputs.dedup();
        for &i in &lot {
            let op = operators[i];
            sums.insert(i, (0..op.groups).map(|_| Sums::new(op.width(), 0)).collect());
        }
        observe(tools, model, &inputs, range.clone(), "statistics", &mut |batch, values| {
            for &i in &lot {
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

/// The sums of an operator that the caller's statistics hold, if they fit it.
fn known_sums(tools: Tools<'_>, graph: &Graph, op: &Linear) -> Option<Vec<Sums>> {
    let sums = tools.statistics?.find(&graph.value(op.output).name, op.groups, op.width())?;
    Some(sums.to_vec())
}

/// The statistics of all linear operators of a model, over the samples in `range`.
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

/// Rows of the inputs of an operator over a batch that starts with sample `from`.
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
        let at = choose(sampling.seed, from + sample, op.places(&output), sampling.places);
        op.gather_inputs(&values, x.shape(), &output, sample, &at, &mut rows);
    }
    Ok(rows)
}

/// An activation that has another shape than the graph says.
pub fn misfit(op: &Linear, graph: &Graph) -> PassError {
    EvaluateError::new(format!("`{}` has not the shape that was inferred", graph.value(op.input).name)).into()
}

/// Operators in lots whose sums fit into so many bytes together.
fn lots(distinct: &[usize], operators: &[&Linear], bytes: u64) -> Vec<Vec<usize>> {
    let (mut lots, mut size) = (vec![vec![]], 0_u64);
    for &i in distinct {
        let width = operators[i].width() as u64;
        let own = 8 * width * width * operators[i].groups as u64;
        if size + own > bytes && size > 0 {
            lots.push(vec![]);
            size = 0;
        }
        size += own;
        if let Some(lot) = lots.last_mut() {
            lot.push(i);
        }
    }
    lots
}

/// A size where the symbols are one sample each.
pub fn size_of(dim: &Dim) -> Option<usize> {
    usize::try_from(dim.eval(&|_| Some(1))?).ok()
}
