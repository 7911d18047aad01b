//! Tests in text: initializers hold the inputs, and the expected output as `want`.

use super::{EvalError, evaluate, trace};
use crate::{Graph, Tensor, text::parse_graph};
use std::collections::HashMap;

fn graph(source: &str, opset: i64) -> Graph {
    parse_graph(&format!("g () => (float y) {source}"), opset).unwrap()
}

/// Evaluates the output `y`.
fn run(graph: &Graph, limit: usize) -> Result<Tensor, EvalError> {
    let mut known: HashMap<_, Tensor> = HashMap::new();
    for &id in graph.nodes().iter() {
        let at = graph.at(id);
        let given = at.inputs();
        let tensors: Vec<_> =
            given.iter().map(|v| v.and_then(|v| v.value().tensor().or_else(|| known.get(&v.id)))).collect();
        let outputs = evaluate(at, &tensors, limit)?;
        known.extend(at.outputs().into_iter().zip(outputs).filter_map(|(o, t)| Some((o?.id, t))));
    }
    Ok(known.remove(&graph.find("y").unwrap()).unwrap())
}

fn holds_at(opset: i64, source: &str) {
    let graph = graph(source, opset);
    let want = graph.value(graph.find("want").unwrap()).tensor().unwrap();
    assert_eq!(&run(&graph, 1 << 20).unwrap(), want, "{source}");
}

fn holds(source: &str) {
    holds_at(18, source);
}

fn refused(source: &str) -> EvalError {
    run(&graph(source, 18), 1 << 10).unwrap_err()
}

const X: &str = "int64[2,3] x = {1,2,3,4,5,6}";

#[test]
fn transposes_large_tensors_in_blocks() {
    let shape = [3, 1, 35, 2, 21];
    let strides = [1470, 1470, 42, 21, 1];
    let elements: Vec<u16> = (0..3 * 35 * 2 * 21).collect();
    let x = Tensor::from_slice(&shape, &elements).unwrap();
    for perm in
        [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 4, 2, 1, 3], [2, 3, 0, 4, 1], [1, 3, 2, 0, 4], [0, 1, 3, 4, 2]]
    {
        let graph = graph(&format!("{{ y = Transpose<perm = {perm:?}>(x) }}"), 18);
        let transposed = evaluate(graph.at(graph.nodes()[0]), &[Some(&x)], 1 << 20).unwrap().remove(0);
        let sizes = perm.map(|p| shape[p]);
        assert_eq!(transposed.shape(), sizes);
        let places = (0..elements.len()).map(|i| {
            let (mut rest, mut from) = (i, 0);
            for (size, p) in sizes.iter().zip(perm).rev() {
                from += rest % size * strides[p];
                rest /= size;
            }
            elements[from]
        });
        assert_eq!(transposed.to_vec::<u16>().unwrap(), places.collect::<Vec<_>>(), "{perm:?}");
    }
}

