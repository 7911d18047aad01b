//! Wrong rewrites, as a careless author might write them.

use fastrand::Rng;
use pare_graph::{Attribute, DataType, Node, NodeRef, Patch, Ref, Tensor, ValueRef};

/// A kind of mistake: the operators it applies to, and the patch that introduces it.
pub struct Kind {
    pub name: &'static str,
    /// Operators it applies to; none for any.
    pub ops: &'static [&'static str],
    pub rule: fn(NodeRef<'_>, &mut Rng) -> Option<Patch>,
}

const fn kind(
    name: &'static str,
    ops: &'static [&'static str],
    rule: fn(NodeRef<'_>, &mut Rng) -> Option<Patch>,
) -> Kind {
    Kind { name, ops, rule }
}

/// Operators with a matrix or kernel in slot 1.
const LINEAR: &[&str] = &["Conv", "ConvTranspose", "Gemm", "MatMul", "GRU", "LSTM"];
const CONV: &[&str] = &["Conv"];
const BIASED: &[&str] = &["Conv", "ConvTranspose", "Gemm", "Add"];
const POINTWISE: &[&str] = &[
    "Add",
    "Mul",
    "Div",
    "Sub",
    "Relu",
    "Sigmoid",
    "Tanh",
    "PRelu",
    "BatchNormalization",
    "LayerNormalization",
];
const FLOATS: &[&str] =
    &["Relu", "Add", "Mul", "Conv", "Gemm", "MatMul", "Sigmoid", "Tanh", "Concat", "Softmax"];

