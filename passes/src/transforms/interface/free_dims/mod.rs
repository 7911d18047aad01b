//! Fixed sizes of inputs become symbols again.

mod edit;
mod follow;
#[cfg(test)]
mod tests;

use super::declare::{change_axes, open_dependent};
use crate::{
    analysis::calibration::open_inputs,
    framework::{Context, FreedAxis, InterfaceChange, Pass, PassError, glob},
    pass,
};
use follow::Follow;
use indexmap::IndexMap;
use pare_graph::{AxisSize, Graph, Model, ValueId};

pass! {
    /// Let axes of fixed size have any size.
    ///
    /// `free-dims{batch=N}` names the first axis of all inputs `N`; `free-dims{x.0=N,state.1=N}` names axes
    /// of chosen inputs, and `free-dims{*.1=S}` one axis of all. The axis is followed through the graph.
    /// Constants that contain its size follow too: targets of `Reshape` and `Expand`, ends of `Slice`, sizes
    /// of `Resize`, tables that repeat one row, and single rows that are joined to every sample.
    ///
    /// Every sample of a `batch` must be computed by itself, as it was before. Another axis may be related, as
    /// the positions of a sequence are by attention; then only the old size can be compared with the original.
    ///
    /// Refused, with the node, where the axis cannot be followed or where a `batch` is not kept apart.
    #[pass("free-dims", Exact, "axis freed", "axes freed", open = dims)]
    pub struct FreeDims {
        /// The symbol of each axis, by `batch` or `input.axis`.
        pub dims: IndexMap<String, String> = IndexMap::new(),
    }
}

/// The key for the first axis of all inputs.
const BATCH: &str = "batch";

impl Pass for FreeDims {
    fn validate(&self) -> Result<(), String> {
        if self.dims.is_empty() {
            return Err("it needs symbols, `batch=symbol` or `input.axis=symbol`".into());
        }
        let is_axis = |key: &str| key.rsplit_once('.').is_some_and(|(_, axis)| axis.parse::<usize>().is_ok());
        match self.dims.iter().find(|(key, symbol)| symbol.is_empty() || !(*key == BATCH || is_axis(key))) {
            Some((key, _)) => Err(format!("`{key}` is neither `batch` nor `input.axis`")),
            None => Ok(()),
        }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let mut symbols: Vec<&String> = self.dims.values().collect();
        symbols.dedup();
        for symbol in symbols {
            let keys = self.dims.iter().filter(|(_, s)| *s == symbol).map(|(key, _)| key.as_str());
            let axes = Axes::of(&model.graph, keys.collect(), symbol)?;
            let (freed, change) = axes.free(model)?;
            if !cx.permit() {
                return Ok(());
            }
            *model = freed;
            cx.report.notes.extend(change.related_by.as_ref().map(|node| {
                format!(
                    "{node} relates the positions of `{symbol}`: sizes other than {} have no reference",
                    change.size
                )
            }));
            cx.report.interface.push(InterfaceChange::Freed(change));
        }
        Ok(())
    }
}

/// Axes of inputs that become one symbol.
struct Axes {
    symbol: String,
    size: i64,
    inputs: Vec<(ValueId, usize)>,
    /// True if every position must be computed by itself.
    apart: bool,
}

impl Axes {
    /// The axes that `keys` name.
    fn of(graph: &Graph, keys: Vec<&str>, symbol: &str) -> Result<Self, PassError> {
        let mut axes =
            Self { symbol: symbol.to_owned(), size: 0, inputs: vec![], apart: keys.contains(&BATCH) };
        for key in keys {
            let (input, axis) = match key.rsplit_once('.') {
                Some((input, axis)) if key != BATCH => (input, axis.parse().unwrap_or(0)),
                _ => ("*", 0),
            };
            let before = axes.inputs.len();
            for id in open_inputs(graph) {
                let value = graph.value(id);
                let rank = value.fact.shape().map_or(0, <[_]>::len);
                if glob::matches(input, &value.name) && axis < rank && !axes.inputs.contains(&(id, axis)) {
                    axes.add(graph, id, axis)?;
                }
            }
            if axes.inputs.len() == before {
                return Err(PassError::refused(format!("no input has the axis `{key}`")));
            }
        }
        Ok(axes)
    }

    fn add(&mut self, graph: &Graph, id: ValueId, axis: usize) -> Result<(), PassError> {
        let value = graph.value(id);
        let size = value.fact.shape().and_then(|shape| shape[axis].known());
        let name = &value.name;
        match size {
            None => return Err(PassError::refused(format!("axis {axis} of `{name}` has no fixed size"))),
            Some(size) if self.inputs.is_empty() => self.size = size,
            Some(size) if size != self.size => {
                let first = &graph.value(self.inputs[0].0).name;
                let why = format!("axis {axis} of `{name}` has size {size}, but `{first}` has {}", self.size);
                return Err(PassError::refused_with(
                    why,
                    "name the axes one by one, as in `input.axis=symbol`",
                ));
            }
            Some(_) => {}
        }
        self.inputs.push((id, axis));
        Ok(())
    }

    /// The model with the axes freed, and the change of its interface.
    fn free(self, model: &Model) -> Result<(Model, FreedAxis), PassError> {
        if self.size < 1 {
            return Err(PassError::refused(format!("the axis of size {} is empty", self.size)));
        }
        let mut freed = model.clone();
        let mut is_taken = false;
        change_axes(&mut freed.graph, |id, axis, size| {
            is_taken |= matches!(size, AxisSize::Symbol(known) if *known == self.symbol);
            if self.inputs.contains(&(id, axis)) {
                *size = AxisSize::Symbol(self.symbol.clone());
            }
        });
        if is_taken {
            return Err(PassError::refused(format!("the model already has a symbol `{}`", self.symbol)));
        }
        let mut follow = Follow::new(&model.graph, &self.symbol, self.size, self.apart);
        follow.run(&mut freed).map_err(PassError::refused)?;
        let depends = |dim: &pare_graph::Dim| follow.depends(dim);
        open_dependent(&mut freed.graph, depends);
        self.check_sizes(&freed)?;
        let named = |graph: &Graph, id: ValueId, axis: usize| (graph.value(id).name.clone(), axis);
        let outputs = freed
            .graph
            .outputs()
            .iter()
            .flat_map(|&v| follow.axes(&freed.graph, v).into_iter().map(move |axis| (v, axis)));
        let change = FreedAxis {
            symbol: self.symbol.clone(),
            size: usize::try_from(self.size).unwrap_or(0),
            inputs: self.inputs.iter().map(|&(v, axis)| named(&model.graph, v, axis)).collect(),
            outputs: outputs.map(|(v, axis)| named(&freed.graph, v, axis)).collect(),
            related_by: follow.related_by.clone(),
        };
        Ok((freed, change))
    }

    /// Infers the model at other sizes. Those of related axes may have to be multiples, as for strided
    /// convolutions.
    fn check_sizes(&self, freed: &Model) -> Result<(), PassError> {
        for size in [self.size, self.size.saturating_mul(2)] {
            let mut fixed = freed.clone();
            change_axes(&mut fixed.graph, |_, _, axis| {
                if matches!(axis, AxisSize::Symbol(symbol) if *symbol == self.symbol) {
                    *axis = AxisSize::Fixed(size);
                }
            });
            fixed
                .infer()
                .map_err(|e| PassError::refused(format!("the model does not allow the size {size}: {e}")))?;
        }
        Ok(())
    }
}
