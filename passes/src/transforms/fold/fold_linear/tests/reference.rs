//! A direct interpreter in f64, one loop nest per operator, that shares no code with the pass.

use ndarray::{Array3, ArrayD, Axis, Dimension, IxDyn, Slice};
use pare_graph::{Graph, NodeRef, ValueRef};
use std::collections::HashMap;

pub type Array = ArrayD<f64>;

/// The concatenated outputs of the graph for one input.
pub fn run(graph: &Graph, input: &Array) -> Array {
    let mut values = HashMap::new();
    values.insert(graph.inputs()[0], input.clone());
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        let get = |slot: usize| at.optional(slot).map(|v| read(&values, v));
        let x = get(0).unwrap();
        let y = match at.op() {
            "Conv" => {
                conv(&x, &get(1).unwrap(), get(2), &window(at, x.ndim() - 2), at.int("group", 1) as usize)
            }
            "AveragePool" => average(at, &x),
            "GlobalAveragePool" | "ReduceMean" => {
                (2..x.ndim()).fold(x.clone(), |x, a| x.mean_axis(Axis(a)).unwrap().insert_axis(Axis(a)))
            }
            "BatchNormalization" => batch_norm(at, &x, &[1, 2, 3, 4].map(|i| get(i).unwrap())),
            "Add" => broadcast(&x, &get(1).unwrap(), |a, b| a + b),
            "Sub" => broadcast(&x, &get(1).unwrap(), |a, b| a - b),
            "Mul" => broadcast(&x, &get(1).unwrap(), |a, b| a * b),
            "Div" => broadcast(&x, &get(1).unwrap(), |a, b| a / b),
            "Neg" => x.mapv(|v| -v),
            "Relu" => x.mapv(|v| v.max(0.0)),
            "Pad" => pad(&x, &get(1).unwrap(), get(2)),
            "Slice" => {
                let [start, end, axis] = [1, 2, 3].map(|i| get(i).unwrap()[0] as isize);
                x.slice_axis(Axis(axis as usize), Slice::new(start, Some(end), 1)).to_owned()
            }
            "Concat" => {
                let parts: Vec<_> = at.inputs().into_iter().flatten().map(|v| read(&values, v)).collect();
                let views: Vec<_> = parts.iter().map(|p| p.view()).collect();
                ndarray::concatenate(Axis(at.int("axis", 0) as usize), &views).unwrap()
            }
            "Flatten" | "Reshape" => {
                let rows = x.shape()[0];
                let columns = x.len() / rows;
                x.to_shape(IxDyn(&[rows, columns])).unwrap().to_owned()
            }
            "MatMul" => matmul(&x, &get(1).unwrap()),
            "ConvTranspose" => transposed(at, &x, &get(1).unwrap(), get(2)),
            "Split" => {
                let sizes = get(1).unwrap();
                let axis = Axis(at.int("axis", 0).rem_euclid(x.ndim() as i64) as usize);
                let mut start = 0;
                for (output, size) in at.outputs().into_iter().zip(sizes.iter()) {
                    let part = x.slice_axis(axis, Slice::new(start, Some(start + *size as isize), 1));
                    values.insert(output.unwrap().id, part.to_owned());
                    start += *size as isize;
                }
                continue;
            }
            "Gemm" => {
                let w = get(1).unwrap();
                let w = if at.int("transB", 0) != 0 { w.reversed_axes() } else { w };
                let y = matmul(&x, &w) * at.float("alpha", 1.0);
                get(2).map_or(y.clone(), |c| broadcast(&y, &(c * at.float("beta", 1.0)), |a, b| a + b))
            }
            op => panic!("the reference has no {op}"),
        };
        values.insert(at.output().unwrap().id, y);
    }
    let flat = |id| values[id].iter().copied().collect::<Vec<_>>();
    match graph.outputs() {
        [only] => values[only].clone(),
        several => Array::from_shape_vec(
            IxDyn(&[several.iter().map(|o| values[o].len()).sum()]),
            several.iter().flat_map(flat).collect(),
        )
        .unwrap(),
    }
}

fn read(values: &HashMap<pare_graph::ValueId, Array>, value: ValueRef<'_>) -> Array {
    values.get(&value.id).cloned().unwrap_or_else(|| {
        let tensor = value.constant().unwrap();
        Array::from_shape_vec(IxDyn(tensor.shape()), tensor.to_f64().unwrap()).unwrap()
    })
}