/// All kinds.
pub static KINDS: &[Kind] = &[
    // weights
    kind("one weight off by one ulp", LINEAR, |at, rng| one_weight(at, rng, |w| w + ulp(w))),
    kind("one weight off by 10 %", LINEAR, |at, rng| one_weight(at, rng, |w| w * 1.1)),
    kind("one weight zero", LINEAR, |at, rng| one_weight(at, rng, |_| 0.0)),
    kind("one weight with the other sign", LINEAR, |at, rng| one_weight(at, rng, |w| -w)),
    kind("one weight not a number", LINEAR, |at, rng| one_weight(at, rng, |_| f64::NAN)),
    kind("one weight infinite", LINEAR, |at, rng| one_weight(at, rng, |_| f64::INFINITY)),
    kind("weights off by 1e-6", LINEAR, |at, _| weights(at, |w| w * (1.0 + 1e-6))),
    kind("weights off by 1e-5", LINEAR, |at, _| weights(at, |w| w * (1.0 + 1e-5))),
    kind("weights off by 1e-4", LINEAR, |at, _| weights(at, |w| w * (1.0 + 1e-4))),
    kind("weights off by 1e-3", LINEAR, |at, _| weights(at, |w| w * (1.0 + 1e-3))),
    kind("weights off by 1 %", LINEAR, |at, _| weights(at, |w| w * 1.01)),
    kind("weights off by 10 %", LINEAR, |at, _| weights(at, |w| w * 1.1)),
    kind("weights rounded to half floats", LINEAR, |at, _| weights(at, |w| as_type(DataType::Float16, w))),
    kind("weights rounded to bfloat16", LINEAR, |at, _| weights(at, |w| as_type(DataType::Bfloat16, w))),
    kind("weights quantized to 8 bits", LINEAR, |at, _| {
        let largest = constant(at, 1)?.to_f64()?.iter().fold(0.0_f64, |m, w| m.max(w.abs()));
        weights(at, |w| (w / largest * 127.0).round() / 127.0 * largest)
    }),
    kind("two input channels swapped in the weights", LINEAR, |at, rng| {
        let axis = usize::from(!columns(at));
        swapped(at, 1, axis, rng)
    }),
    kind("two output channels swapped in the weights", LINEAR, |at, rng| {
        let axis = usize::from(columns(at));
        swapped(at, 1, axis, rng)
    }),
    kind("kernel mirrored", CONV, |at, _| {
        permuted(at, 1, |shape, index| {
            index
                .iter()
                .zip(shape)
                .enumerate()
                .map(|(a, (i, n))| if a < 2 { *i } else { n - 1 - i })
                .collect()
        })
    }),
    kind("height and width of the kernel swapped", CONV, |at, _| {
        permuted(at, 1, |shape, index| {
            let mut index = index.to_vec();
            if shape.len() == 4 && shape[2] == shape[3] {
                index.swap(2, 3);
            }
            index
        })
    }),
    kind("matrix not transposed", &["Gemm", "MatMul"], |at, _| {
        permuted(at, 1, |shape, index| {
            let mut index = index.to_vec();
            if shape.len() == 2 && shape[0] == shape[1] {
                index.swap(0, 1);
            }
            index
        })
    }),
    // biases
    kind("bias dropped", BIASED, |at, _| bias(at, |b| b.fill(0.0))),
    kind("bias twice", BIASED, |at, _| bias(at, |b| b.iter_mut().for_each(|x| *x *= 2.0))),
    kind("bias of the neighbour", BIASED, |at, _| bias(at, |b| b.rotate_right(1))),
    kind("one bias off by 1 %", BIASED, |at, rng| bias(at, |b| b[rng.usize(..b.len())] *= 1.01)),
    kind("bias of a channel dropped", BIASED, |at, rng| bias(at, |b| b[rng.usize(..b.len())] = 0.0)),
    kind("recurrent bias dropped", &["GRU", "LSTM"], |at, _| {
        edited(at, 3, |b| {
            let half = b.len() / 2;
            b[half..].fill(0.0);
        })
    }),
    kind("gates in another order", &["GRU", "LSTM"], |at, _| {
        edited(at, 2, |r| {
            let gates = if at.is("GRU") { 3 } else { 4 };
            let part = r.len() / gates;
            r.rotate_left(part);
        })
    }),
    // normalisations
    kind("mean of a batch norm forgotten", &["BatchNormalization"], |at, _| edited(at, 3, |m| m.fill(0.0))),
    kind("variance taken for a deviation", &["BatchNormalization"], |at, _| {
        edited(at, 4, |v| v.iter_mut().for_each(|x| *x *= *x))
    }),
    kind(
        "epsilon of another framework",
        &["BatchNormalization", "LayerNormalization", "InstanceNormalization"],
        |at, _| set(at, "epsilon", 1e-3_f32),
    ),
    kind(
        "epsilon left out",
        &["BatchNormalization", "LayerNormalization", "InstanceNormalization"],
        |at, _| set(at, "epsilon", 0_f32),
    ),
    kind("a small constant removed", &["Add", "Max", "Clip"], |at, _| {
        let slot = (0..2)
            .find(|&s| constant(at, s).and_then(Tensor::single).is_some_and(|c| c > 0.0 && c < 1e-2))?;
        edited(at, slot, |c| c.fill(0.0))
    }),
    kind("a scalar off by 1 %", &["Mul", "Div", "Add", "Sub", "Pow"], |at, _| {
        let slot = (0..2)
            .find(|&s| constant(at, s).is_some_and(|c| c.dtype().is_float() && c.single().is_some()))?;
        edited(at, slot, |c| c[0] *= 1.01)
    }),
    // borders, strides, windows
    kind("border wrong by a pixel", &["Conv", "MaxPool", "AveragePool", "ConvTranspose"], |at, rng| {
        let mut pads = at.ints("pads")?.to_vec();
        let (half, axis) = (pads.len() / 2, rng.usize(..pads.len() / 2));
        let (from, to) = if rng.bool() { (axis, axis + half) } else { (axis + half, axis) };
        pads[from] -= 1;
        pads[to] += 1;
        (pads[from] >= 0).then(|| set(at, "pads", pads))?
    }),
    kind("stride lost", CONV, |at, _| {
        let strides = at.ints("strides").filter(|s| s.iter().any(|&s| s > 1))?;
        set(at, "strides", vec![1_i64; strides.len()])
    }),
    kind("stride kept, every place off by one", CONV, |at, _| {
        let pads = at.ints("pads").filter(|p| p.len() == 4)?;
        at.ints("strides").filter(|s| s.iter().any(|&s| s > 1))?;
        let shifted = vec![pads[0] + 1, pads[1], pads[2] - 1, pads[3]];
        shifted.iter().all(|&p| p >= 0).then(|| set(at, "pads", shifted))?
    }),
    kind("dilation lost", CONV, |at, _| {
        let kernel = constant(at, 1)?.shape().get(2..)?.to_vec();
        let pads: Vec<i64> = at.ints("pads").map_or_else(|| vec![0; kernel.len() * 2], <[i64]>::to_vec);
        if kernel.iter().any(|&k| k != 3) || pads.contains(&0) {
            return None;
        }
        let doubled: Vec<i64> = pads.iter().map(|p| p + 1).collect();
        let mut patch = Patch::at(at);
        patch.set_attribute(at.id, "dilations", Some(vec![2_i64; kernel.len()].into()));
        patch.set_attribute(at.id, "pads", Some(doubled.into()));
        Some(patch)
    }),
    kind("groups interleaved", CONV, |at, _| {
        let groups = at.int("group", 1) as usize;
        let rows = *constant(at, 1)?.shape().first()?;
        (groups > 1 && rows > groups).then(|| {
            permuted(at, 1, move |_, index| {
                let mut index = index.to_vec();
                index[0] = index[0] % groups * (rows / groups) + index[0] / groups;
                index
            })
        })?
    }),
    kind("maximum for mean", &["AveragePool", "GlobalAveragePool"], |at, _| {
        renamed(at, &at.op().replace("Average", "Max"))
    }),
    kind("padding counted in the mean", &["AveragePool"], |at, _| {
        set(at, "count_include_pad", 1 - at.int("count_include_pad", 0))
    }),
    // axes
    kind("softmax along another axis", &["Softmax", "LogSoftmax"], |at, _| {
        let rank = at.input(0).ok()?.rank().ok()? as i64;
        let axis = at.int("axis", if at.opset() < 13 { 1 } else { -1 });
        set(at, "axis", if axis == rank - 1 || axis == -1 { rank - 2 } else { rank - 1 })
    }),
    kind("two equal axes swapped", FLOATS, |at, rng| {
        let y = at.output().ok()?;
        let shape = y.shape()?;
        let pairs: Vec<_> = (0..shape.len())
            .flat_map(|a| (a + 1..shape.len()).map(move |b| (a, b)))
            .filter(|&(a, b)| shape[a] == shape[b] && shape[a].known().is_some_and(|n| n > 1))
            .collect();
        let &(a, b) = rng.choice(&pairs)?;
        let mut perm: Vec<i64> = (0..shape.len() as i64).collect();
        perm.swap(a, b);
        behind(at, |patch, y| Some(patch.node("swapped", Node::new("Transpose").with("perm", perm), &[y])))
    }),
    kind("axis reversed", FLOATS, |at, rng| {
        let y = at.output().ok()?;
        let shape = y.shape()?;
        let axes: Vec<_> = (0..shape.len())
            .filter(|&a| shape[a].known().is_some_and(|n| (2..10_000).contains(&n)))
            .collect();
        let &axis = rng.choice(&axes)?;
        let size = shape[axis].known()?;
        gathered(at, axis, (0..size).rev().collect())
    }),
    kind("a channel permuted", FLOATS, |at, rng| {
        let y = at.output().ok()?;
        let size = y.shape()?.get(1)?.known().filter(|n| (2..10_000).contains(n))?;
        let mut order: Vec<i64> = (0..size).collect();
        let first = rng.usize(..order.len() - 1);
        order.swap(first, first + 1);
        gathered(at, 1, order)
    }),
    kind("last place read twice", FLOATS, |at, _| {
        let y = at.output().ok()?;
        let axis = y.shape()?.len().checked_sub(1)?;
        let size = y.shape()?[axis].known().filter(|n| (2..10_000).contains(n))?;
        gathered(at, axis, (0..size).map(|i| i.min(size - 2)).collect())
    }),
    kind("concatenated in another order", &["Concat"], |at, _| {
        let inputs: Vec<_> = at.inputs().into_iter().collect::<Option<_>>()?;
        let (first, last) = (*inputs.first()?, *inputs.last()?);
        let same = first.id != last.id && first.dtype()?.is_float() && first.shape()? == last.shape()?;
        let mut refs: Vec<Option<Ref>> = inputs.iter().map(|&i| Some(i.into())).collect();
        refs.reverse();
        same.then(|| replaced(at, |patch| Some(patch.copy(at, &refs))))?
    }),
    kind("slice off by one", &["Slice"], |at, _| {
        // The number of elements is kept: both ends move.
        let (start, end) = (constant(at, 1)?.to_i64()?, constant(at, 2)?.to_i64()?);
        let (start, end) = (*start.first()?, *end.first()?);
        let by = if start > 0 { -1 } else { 1 };
        if start < 0 || end <= start || end > 1 << 30 {
            return None;
        }
        let mut patch = Patch::at(at);
        patch.set_constant(at.id, 1, "starts", Tensor::vector(&[start + by]));
        patch.set_constant(at.id, 2, "ends", Tensor::vector(&[end + by]));
        Some(patch)
    }),
    kind("index off by one", &["Gather"], |at, _| {
        let index = constant(at, 1)?;
        at.input(0).ok()?.dtype().filter(|d| d.is_float())?;
        let values: Vec<i64> = index.to_i64()?.iter().map(|&i| if i == 0 { 1 } else { i - 1 }).collect();
        let values: Vec<f64> = values.iter().map(|&i| i as f64).collect();
        let mut patch = Patch::at(at);
        patch.set_constant(at.id, 1, "index", Tensor::from_f64(index.dtype(), index.shape(), &values).ok()?);
        Some(patch)
    }),
    kind("one row of a table wrong", &["Gather"], |at, rng| {
        let table = constant(at, 0).filter(|t| t.dtype().is_float() && t.rank() == 2)?;
        let (rows, width) = (table.shape()[0], table.shape()[1]);
        let row = rng.usize(..rows);
        edited(at, 0, |t| t[row * width..(row + 1) * width].fill(0.0))
    }),
    // nodes
    kind(
        "activation dropped",
        &["Relu", "Sigmoid", "Tanh", "Clip", "LeakyRelu", "PRelu", "Softmax", "LogSoftmax"],
        |at, _| {
            let x = at.input(0).ok()?;
            let mut patch = Patch::at(at);
            let copy = patch.node("kept", Node::new("Identity"), &[x.into()]);
            patch.replace(at.output().ok()?, copy);
            Some(patch)
        },
    ),
    kind("Relu leaks", &["Relu"], |at, _| {
        replaced(at, |p| {
            Some(p.node("y", Node::new("LeakyRelu").with("alpha", 0.01_f32), &[at.input(0).ok()?.into()]))
        })
    }),
    kind("slope off by 1 %", &["PRelu"], |at, _| edited(at, 1, |s| s.iter_mut().for_each(|x| *x *= 1.01))),
    kind("tanh for erf", &["Erf"], |at, _| renamed(at, "Tanh")),
    kind("hard sigmoid for sigmoid", &["Sigmoid"], |at, _| renamed(at, "HardSigmoid")),
    kind("residual lost", &["Add"], |at, _| one_side(at)),
    kind("factor lost", &["Mul"], |at, _| one_side(at)),
    kind("sum for difference", &["Add"], |at, _| {
        at.output().ok()?.dtype().filter(|d| d.is_float())?;
        renamed(at, "Sub")
    }),
    kind("two nodes merged", FLOATS, |at, rng| {
        let y = at.output().ok()?;
        let earlier: Vec<_> = at
            .graph
            .nodes()
            .iter()
            .take_while(|&&n| n != at.id)
            .filter_map(|&n| at.graph.at(n).output().ok())
            .filter(|v| {
                v.shape().is_some()
                    && v.shape() == y.shape()
                    && v.dtype() == y.dtype()
                    && !v.value().is_output()
            })
            .collect();
        let &other = rng.choice(&earlier)?;
        if y.value().is_output() {
            return None;
        }
        let mut patch = Patch::at(at);
        patch.replace(y, other);
        Some(patch)
    }),
    kind("branches exchanged", &["If"], |at, _| {
        let mut node = at.node().clone();
        let (a, b) =
            (node.attributes.get("then_branch")?.clone(), node.attributes.get("else_branch")?.clone());
        node.attributes.insert("then_branch".into(), b);
        node.attributes.insert("else_branch".into(), a);
        let inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Into::into)).collect();
        let names: Vec<_> = at.outputs().iter().map(|o| o.map(ValueRef::name)).collect();
        let mut patch = Patch::at(at);
        let new = patch.node_with(node, &inputs, &names);
        for (old, new) in at.outputs().into_iter().zip(new) {
            patch.replace(old?, new?);
        }
        Some(patch)
    }),
    kind("state not carried on", &["GRU", "LSTM"], |at, _| {
        let (h, y) = (at.optional(5)?, at.outputs().get(1).copied().flatten()?);
        (h.shape()? == y.shape()?).then(|| {
            let mut patch = Patch::at(at);
            let copy = patch.node("state", Node::new("Identity"), &[h.into()]);
            patch.replace(y, copy);
            patch
        })
    }),
    // only for some inputs
    kind("through half floats", FLOATS, |at, _| {
        behind(at, |p, y| {
            let half = p.node("half", Node::new("Cast").with("to", 10_i64), &[y]);
            Some(p.node("y", Node::new("Cast").with("to", 1_i64), &[half]))
        })
    }),
    kind("negative values held at -1", POINTWISE, |at, _| bounded(at, "Max", -1.0)),
    kind("only large values wrong (over 6)", POINTWISE, |at, _| bounded(at, "Min", 6.0)),
    kind("only large values wrong (over 30)", POINTWISE, |at, _| bounded(at, "Min", 30.0)),
    kind("only small values wrong (under 1e-3)", POINTWISE, |at, _| {
        // sign(x)·max(|x| - 1e-3, 0) + sign(x)·1e-3 where |x| >= 1e-3, else 0.
        behind(at, |p, y| {
            let limit = p.constant("limit", Tensor::scalar(1e-3_f32));
            let size = p.node("size", Node::new("Abs"), &[y]);
            let small = p.node("small", Node::new("Less"), &[size, limit]);
            let large = p.node("large", Node::new("Not"), &[small]);
            let mask = p.node("mask", Node::new("Cast").with("to", 1_i64), &[large]);
            Some(p.node("y", Node::new("Mul"), &[y, mask]))
        })
    }),
    kind("only batches above one wrong", POINTWISE, |at, _| {
        by_batch(at, |p, n| {
            // 1 + 0.01·min(n - 1, 1)
            let one = p.constant("one", Tensor::vector(&[1_f32]));
            let more = p.node("more", Node::new("Sub"), &[n, one]);
            Some(p.node("above", Node::new("Min"), &[more, one]))
        })
    }),
    kind("only odd batches above one wrong", POINTWISE, |at, _| {
        by_batch(at, |p, n| {
            let one = p.constant("one", Tensor::vector(&[1_f32]));
            let half = p.constant("half", Tensor::vector(&[0.5_f32]));
            let more = p.node("more", Node::new("Sub"), &[n, one]);
            let above = p.node("above", Node::new("Min"), &[more, one]);
            let halved = p.node("halved", Node::new("Mul"), &[n, half]);
            let floor = p.node("floor", Node::new("Floor"), &[halved]);
            let rest = p.node("rest", Node::new("Sub"), &[halved, floor]);
            Some(p.node("odd", Node::new("Mul"), &[above, rest]))
        })
    }),
    kind("first sample of a batch for all", POINTWISE, |at, _| {
        let y = at.output().ok()?;
        (y.shape()?.first()?.known().is_none()).then(|| {
            behind(at, |p, y| {
                let zero = p.constant("zero", Tensor::vector(&[0_i64]));
                let first = p.node("first", Node::new("Gather").with("axis", 0_i64), &[y, zero]);
                let nothing = p.constant("nothing", Tensor::scalar(0_f32));
                let zeros = p.node("zeros", Node::new("Mul"), &[y, nothing]);
                Some(p.node("y", Node::new("Add"), &[zeros, first]))
            })
        })?
    }),
    kind("softmax without its maximum", &["Softmax"], |at, _| {
        let x = at.input(0).ok()?;
        if at.opset() >= 13 {
            return None;
        }
        let axis = at.int("axis", 1);
        (x.rank().ok()? as i64 - 1 == axis || axis == -1).then(|| {
            replaced(at, |p| {
                let e = p.node("e", Node::new("Exp"), &[x.into()]);
                let sum = p.node(
                    "sum",
                    Node::new("ReduceSum").with("axes", vec![-1_i64]).with("keepdims", 1_i64),
                    &[e],
                );
                Some(p.node("y", Node::new("Div"), &[e, sum]))
            })
        })?
    }),
    kind("what is not a number becomes zero", &["Log", "Sqrt", "Div", "Pow", "Reciprocal"], |at, _| {
        behind(at, |p, y| {
            let zero = p.constant("zero", Tensor::scalar(0_f32));
            let bad = p.node("bad", Node::new("IsNaN"), &[y]);
            Some(p.node("y", Node::new("Where"), &[bad, zero, y]))
        })
    }),
    kind("zero where all inputs are zero", POINTWISE, |at, _| {
        // y·min(1e30·Σ|y|, 1): only exact zeros are hit, by NaN.
        behind(at, |p, y| {
            let zero = p.constant("zero", Tensor::scalar(0_f32));
            let none = p.node("none", Node::new("Equal"), &[y, zero]);
            let mark = p.node("mark", Node::new("Cast").with("to", 1_i64), &[none]);
            let step = p.constant("step", Tensor::scalar(0.01_f32));
            let off = p.node("off", Node::new("Mul"), &[mark, step]);
            Some(p.node("y", Node::new("Add"), &[y, off]))
        })
    }),
];