#[test]
fn moves_elements() {
    let with_x = |more: &str, node: &str| holds(&format!("<{X}, {more}> {{ y = {node} }}"));
    with_x("int64[3,2] want = {1,4,2,5,3,6}", "Transpose(x)");
    with_x("int64[3,2] want = {1,2,3,4,5,6}, int64[2] s = {-1,2}", "Reshape(x, s)");
    with_x("int64[2,3,1] want = {1,2,3,4,5,6}, int64[3] s = {0,0,-1}", "Reshape(x, s)");
    with_x("int64[1,6] want = {1,2,3,4,5,6}", "Flatten<axis = 0>(x)");
    with_x("int64[6,1] want = {1,2,3,4,5,6}", "Flatten<axis = 2>(x)");
    with_x("int64[1,2,3,1] want = {1,2,3,4,5,6}, int64[2] a = {0,-1}", "Unsqueeze(x, a)");
    with_x("int64[2,6] want = {1,2,3,1,2,3,4,5,6,4,5,6}", "Concat<axis = -1>(x, x)");
    with_x(
        "int64[2,2] want = {6,5,3,2}, int64[2] s = {-1,9}, int64[2] e = {-9,0}, int64[2] st = {-1,-1},
            int64[2] a = {0,1}",
        "Slice(x, s, e, a, st)",
    );
    with_x("int64[2,2,2] want = {3,2,1,3,6,5,4,6}, int64[2,2] i = {2,1,0,-1}", "Gather<axis = 1>(x, i)");
    with_x("int64[1,3] want = {4,2,6}, int64[1,3] i = {1,0,-1}", "GatherElements<axis = 0>(x, i)");
    with_x("int64[2] want = {6,4}, int64[2,2] i = {1,2,1,0}", "GatherND(x, i)");
    with_x("int64[2] want = {2,6}, int64[2,1] i = {1,2}", "GatherND<batch_dims = 1>(x, i)");
    with_x(
        "int64[2,3] want = {1,2,9,8,5,6}, int64[2,1] i = {2,0}, int64[2,1] u = {9,8}",
        "ScatterElements<axis = 1>(x, i, u)",
    );
    with_x(
        "int64[2,3] want = {1,2,3,7,8,9}, int64[1,1] i = {1}, int64[1,3] u = {7,8,9}",
        "ScatterND(x, i, u)",
    );
    with_x("int64[2,2,3] want = {1,2,3,4,5,6,1,2,3,4,5,6}, int64[3] s = {2,1,1}", "Expand(x, s)");
    with_x("int64[2,6] want = {1,2,3,1,2,3,4,5,6,4,5,6}, int64[2] r = {1,2}", "Tile(x, r)");
    with_x("int64[2,2] want = {1,3,4,6}, bool[3] c = {1,0,1}", "Compress<axis = 1>(x, c)");
    with_x("int64[2] want = {2,3}, bool[3] c = {0,1,1}", "Compress(x, c)");
    with_x("int64[2,3] want = {1,2,3,0,5,6}", "Trilu(x)");
    with_x("int64[2,3] want = {1,0,0,4,5,0}", "Trilu<upper = 0>(x)");
    with_x("int64[2,3] want = {1,2,0,4,5,6}, int64 k = {1}", "Trilu<upper = 0>(x, k)");
    with_x("int64[2,3] want = {1,7,3,7,5,7}, bool[2,3] c = {1,0,1,0,1,0}, int64 z = {7}", "Where(c, x, z)");
    with_x("int64[2] want = {2,3}", "Shape(x)");
    with_x("int64[1] want = {3}", "Shape<start = -1>(x)");
    with_x("int64 want = {6}", "Size(x)");
}

#[test]
fn pads_in_four_modes() {
    let pad = |want: &str, mode: &str| {
        holds(&format!(
            "<int32[3] x = {{1,2,3}}, int64[2] p = {{2,2}}, int32 v = {{9}}, int32[7] want = {{{want}}}> {{
             y = Pad<mode = \"{mode}\">(x, p{}) }}",
            if mode == "constant" { ", v" } else { "" }
        ));
    };
    pad("9,9,1,2,3,9,9", "constant");
    pad("1,1,1,2,3,3,3", "edge");
    pad("3,2,1,2,3,2,1", "reflect");
    pad("2,3,1,2,3,1,2", "wrap");
    holds("<int32[3] x = {1,2,3}, int64[2] p = {1,-2}, int32[2] want = {0,1}> { y = Pad(x, p) }");
    holds_at(10, "<int32[1] x = {1}, int32[2] want = {4,1}> { y = Pad<pads = [1,0], value = 4.0>(x) }");
}

#[test]
fn moves_blocks_between_depth_and_space() {
    let x = "int32[1,8,1,1] x = {0,1,2,3,4,5,6,7}";
    holds(&format!(
        "<{x}, int32[1,2,2,2] want = {{0,2,4,6,1,3,5,7}}> {{ y = DepthToSpace<blocksize = 2>(x) }}"
    ));
    holds(&format!(
        "<{x}, int32[1,2,2,2] want = {{0,1,2,3,4,5,6,7}}> {{ y = DepthToSpace<blocksize = 2, mode = \"CRD\">(x) }}"
    ));
    holds(&format!(
        "<{x}, int32[1,8,1,1] want = {{0,1,2,3,4,5,6,7}}> {{
          a = DepthToSpace<blocksize = 2>(x) y = SpaceToDepth<blocksize = 2>(a) }}"
    ));
}

