use super::{
    declare::{change_axes, fix_known},
    names::unknown,
};
use crate::{
    framework::{Context, InterfaceChange, Pass, PassError, glob},
    pass,
};
use indexmap::IndexMap;
use pare_graph::{AxisSize, Graph, Model, TypeKind, ValueId};
use std::collections::{BTreeSet, HashMap};

pass! {
    /// Fix sizes of the inputs that are symbolic or unknown.
    ///
    /// `set-dims{batch=1,sequence=128}` fixes the symbols `batch` and `sequence`, `set-dims{x.0=1}` axis 0 of
    /// the input `x` with its symbol, and `set-dims{*.0=1}` axis 0 of every input. A symbol is fixed wherever
    /// it is declared; the sizes of outputs and other values that depend on it follow.
    ///
    /// Refused if the inputs have no such symbol or axis, if an axis has another fixed size, or if the model
    /// does not allow the size.
    #[pass("set-dims", Exact, "set of sizes fixed", "sets of sizes fixed", open = dims)]
    pub struct SetDims {
        /// The size of each symbol, or of each axis (`input.axis`).
        pub dims: IndexMap<String, i64> = IndexMap::new(),
    }
}

impl Pass for SetDims {
    fn validate(&self) -> Result<(), String> {
        if self.dims.is_empty() {
            return Err("it needs sizes, `symbol=size` or `input.axis=size`".into());
        }
        match self.dims.iter().find(|(_, size)| **size < 1) {
            Some((name, size)) => Err(format!("the size {size} of `{name}` is not positive")),
            None => Ok(()),
        }
    }

    fn run(&self, model: &mut Model, cx: &mut Context<'_>) -> Result<(), PassError> {
        let mut sizes = Sizes::default();
        for (key, &size) in &self.dims {
            sizes.add(&model.graph, key, size)?;
        }
        let mut changed = model.clone();
        let count = change_axes(&mut changed.graph, |id, axis, size| {
            let new = match size {
                AxisSize::Symbol(symbol) => sizes.symbols.get(symbol),
                AxisSize::Unknown => sizes.axes.get(&(id, axis)),
                AxisSize::Fixed(_) => None,
            };
            if let Some(&n) = new {
                *size = AxisSize::Fixed(n);
            }
        });
        if count == 0 || !cx.permit() {
            return Ok(());
        }
        changed
            .infer()
            .map_err(|e| PassError::refused(format!("the model does not allow these sizes: {e}")))?;
        fix_known(&mut changed.graph);
        *model = changed;
        let fixed: Vec<_> = self.dims.iter().map(|(key, size)| format!("`{key}` is {size}")).collect();
        cx.report.interface.push(InterfaceChange::Other(fixed.join(", ")));
        Ok(())
    }
}

/// The sizes to set.
#[derive(Default)]
struct Sizes {
    symbols: HashMap<String, i64>,
    /// Sizes of axes without a symbol.
    axes: HashMap<(ValueId, usize), i64>,
}

impl Sizes {
    /// Adds the symbol or the axes that `key` names.
    fn add(&mut self, graph: &Graph, key: &str, size: i64) -> Result<(), PassError> {
        let declared = declared_axes(graph);
        let symbols: BTreeSet<_> = declared
            .iter()
            .filter_map(|(.., s)| if let AxisSize::Symbol(name) = s { Some(name.as_str()) } else { None })
            .collect();
        if symbols.contains(key) {
            return self.set_symbol(key, size);
        }
        let no_symbol = || unknown("symbol or axis", key, symbols.iter().copied());
        let (input, axis) = key.rsplit_once('.').ok_or_else(no_symbol)?;
        let axis: usize = axis.parse().map_err(|_| no_symbol())?;
        let named = |v: ValueId| glob::matches(input, &graph.value(v).name);
        let chosen: Vec<_> = declared.iter().filter(|&&(v, a, _)| a == axis && named(v)).collect();
        if chosen.is_empty() {
            return Err(no_symbol());
        }
        for (id, axis, old) in chosen {
            match old {
                AxisSize::Symbol(symbol) if !symbol.is_empty() => self.set_symbol(symbol, size)?,
                AxisSize::Fixed(n) if *n != size => {
                    let name = &graph.value(*id).name;
                    return Err(PassError::refused(format!(
                        "axis {axis} of `{name}` has the fixed size {n}"
                    )));
                }
                AxisSize::Fixed(_) => {}
                AxisSize::Symbol(_) | AxisSize::Unknown => drop(self.axes.insert((*id, *axis), size)),
            }
        }
        Ok(())
    }

    fn set_symbol(&mut self, symbol: &str, size: i64) -> Result<(), PassError> {
        match self.symbols.insert(symbol.to_owned(), size) {
            Some(old) if old != size => {
                Err(PassError::refused(format!("`{symbol}` would be both {old} and {size}")))
            }
            _ => Ok(()),
        }
    }
}