// ---- helpers of the rules

fn ulp(w: f64) -> f64 {
    let w = w as f32;
    f64::from(f32::from_bits(w.to_bits() + 1)) - f64::from(w)
}

fn as_type(dtype: DataType, w: f64) -> f64 {
    Tensor::from_f64(dtype, &[1], &[w]).ok().and_then(|t| t.single()).unwrap_or(w)
}

fn constant(at: NodeRef<'_>, slot: usize) -> Option<&Tensor> {
    at.input(slot).ok()?.constant().ok()
}

/// Replaces the elements of the constant in `slot`.
fn edited(at: NodeRef<'_>, slot: usize, edit: impl FnOnce(&mut [f64])) -> Option<Patch> {
    let old = constant(at, slot).filter(|t| t.dtype().is_float() && !t.is_empty())?;
    let mut values = old.to_f64()?;
    edit(&mut values);
    let new = Tensor::from_f64(old.dtype(), old.shape(), &values).ok()?;
    let mut patch = Patch::at(at);
    patch.set_constant(at.id, slot, "wrong", new);
    Some(patch)
}

/// Returns true if the columns of the weights are output channels.
fn columns(at: NodeRef<'_>) -> bool {
    at.is("Gemm") && at.int("transB", 0) == 0 || at.is("MatMul")
}