#[test]
fn moves_elements_of_every_type() {
    for (dtype, items) in [
        ("string", "\"b\",\"a\""),
        ("int4", "-8,7"),
        ("uint2", "3,1"),
        ("bool", "1,0"),
        ("float16", "1.5,-2.0"),
        ("double", "1e300,2"),
        ("uint64", "18446744073709551615,0"),
    ] {
        let reversed = items.split(',').rev().collect::<Vec<_>>().join(",");
        holds(&format!(
            "<{dtype}[2] x = {{{items}}}, int64[2] i = {{1,0}}, {dtype}[2] want = {{{reversed}}}> {{ y = Gather(x, i) }}"
        ));
    }
    holds("<int4[3] x = {1,2,3}, int4[6] want = {1,2,3,1,2,3}> { y = Concat<axis = 0>(x, x) }");
}

#[test]
fn creates_tensors() {
    holds("<int64[2] s = {1,2}, int8[1,2] want = {7,7}> { y = ConstantOfShape<value = int8[1] {7}>(s) }");
    holds("<int64[1] s = {2}, float[2] want = {0,0}> { y = ConstantOfShape(s) }");
    holds("<int64 a = {7}, int64 b = {0}, int64 c = {-3}, int64[3] want = {7,4,1}> { y = Range(a, b, c) }");
    holds(
        "<float a = {0}, float b = {0.3}, float c = {0.1}, float[4] want = {0,0.1,0.2,0.3}> { y = Range(a, b, c) }",
    );
    holds(
        "<int64[2,3] x = {1,2,3,4,5,6}, bool[2,3] want = {0,1,0,0,0,1}> { y = EyeLike<dtype = 9, k = 1>(x) }",
    );
    holds(
        "<int64[2] i = {1,-1}, int64 d = {3}, int8[2] v = {5,6}, int8[3,2] want = {5,5,6,5,5,6}> {
           y = OneHot<axis = 0>(i, d, v) }",
    );
    holds("<float[2,2] x = {0,1,2,0}, int64[2,2] want = {0,1,1,0}> { y = NonZero(x) }");
    holds("<int64[2] want = {3,4}> { y = Constant<value_ints = [3,4]>() }");
    holds("<float want = {0.5}> { y = Constant<value_float = 0.5>() }");
}

#[test]
fn computes_integers() {
    let both = |op: &str, want: &str| {
        holds(&format!(
            "<int64[4] a = {{7,-7,7,-7}}, int64[4] b = {{2,2,-2,-2}}, int64[4] want = {{{want}}}> {{ y = {op}(a, b) }}"
        ));
    };
    both("Div", "3,-3,-3,3");
    both("Mod", "1,1,-1,-1");
    both("Mod<fmod = 1>", "1,-1,1,-1");
    both("Sub", "5,-9,9,-5");
    both("Max", "7,2,7,-2");
    both("BitwiseAnd", "2,0,6,-8");
    holds("<uint8[2] a = {250,1}, uint8 b = {10}, uint8[2] want = {4,11}> { y = Add(a, b) }");
    holds(
        "<uint8[2] a = {255,1}, uint8 b = {2}, uint8[2] want = {252,4}> { y = BitShift<direction = \"LEFT\">(a, b) }",
    );
    holds("<int64[2,2] a = {1,2,3,4}, int64[1] i = {0}, int64[1,2] want = {3,8}> { y = ReduceProd(a, i) }");
    holds("<int64[2,2] a = {1,2,3,4}, int64 want = {10}> { y = ReduceSum<keepdims = 0>(a) }");
    holds("<float[2,2] a = {1,2,3,-4}, int64[1] i = {1}, float[2,1] want = {1,-4}> { y = ReduceMin(a, i) }");
    holds("<bool[2] a = {1,0}, bool[1] b = {1}, bool[2] want = {0,1}> { y = Xor(a, b) }");
    holds("<string[2] a = {\"x\",\"y\"}, string b = {\"y\"}, bool[2] want = {0,1}> { y = Equal(a, b) }");
}