/// The declared axes of the inputs.
fn declared_axes(graph: &Graph) -> Vec<(ValueId, usize, AxisSize)> {
    let of = |&id: &ValueId| {
        let ty = graph.value(id).declared.as_ref().and_then(|d| d.ty.as_ref());
        let axes = match ty.map(|ty| &ty.kind) {
            Some(TypeKind::Tensor { shape: Some(shape), .. }) => shape.as_slice(),
            _ => &[],
        };
        axes.iter().enumerate().map(|(axis, a)| (id, axis, a.size.clone())).collect::<Vec<_>>()
    };
    graph.inputs().iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::framework::testing::{model, run_pass, same, tools, try_pass};
    use crate::{Effect, Pipeline};
    use pare_graph::text;

    fn set(dims: &[(&str, i64)]) -> SetDims {
        SetDims { dims: dims.iter().map(|&(name, size)| (name.into(), size)).collect() }
    }

    #[track_caller]
    fn check(dims: &[(&str, i64)], before: &str, after: &str) {
        let mut changed = model(before);
        run_pass(set(dims), &mut changed);
        changed.check().unwrap();
        assert_eq!(text::print_graph(&changed.graph), text::print_graph(&model(after).graph));
        // The original runs on the samples of the narrower model.
        same(&changed, &changed, Effect::Exact);
    }

    #[test]
    fn fixes_symbols_and_what_depends_on_them() {
        check(
            &[("batch", 1), ("length", 4)],
            "g (int64[batch,length] ids, float[batch,length,2] x) => (float[batch,length,2] y, float[batch,twice] z)
                <float[2] w = {1, 2}, int64[2] flat = {0, -1}> { y = Mul(x, w) z = Reshape(y, flat) }",
            "g (int64[1,4] ids, float[1,4,2] x) => (float[1,4,2] y, float[1,8] z)
                <float[2] w = {1, 2}, int64[2] flat = {0, -1}> { y = Mul(x, w) z = Reshape(y, flat) }",
        );
    }

    #[test]
    fn fixes_axes_by_position() {
        check(
            &[("x.0", 3)],
            "g (float[?,2] x, float[N,2] u) => (float[?,2] y, float[N,2] v) { y = Relu(x) v = Relu(u) }",
            "g (float[3,2] x, float[N,2] u) => (float[3,2] y, float[N,2] v) { y = Relu(x) v = Relu(u) }",
        );
        // The symbol of an axis is fixed everywhere.
        check(
            &[("x.0", 3)],
            "g (float[N,2] x, float[2,N] u) => (float[N,2] y, float[2,N] v) { y = Relu(x) v = Relu(u) }",
            "g (float[3,2] x, float[2,3] u) => (float[3,2] y, float[2,3] v) { y = Relu(x) v = Relu(u) }",
        );
    }

    #[test]
    fn refuses_sizes_that_do_not_exist_or_fit() {
        let source = "g (float[N,2] x) => (float[N,2] y) <float[3,2] w = {1,2,3,4,5,6}> { y = Add(x, w) }";
        let why =
            |dims: &[(&str, i64)]| try_pass(set(dims), &mut model(source), tools()).unwrap_err().to_string();
        assert_eq!(why(&[("batch", 1)]), "`set-dims`: there is no symbol or axis `batch`");
        assert_eq!(why(&[("x.2", 1)]), "`set-dims`: there is no symbol or axis `x.2`");
        assert_eq!(why(&[("x.1", 1)]), "`set-dims`: axis 1 of `x` has the fixed size 2");
        assert_eq!(why(&[("N", 1), ("x.0", 3)]), "`set-dims`: `N` would be both 1 and 3");
        assert!(why(&[("N", 4)]).starts_with("`set-dims`: the model does not allow these sizes: "));
    }

    #[test]
    fn sizes_are_free_keys_of_the_pipeline() {
        let print = |text: &str| text.parse::<Pipeline>().map(|p| p.to_string()).map_err(|e| e.message);
        assert_eq!(print("set-dims{x.0=1,N=2,\"a b.1\"=3}").unwrap(), "set-dims{x.0=1,N=2,\"a b.1\"=3}");
        let toml = "[[step]]\npass = \"set-dims\"\nx.0 = 1\nN = 2\n";
        let from_toml = Pipeline::from_toml(toml).unwrap();
        let passes = from_toml.passes();
        assert_eq!(passes[0].info().name, "set-dims");
        assert_eq!(
            print("set-dims{N=x}").unwrap_err(),
            "`set-dims`: invalid type: string \"x\", expected an integer"
        );
        assert_eq!(print("set-dims{N=0}").unwrap_err(), "`set-dims`: the size 0 of `N` is not positive");
    }
}