fn weights(at: NodeRef<'_>, change: impl Fn(f64) -> f64) -> Option<Patch> {
    constant(at, 1).filter(|w| w.rank() >= 2)?;
    edited(at, 1, |w| w.iter_mut().for_each(|w| *w = change(*w)))
}

fn one_weight(at: NodeRef<'_>, rng: &mut Rng, change: impl Fn(f64) -> f64) -> Option<Patch> {
    constant(at, 1).filter(|w| w.rank() >= 2)?;
    edited(at, 1, |w| {
        let place = rng.usize(..w.len());
        w[place] = change(w[place]);
    })
}

fn bias(at: NodeRef<'_>, change: impl FnOnce(&mut [f64])) -> Option<Patch> {
    let slot = if at.is("Add") { (0..2).find(|&s| constant(at, s).is_some())? } else { 2 };
    constant(at, slot).filter(|b| b.len() > 1)?;
    edited(at, slot, change)
}

/// Permutes or repeats the elements of the constant in `slot`.
fn permuted(at: NodeRef<'_>, slot: usize, from: impl Fn(&[usize], &[usize]) -> Vec<usize>) -> Option<Patch> {
    let shape = constant(at, slot)?.shape().to_vec();
    edited(at, slot, |values| {
        let old = values.to_vec();
        for (place, value) in values.iter_mut().enumerate() {
            let mut rest = place;
            let mut index = vec![0; shape.len()];
            for axis in (0..shape.len()).rev() {
                index[axis] = rest % shape[axis];
                rest /= shape[axis];
            }
            let source = from(&shape, &index);
            *value = old[source.iter().zip(&shape).fold(0, |sum, (i, n)| sum * n + i)];
        }
    })
}