#[test]
fn rounds_floats_once() {
    holds("<float a = {1}, float b = {3}, float want = {0.33333334}> { y = Div(a, b) }");
    holds("<float16 a = {1}, float16 b = {3}, float16 want = {0.33325195}> { y = Div(a, b) }");
    holds("<float[2] a = {2,9}, float[2] want = {1.4142135,3}> { y = Sqrt(a) }");
    holds(
        "<float[2] a = {2,24}, float b = {-0.5}, float[2] want = {0.70710677,0.20412415}> { y = Pow(a, b) }",
    );
    holds("<float[4] a = {0.5,1.5,-0.5,2.5}, float[4] want = {0,2,-0.0,2}> { y = Round(a) }");
    holds(
        "<float[3] a = {-5,0.5,9}, float l = {-1}, float h = {1}, float[3] want = {-1,0.5,1}> { y = Clip(a, l, h) }",
    );
    holds("<double a = {5.5}, double b = {-3}, double want = {2.5}> { y = Mod<fmod = 1>(a, b) }");
}

#[test]
fn casts_with_truncation_wrapping_and_rounding() {
    let cast = |from: &str, to: i64, want: &str| {
        holds(&format!("<{from}, {want}> {{ y = Cast<to = {to}>(x) }}"));
    };
    cast("float[3] x = {1.9,-1.9,0}", 7, "int64[3] want = {1,-1,0}");
    cast("float[3] x = {0.5,-0.0,3}", 9, "bool[3] want = {1,0,1}");
    cast("int64[2] x = {300,-129}", 3, "int8[2] want = {44,127}");
    cast("int64[1] x = {9007199791611905}", 1, "float[1] want = {9007200328482816}");
    cast("double[1] x = {65519.9999999}", 10, "float16[1] want = {inf}");
    cast("bool[2] x = {1,0}", 16, "bfloat16[2] want = {1.0,0.0}");
    cast("uint4[2] x = {15,1}", 6, "int32[2] want = {15,1}");
}

#[test]
fn skips_cases_in_which_engines_differ() {
    let skips = |source: &str| assert!(matches!(refused(source), EvalError::NotHere(_)), "{source}");
    skips("<float[1] x = {3e9}> { y = Cast<to = 6>(x) }");
    skips("<float[1] x = {nan}> { y = Cast<to = 6>(x) }");
    skips("<float[2] x = {0,-0.0}> { y = ReduceMax(x) }");
    skips("<float[1] x = {-0.0}> { y = Relu(x) }");
    skips("<float[1] x = {-1}> { y = Sqrt(x) }");
    skips("<float[1] x = {-1}, float b = {0.5}> { y = Pow(x, b) }");
    skips("<float[1] x = {2}, float b = {0.3}> { y = Pow(x, b) }");
    skips("<float[1] x = {2}, int64 b = {2}> { y = Pow(x, b) }");
    skips("<int64[1] x = {9223372036854775807}> { y = Add(x, x) }");
    skips("<int64[1] x = {1}, int64[1] z = {0}> { y = Div(x, z) }");
    skips("<uint8[1] x = {1}, uint8[1] z = {8}> { y = BitShift<direction = \"LEFT\">(x, z) }");
    skips("<int64[2] x = {1,2}, int64[2] i = {0,0}, int64[2] u = {3,4}> { y = ScatterElements(x, i, u) }");
    skips("<float[2] x = {1,2}> { y = Exp(x) }");
    skips("<float[2] x = {1,2}> { y = ReduceSum(x) }");
    skips("<int64[0] x = {}> { y = Softmax(x) }");
}