struct Window {
    strides: Vec<usize>,
    dilations: Vec<usize>,
    before: Vec<usize>,
    after: Vec<usize>,
}

fn window(at: NodeRef<'_>, n: usize) -> Window {
    let list = |name, default, n| {
        at.ints(name).map_or(vec![default; n], |v| v.iter().map(|&i| i as usize).collect())
    };
    let pads = list("pads", 0, 2 * n);
    Window {
        strides: list("strides", 1, n),
        dilations: list("dilations", 1, n),
        before: pads[..n].to_vec(),
        after: pads[n..].to_vec(),
    }
}

impl Window {
    fn sizes(&self, input: &[usize], kernel: &[usize]) -> Vec<usize> {
        let size = |i: usize| {
            let room = input[i] + self.before[i] + self.after[i] - (self.dilations[i] * (kernel[i] - 1) + 1);
            room / self.strides[i] + 1
        };
        (0..input.len()).map(size).collect()
    }

    /// The position that a tap reads, unless it is padding.
    fn position(&self, output: &[usize], tap: &[usize], sizes: &[usize]) -> Option<Vec<usize>> {
        let at = |i: usize| {
            let p = output[i] as i64 * self.strides[i] as i64 + tap[i] as i64 * self.dilations[i] as i64
                - self.before[i] as i64;
            (0..sizes[i] as i64).contains(&p).then_some(p as usize)
        };
        (0..output.len()).map(at).collect()
    }
}

fn indices(sizes: &[usize]) -> Vec<Vec<usize>> {
    ndarray::indices(IxDyn(sizes)).into_iter().map(|i| i.as_array_view().to_vec()).collect()
}

fn conv(x: &Array, w: &Array, b: Option<Array>, window: &Window, group: usize) -> Array {
    let (spatial, kernel) = (&x.shape()[2..], &w.shape()[2..]);
    let sizes = window.sizes(spatial, kernel);
    let (samples, outputs, inputs) = (x.shape()[0], w.shape()[0], w.shape()[1]);
    let [positions, taps, from] = [&sizes[..], kernel, spatial].map(|s| s.iter().product::<usize>());
    let x = x.to_shape((samples, x.shape()[1], from)).unwrap();
    let w = w.to_shape((outputs, inputs, taps)).unwrap();
    let mut y = Array3::zeros((samples, outputs, positions));
    for (p, position) in indices(&sizes).iter().enumerate() {
        for (t, tap) in indices(kernel).iter().enumerate() {
            let Some(from) = window.position(position, tap, spatial) else { continue };
            let f = from.iter().zip(spatial).fold(0, |f, (&i, &n)| f * n + i);
            for (n, o, i) in triples(samples, outputs, inputs) {
                y[[n, o, p]] += w[[o, i, t]] * x[[n, o / (outputs / group) * inputs + i, f]];
            }
        }
    }
    if let Some(b) = b {
        for (mut channel, b) in y.axis_iter_mut(Axis(1)).zip(b.iter()) {
            channel += *b;
        }
    }
    y.into_shape_with_order(IxDyn(&[&[samples, outputs], &sizes[..]].concat())).unwrap()
}

fn triples(a: usize, b: usize, c: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..a).flat_map(move |i| (0..b).flat_map(move |j| (0..c).map(move |k| (i, j, k))))
}

fn transposed(at: NodeRef<'_>, x: &Array, w: &Array, b: Option<Array>) -> Array {
    let (spatial, kernel, window) = (&x.shape()[2..], &w.shape()[2..], window(at, x.ndim() - 2));
    let group = at.int("group", 1) as usize;
    let (inputs, outputs) = (x.shape()[1] / group, w.shape()[1]);
    let size = |i: usize| {
        (spatial[i] - 1) * window.strides[i] + window.dilations[i] * (kernel[i] - 1) + 1
            - window.before[i]
            - window.after[i]
    };
    let sizes: Vec<_> = (0..spatial.len()).map(size).collect();
    let shape = [&[x.shape()[0], outputs * group], &sizes[..]].concat();
    let mut y = Array::from_shape_fn(IxDyn(&shape), |i| b.as_ref().map_or(0.0, |b| b[i[1]]));
    for from in indices(spatial) {
        for tap in indices(kernel) {
            let to = |i: usize| {
                (from[i] * window.strides[i] + tap[i] * window.dilations[i])
                    .checked_sub(window.before[i])
                    .filter(|&p| p < sizes[i])
            };
            let Some(to) = (0..sizes.len()).map(to).collect::<Option<Vec<_>>>() else { continue };
            for (n, i, o) in triples(x.shape()[0], inputs * group, outputs) {
                let product =
                    x[IxDyn(&[&[n, i], &from[..]].concat())] * w[IxDyn(&[&[i, o], &tap[..]].concat())];
                y[IxDyn(&[&[n, i / inputs * outputs + o], &to[..]].concat())] += product;
            }
        }
    }
    y
}