fn swapped(at: NodeRef<'_>, slot: usize, axis: usize, rng: &mut Rng) -> Option<Patch> {
    let size = *constant(at, slot)?.shape().get(axis).filter(|&&n| n > 1)?;
    let first = rng.usize(..size - 1);
    permuted(at, slot, |_, index| {
        let mut index = index.to_vec();
        index[axis] = match index[axis] {
            i if i == first => first + 1,
            i if i == first + 1 => first,
            i => i,
        };
        index
    })
}

#[allow(clippy::unnecessary_wraps)] // rules answer so
fn set(at: NodeRef<'_>, name: &str, value: impl Into<Attribute>) -> Option<Patch> {
    let mut patch = Patch::at(at);
    patch.set_attribute(at.id, name, Some(value.into()));
    Some(patch)
}

/// Replaces the node's output.
fn replaced(at: NodeRef<'_>, make: impl FnOnce(&mut Patch) -> Option<Ref>) -> Option<Patch> {
    let mut patch = Patch::at(at);
    let new = make(&mut patch)?;
    patch.replace(at.output().ok()?, new);
    Some(patch)
}

/// Passes the same inputs to another operator.
fn renamed(at: NodeRef<'_>, op: &str) -> Option<Patch> {
    let inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Ref::from)).collect::<Option<_>>()?;
    let mut node = at.node().clone();
    node.op = op.into();
    replaced(at, |patch| Some(patch.node("y", node, &inputs)))
}