#[test]
fn rejects_invalid_and_large_arguments_without_allocating() {
    let wrong = |source: &str| assert!(matches!(refused(source), EvalError::Invalid { .. }), "{source}");
    let large = |source: &str| assert!(matches!(refused(source), EvalError::TooLarge { .. }), "{source}");
    let min = i64::MIN;
    wrong("<int64[2] x = {1,2}, int64[1] i = {2}> { y = Gather(x, i) }");
    wrong(&format!("<int64[2] x = {{1,2}}, int64[1] i = {{{min}}}> {{ y = Gather(x, i) }}"));
    wrong(&format!("<int64[2] x = {{1,2}}, int64[1] i = {{0}}> {{ y = Gather<axis = {min}>(x, i) }}"));
    wrong("<int64[2] x = {1,2}> { y = Transpose<perm = [1]>(x) }");
    wrong("<int64[2,1] x = {1,2}> { y = Transpose<perm = [0,0]>(x) }");
    wrong("<int64[2] x = {1,2}, int64[1] s = {3}> { y = Reshape(x, s) }");
    wrong("<int64[2] x = {1,2}, int64[2] s = {-1,-1}> { y = Reshape(x, s) }");
    wrong(&format!("<int64[2] x = {{1,2}}, int64[2] s = {{{min},{min}}}> {{ y = Reshape(x, s) }}"));
    wrong(&format!("<int64[2] x = {{1,2}}, int64[2] p = {{{min},5}}> {{ y = Pad(x, p) }}"));
    let far = format!("int64[2] p = {{{min},{}}}", i64::MAX);
    holds(&format!("<int64[2] x = {{1,2}}, {far}, int64[1] want = {{0}}> {{ y = Pad(x, p) }}"));
    wrong("<int64[2] x = {1,2}, int64[1] a = {7}> { y = Unsqueeze(x, a) }");
    wrong("<int64[2] x = {1,2}> { y = Split<axis = 3>(x) }");
    wrong("<int64[2] x = {1,2}, int64[1] p = {9}> { y = Split(x, p) }");
    wrong("<int64[2] x = {1,2}, float[2] z = {1,2}> { y = Add(x, z) }");
    wrong("<int64[2] x = {1,2}> { y = Add(x) }");
    wrong("<int64[1,1,1,1] x = {1}> { y = DepthToSpace<blocksize = 4611686018427387904>(x) }");
    wrong("<int64[1] s = {-1}> { y = ConstantOfShape(s) }");
    large(&format!("<int64[2] s = {{{max},{max}}}> {{ y = ConstantOfShape(s) }}", max = i64::MAX));
    large(&format!("<int64[1] x = {{1}}, int64[1] s = {{{}}}> {{ y = Expand(x, s) }}", i64::MAX));
    large(&format!("<int64[1] x = {{1}}, int64[1] s = {{{}}}> {{ y = Tile(x, s) }}", i64::MAX));
    large(&format!(
        "<int64 a = {{{min}}}, int64 b = {{{}}}, int64 c = {{1}}> {{ y = Range(a, b, c) }}",
        i64::MAX
    ));
    large(&format!("<int64[2] x = {{1,2}}, int64[2] p = {{{},0}}> {{ y = Pad(x, p) }}", i64::MAX - 2));
    large("<float a = {0}, float b = {1e30}, float c = {1}> { y = Range(a, b, c) }");
    large("<string[1] x = {\"s\"}, int64[1] s = {1000}> { y = Expand(x, s) }");
}

#[test]
fn traces_labels_of_elements() {
    let source = "<float[2,2] x = {0,0,0,0}, int64[4] p = {1,0,0,0}, float v = {5}> { y = Pad(x, p, v) }";
    let graph = graph(source, 18);
    let at = graph.at(graph.nodes()[0]);
    let labels = Tensor::from_slice(&[2, 2], &[10_i64, 11, 12, 13]).unwrap();
    let given: Vec<_> = at.inputs().iter().map(|v| v.unwrap().value().tensor()).collect();
    let traced = trace(at, &[Some(&labels), given[1], given[2]], 1 << 10).unwrap();
    assert_eq!(traced[0], Tensor::from_slice(&[3, 2], &[-1_i64, -1, 10, 11, 12, 13]).unwrap());

    let add = self::graph("<int64[1] x = {1}> { y = Add(x, x) }", 18);
    let at = add.at(add.nodes()[0]);
    assert!(matches!(trace(at, &[Some(&labels), Some(&labels)], 1 << 10), Err(EvalError::NotHere(_))));
}