fn average(at: NodeRef<'_>, x: &Array) -> Array {
    let (spatial, window) = (&x.shape()[2..], window(at, x.ndim() - 2));
    let kernel: Vec<_> = at.ints("kernel_shape").unwrap().iter().map(|&k| k as usize).collect();
    let sizes = window.sizes(spatial, &kernel);
    let mut y = Array::zeros(IxDyn(&[&x.shape()[..2], &sizes[..]].concat()));
    for position in indices(&sizes) {
        let read: Vec<_> =
            indices(&kernel).iter().filter_map(|tap| window.position(&position, tap, spatial)).collect();
        let padded = at.int("count_include_pad", 0) != 0;
        let count = if padded { kernel.iter().product() } else { read.len() };
        for n in 0..x.shape()[0] {
            for c in 0..x.shape()[1] {
                let at = |p: &Vec<usize>| x[IxDyn(&[&[n, c], &p[..]].concat())];
                y[IxDyn(&[&[n, c], &position[..]].concat())] =
                    read.iter().map(at).sum::<f64>() / count as f64;
            }
        }
    }
    y
}

fn batch_norm(at: NodeRef<'_>, x: &Array, [gamma, beta, mean, variance]: &[Array; 4]) -> Array {
    let mut y = x.clone();
    let epsilon = at.float("epsilon", 1e-5);
    for (c, mut channel) in y.axis_iter_mut(Axis(1)).enumerate() {
        channel.mapv_inplace(|v| gamma[c] * (v - mean[c]) / (variance[c] + epsilon).sqrt() + beta[c]);
    }
    y
}

fn broadcast(a: &Array, b: &Array, f: fn(f64, f64) -> f64) -> Array {
    let rank = a.ndim().max(b.ndim());
    let wide = |x: &Array| {
        let shape = [vec![1; rank - x.ndim()], x.shape().to_vec()].concat();
        x.to_shape(IxDyn(&shape)).unwrap().to_owned()
    };
    let (a, b) = (wide(a), wide(b));
    let shape: Vec<_> = (0..rank).map(|i| a.shape()[i].max(b.shape()[i])).collect();
    let (a, b) = (a.broadcast(IxDyn(&shape)).unwrap(), b.broadcast(IxDyn(&shape)).unwrap());
    Array::from_shape_fn(IxDyn(&shape), |i| f(a[&i], b[&i]))
}

fn pad(x: &Array, pads: &Array, value: Option<Array>) -> Array {
    let n = x.ndim();
    let pads: Vec<_> = pads.iter().map(|&p| p as usize).collect();
    let shape: Vec<_> = (0..n).map(|i| x.shape()[i] + pads[i] + pads[n + i]).collect();
    let value = value.map_or(0.0, |v| *v.first().unwrap());
    Array::from_shape_fn(IxDyn(&shape), |i| {
        let from: Option<Vec<_>> = (0..n).map(|a| i[a].checked_sub(pads[a])).collect();
        from.and_then(|from| x.get(IxDyn(&from))).copied().unwrap_or(value)
    })
}

fn matmul(x: &Array, w: &Array) -> Array {
    let (last, columns) = (x.ndim() - 1, w.shape()[1]);
    let shape = [&x.shape()[..last], &[columns]].concat();
    Array::from_shape_fn(IxDyn(&shape), |i| {
        let mut at = i.clone();
        (0..w.shape()[0])
            .map(|k| {
                at[last] = k;
                x[&at] * w[[k, i[last]]]
            })
            .sum()
    })
}