/// Appends nodes to a node that returns floats.
fn behind(at: NodeRef<'_>, make: impl FnOnce(&mut Patch, Ref) -> Option<Ref>) -> Option<Patch> {
    let y = at.output().ok()?;
    (y.dtype()? == DataType::Float).then_some(())?;
    let inputs: Vec<_> = at.inputs().into_iter().map(|i| i.map(Ref::from)).collect();
    replaced(at, |patch| {
        let copy = patch.copy(at, &inputs);
        make(patch, copy)
    })
}

fn gathered(at: NodeRef<'_>, axis: usize, order: Vec<i64>) -> Option<Patch> {
    behind(at, |patch, y| {
        let order = patch.constant("order", Tensor::vector(&order));
        Some(patch.node("y", Node::new("Gather").with("axis", axis as i64), &[y, order]))
    })
}

fn bounded(at: NodeRef<'_>, op: &str, bound: f32) -> Option<Patch> {
    behind(at, |patch, y| {
        let bound = patch.constant("bound", Tensor::scalar(bound));
        Some(patch.node("y", Node::new(op), &[y, bound]))
    })
}

/// Replaces a sum or product by the operand that has its shape.
fn one_side(at: NodeRef<'_>) -> Option<Patch> {
    let y = at.output().ok()?;
    y.dtype().filter(|d| d.is_float())?;
    let side = at.inputs().into_iter().flatten().find(|i| !i.is_constant() && i.shape() == y.shape())?;
    replaced(at, |patch| Some(patch.node("y", Node::new("Identity"), &[side.into()])))
}

/// Changes the output by 1 % of a float vector of one element that is computed from the batch size.
fn by_batch(at: NodeRef<'_>, figure: impl FnOnce(&mut Patch, Ref) -> Option<Ref>) -> Option<Patch> {
    let y = at.output().ok()?;
    if y.shape()?.first()?.known().is_some() {
        return None;
    }
    behind(at, |p, y| {
        let shape = p.node("shape", Node::new("Shape"), &[y]);
        let zero = p.constant("zero", Tensor::vector(&[0_i64]));
        let size = p.node("batch", Node::new("Gather").with("axis", 0_i64), &[shape, zero]);
        let size = p.node("batch", Node::new("Cast").with("to", 1_i64), &[size]);
        let figure = figure(p, size)?;
        let step = p.constant("step", Tensor::vector(&[0.01_f32]));
        let off = p.node("off", Node::new("Mul"), &[figure, step]);
        let off = p.node("off", Node::new("Mul"), &[y, off]);
        Some(p.node("y", Node::new("Add"), &[y, off]))
    })
}
