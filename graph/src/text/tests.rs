//! Round trips of texts, and frozen results of the official parser.

use super::*;
use crate::{Attribute, Constant, DataType, Dim, Fact};

/// The canonical text of a graph, which must round-trip.
fn canon(source: &str) -> String {
    let once = print_graph(&parse_graph(source, 17).unwrap_or_else(|e| panic!("{e}\n{source}")));
    let again = print_graph(&parse_graph(&once, 17).unwrap_or_else(|e| panic!("{e}\n{once}")));
    assert_eq!(again, once);
    once
}

/// The canonical text of a node.
fn node(node: &str) -> String {
    let text = canon(&format!("g () => () {{ {node} }}"));
    text.strip_prefix("g () => () {\n   ").unwrap().strip_suffix("\n}\n").unwrap().into()
}

/// The canonical text of an initializer.
fn initializer(entry: &str) -> String {
    let text = canon(&format!("g () => () <{entry}> {{}}"));
    text.strip_prefix("g () => () <\n   ").unwrap().strip_suffix("\n> {\n}\n").unwrap().into()
}

fn message(source: &str) -> String {
    parse_graph(source, 17).unwrap_err().to_string()
}

#[test]
fn graphs_round_trip() {
    let text = "\
net (float[N,2] x, float[2] w = {1,0.5}) => (float[N,2] \"out/y\", b) <
   int64 k = {3},
   float[N,2] \"onnx::Mul_1\",
   float[] deep
> {
   \"onnx::Mul_1\" = Mul(x, w)
   [\"/act/LeakyRelu\"] \"out/y\" = LeakyRelu<alpha = 0.1>(\"onnx::Mul_1\")
   \"\", b = com.microsoft.Odd:v2(\"\", k, \"\")
   deep = If(b) <then_branch = then () => (float[2] t) {
      t = Neg(w)
   }, else_branch = other () => (e) <
      float[1] c = {2}
   > {
      e = Add(c, x)
   }>
   = Sink(deep)
}
";
    assert_eq!(canon(text), text);
    let graph = parse_graph(text, 17).unwrap();
    let value = |name: &str| graph.value(graph.find(name).unwrap());
    assert_eq!(value("x").fact, Fact::tensor(DataType::Float, vec![Dim::symbol("N"), Dim::from(2)]));
    assert!(value("x").is_input() && value("w").is_input() && value("out/y").is_output());
    assert!(matches!(&value("w").data, Some(Constant::Dense(t)) if t.to_f64().unwrap() == [1.0, 0.5]));
    // The caller may override `w`, so only its type is known; `k` is constant.
    assert_eq!((value("w").fact.content(), value("k").fact.content()), (None, Some(&[Dim::from(3)][..])));
    assert_eq!(value("deep").fact.shape(), None);
    let branch = graph.nodes()[3];
    let captured: Vec<_> = graph.captured_by(branch).iter().map(|&v| graph.value(v).name.as_str()).collect();
    assert_eq!(captured, ["w", "x"], "initializers were there first");
    assert_eq!(graph.inputs_of(graph.nodes()[2]).len(), 3);
    assert_eq!(graph.opset(""), Some(17));
}

#[test]
fn parses_variants_of_nodes() {
    assert_eq!(node("[n]y=Op(x)<a=1>"), "[n] y = Op<a = 1>(x)");
    assert_eq!(node("y = Op(, x,) # a trailing comma is ignored\n"), "y = Op(\"\", x)");
    assert_eq!(node("y, = ai.onnx.ml.Op(,)"), "y = ai.onnx.ml.Op(\"\")");
    assert_eq!(node("[] y = Op()"), "[\"\"] y = Op()");
    assert_eq!(
        node("\"float\" = Op(\"nan\", \"say \\\"a\\\\b\\\"\")"),
        "\"float\" = Op(\"nan\", \"say \\\"a\\\\b\\\"\")"
    );
    assert_eq!(
        node("y = \"my-domain\".\"op 1\":\"v/2\"<\"a/b\" = 1>()"),
        "y = \"my-domain\".\"op 1\":\"v/2\"<\"a/b\" = 1>()"
    );
    let later = canon("g () => () { b = Neg(a) a = Op() }");
    assert_eq!(later, "g () => () {\n   a = Op()\n   b = Neg(a)\n}\n");
}

#[test]
fn attributes_round_trip() {
    let same =
        |attribute: &str| assert_eq!(node(&format!("= Op<{attribute}>()")), format!("= Op<{attribute}>()"));
    same("i = -9223372036854775808, f = 1.0, s = \"a\nb\\\\\\\"\", e = \"\"");
    same("is = [1, -2], fs = [0.1, 1e-10, -inf, nan], ss = [\"a\", \"\"]");
    same(
        "a: ints = [], b: floats = [], c: strings = [], d: tensors = [], e: graphs = [], f: type_protos = []",
    );
    same(
        "t = float[2,1] {1,2}, u = int64 {3}, v = bool[1] named {1}, w = float[1] \"a/b\" {0}, x = uint8[0] {}",
    );
    same("ts: tensors = [float[1] {1}, int32 {2}], tp = float[2], tps: type_protos = [seq(float), int64[]]");
    same("sp = sparse_tensor(float[3,3]) {float[1] {2}, int64[1] {4}}");
    same("r: ints = @axes, r2 = @alpha, r3: graph = @\"odd name\", n: undefined");
    same("raw = b\"\\xff\\\\\\\"a\", raws = [\"x\", b\"\\x00\\xfe\"], bits = nan(0x7fc00001), neg = -nan");
    same("u = optional(seq(map(int64, string[N]))), o = opaque(), p = opaque(a.b), q = opaque(a.b, c)");
    same("open = ?[N,2], none = ?(), bare = seq(), key = map(?), sp = sparse_tensor(double[])");
    let graphs =
        "= Op() <g = \"a/b\" () => () {\n   }, gs: graphs = [h () => () {\n   }, k () => () {\n   }]>";
    assert_eq!(node(graphs), graphs);
    assert_eq!(node("= Op<a: float = 3, b: floats = [1, 2.5]>()"), "= Op<a = 3.0, b = [1.0, 2.5]>()");
    assert_eq!(node("= Op<a: undefined = @x, b: tensor = float = {1}>()"), "= Op<a = @x, b = float {1}>()");
    let graph = parse_graph("g () => () { = Op<r: ints = @x, f = -0.0, s = b\"\\xff\">() }", 17).unwrap();
    let attributes = &graph.node(graph.nodes()[0]).attributes;
    assert_eq!(attributes["r"], Attribute::Reference { name: "x".into(), kind: 7 });
    assert_eq!(attributes["f"], Attribute::Float(-0.0));
    assert_eq!(attributes["s"], Attribute::String(bytes::Bytes::from_static(&[0xff])));
}

#[test]
fn tensors_round_trip() {
    let same = |entry: &str| assert_eq!(initializer(entry), entry);
    same("float[7] w = {0.1,-0,1e-45,3.4028235e38,inf,-nan,nan(0xffc00001)}");
    same("double[3] w = {0.1,5e-324,nan}");
    same("int8[2] w = {-128,127}");
    same("uint8[2] w = {0,255}");
    same("int16[2] w = {-32768,32767}");
    same("uint16[1] w = {65535}");
    same("int32[2] w = {-2147483648,2147483647}");
    same("uint32[1] w = {4294967295}");
    same("int64[2] w = {-9223372036854775808,9223372036854775807}");
    same("uint64[1] w = {18446744073709551615}");
    same("bool[2,1] w = {1,0}");
    same("string[3] w = {\"a\",\"\",b\"\\xff\"}");
    same("float16[2] w = {15360,1}");
    same("bfloat16 w = {16256}");
    same("float8e4m3fn[2] w = {0,255}");
    same("float8e8m0[1] w = {127}");
    same("complex64[2] w = {1,-2,0.5,inf}");
    same("complex128 w = {1,2}");
    same("int4[3] w = {-8,7,-1}");
    same("uint4[3] w = {15,0,1}");
    same("int2[5] w = {-2,-1,0,1,-2}");
    same("uint2[4] w = {3,2,1,0}");
    same("float4e2m1[2] w = {15,1}");
    same("float6e2m3[5] w = {63,1,32,0,7}");
    same("sparse_tensor(float[9]) w = {float[2] {1,2}, int64[2] {0,8}}");
    assert_eq!(initializer("float16[3] w = {1.0, 6e-8, -inf}"), "float16[3] w = {15360,1,64512}");
    assert_eq!(initializer("bfloat16 w = {1.0}"), "bfloat16 w = {16256}");
    let int4 = parse_graph("g () => () <int4[3] w = {-8,7,-1}> {}", 21).unwrap();
    let tensor = int4.value(int4.find("w").unwrap()).tensor().unwrap();
    assert_eq!((&tensor.bytes()[..], tensor.to_i64().unwrap()), (&[0x78, 0x0f][..], vec![-8, 7, -1]));
}

#[test]
fn keeps_the_order_of_initializers() {
    // `a` comes before `b` in the file, but after it among the inputs.
    let text = "g (float b, float a) => () <\n   float a = {1},\n   float b = {2}\n> {\n}\n";
    assert_eq!(canon(text), text);
    // The type of the input is not that of the value.
    let text = "g (float[N] a) => () <\n   float[1] a = {1}\n> {\n}\n";
    assert_eq!(canon(text), text);
    let text = "g (float a = {1}, float x, float b = {2}) => () <\n   float c = {3},\n   float a\n> {\n}\n";
    assert_eq!(canon(text), text);
}

#[test]
fn shortened_tensors_show_first_elements() {
    let text = "g () => () <float[4] w = {1,2,3,4}, float16[2] h = {15360,1}, int64[0] e = {}> {}";
    let graph = parse_graph(text, 17).unwrap();
    let dump = |n| print_graph_with(&graph, PrintOptions { max_elements: Some(n) });
    let shown = "g () => () <\n   float[4] w = {1,2,... of 4},\n   float16[2] h = {1.0,5.9604645e-8},\n   int64[0] e = {}\n> {\n}\n";
    assert_eq!(dump(2), shown);
    assert!(dump(0).contains("w = {... of 4}"));
    assert_eq!(canon(&dump(4)), print_graph(&graph));
    assert_eq!(message(&dump(2)), "line 2, column 22: expected a number, found `.`");
}

#[test]
fn reports_expected_token_and_position() {
    let cases = [
        ("", "line 1, column 1: expected the name of a graph, found the end of the text"),
        ("g (float[2] x) -> (y) {}", "line 1, column 16: expected `=>`, found the number -"),
        ("g () => () {\n  y = Relu(x y)\n}", "line 2, column 14: expected `)`, found `y`"),
        ("g () => () { y = Relu(x)", "line 1, column 25: expected `=`, found the end of the text"),
        ("g () => () {} x", "line 1, column 15: expected the end of the text, found `x`"),
        ("g () => () { € = Op() }", "line 1, column 14: '€' is not a character of the syntax"),
        ("é", "line 1, column 1: 'é' is not a character of the syntax"),
        ("g () => () { \"é\" = \"abc", "line 1, column 20: the string that starts here is not closed"),
        ("g () => () { = Op<a = []>() }", "line 1, column 23: the empty list `a` needs a type"),
        ("g () => () { = Op<a = [1, 1.0]>() }", "line 1, column 23: the values of `a` have different types"),
        ("g () => () { = Op<a: float = \"x\">() }", "line 1, column 30: `a` is not of type float"),
        ("g () => () { = Op<a: ints = 1>() }", "line 1, column 29: `a` is not of type ints"),
        (
            "g () => () { = Op<a: number = 1>() }",
            "line 1, column 22: expected the type of an attribute, found `number`",
        ),
        ("g () => () { = Op<a = 1, a = 2>() }", "line 1, column 26: the node has two attributes `a`"),
        (
            "g () => () { = Op<a = 1e39>() }",
            "line 1, column 23: expected a number in the range of its type, found the number 1e39",
        ),
        (
            "g () => () <float[3] w = {1, 2}> {}",
            "line 1, column 22: `w` has a different number of elements than its shape [3]",
        ),
        (
            "g () => () <float[N] w = {1}> {}",
            "line 1, column 22: `w` has a value, so its sizes must be numbers",
        ),
        (
            "g () => () <float[] w = {1}> {}",
            "line 1, column 21: `w` has a value, so its type must be a tensor of known element type and rank",
        ),
        ("g () => () <w = {1}> {}", "line 1, column 13: `w` has a value but no type"),
        (
            "g () => () <float[1] w = [\"location\": \"w.bin\"]> {}",
            "line 1, column 22: `w` has external data, which the textual syntax does not support",
        ),
        (
            "g () => () <uint8[1] w = {256}> {}",
            "line 1, column 27: expected an integer from 0 to 255 (uint8), found the number 256",
        ),
        (
            "g () => () <float16[2] w = {1.0, 1}> {}",
            "line 1, column 34: expected a number with a point or an exponent, like the first one, found the number 1",
        ),
        ("g (float x) => (int64 x) {}", "line 1, column 23: `x` is declared with two types"),
        ("g (x, x) => () {}", "line 1, column 7: two values are named `x`"),
        ("g (x) => () {\n x = Op() }", "line 2, column 2: `x` has two producers, the graph's inputs and Op"),
        (
            "g () => () { [a] x = Op() [b] x = Op() }",
            "line 1, column 27: `x` has two producers, Op `a` and Op `b`",
        ),
        ("g () => () { x, x = Op() }", "line 1, column 14: two values are named `x`"),
    ];
    for (source, wanted) in cases {
        assert_eq!(message(source), wanted, "{source}");
    }
    let model = parse_model("<ir_version: 8, colour: 3> g () => () {}").unwrap_err();
    assert_eq!(model.to_string(), "line 1, column 17: a model has no `colour`");
}

#[test]
fn rejects_hostile_text_without_large_allocations() {
    let big = "g () => () <float[99999999999,99999999999] w = {1}, int8[4000000000] v = {}> {}";
    assert!(message(big).contains("has a different number of elements"));
    assert!(message("g () => () <float[-1] w = {1}> {}").contains("sizes must be numbers"));
    let depth = 100_000;
    let types = format!("g ({}float) => () {{}}", "seq(".repeat(depth));
    assert_eq!(message(&types), "line 1, column 256: graphs and types are nested deeper than 64");
    let graphs = format!("g () => () {{ {}", "= If<b = g () => () {".repeat(depth));
    assert!(message(&graphs).ends_with("nested deeper than 64"));
    let fine = format!("g () => () {{ {}{} }}", "= If<b = g () => () {".repeat(60), "}>(x)".repeat(60));
    assert_eq!(canon(&fine).matches("If").count(), 60);
}

/// Deletes, duplicates and swaps parts of a text with nearly all features.
#[test]
fn parser_does_not_panic() {
    let mut random = fastrand::Rng::with_seed(3);
    for _ in 0..3_000 {
        let mut bytes = OFFICIAL.as_bytes().to_vec();
        for _ in 0..random.usize(1..6) {
            let (from, length) = (random.usize(..bytes.len() - 20), random.usize(1..20));
            match random.u8(..4) {
                0 => drop(bytes.drain(from..from + length)),
                1 => bytes[from] = random.u8(..),
                2 => bytes.swap(from, from + length),
                _ => {
                    let piece = bytes[from..from + length].to_vec();
                    let to = random.usize(..bytes.len());
                    bytes.splice(to..to, piece);
                }
            }
        }
        if let Ok(model) = parse_model(&String::from_utf8_lossy(&bytes)) {
            let printed = print_model(&model);
            let again = parse_model(&printed).unwrap_or_else(|e| panic!("{e}\n{printed}"));
            assert_eq!(print_model(&again), printed);
        }
    }
}

#[test]
fn long_chains_round_trip() {
    let line = |i| format!("   [\"/n/{i}\"] x{} = Op<axis = {i}, pads = [0, 1]>(x{i})\n", i + 1);
    let nodes: String = (0..20_000).map(line).collect();
    let text = format!("g (float[2] x0) => (float[2] x20000) {{\n{nodes}}}\n");
    let graph = parse_graph(&text, 17).unwrap();
    assert_eq!(graph.node_count(), 20_000);
    assert_eq!(print_graph(&graph), text);
}

// ---- the same as the official parser

/// onnx 1.23.2 reads this and [`PRINTED`] to the same bytes.
const OFFICIAL: &str = include_str!("tests/official.txt");
const PRINTED: &str = include_str!("tests/printed.txt");

#[test]
fn official_parser_reads_printed_text() {
    let model = parse_model(OFFICIAL).unwrap();
    assert_eq!(print_model(&model), PRINTED);
    assert_eq!(print_model(&parse_model(PRINTED).unwrap()), PRINTED);
    assert_eq!(model.ir_version, Some(10));
    assert_eq!(model.graph.opset("this.is.mine"), Some(1));
    assert_eq!(model.doc.as_deref(), Some("two\nlines"));
    assert_eq!(model.metadata("pipeline"), Some("a{b=1},(c)*"));
    let function = model.function("this.is.mine", "fun", "over").unwrap();
    assert_eq!((&function.attributes[..], function.defaults.len()), (&["alpha".to_owned()][..], 2));
    assert!(function.body.is_function);
    assert_eq!(function.body.doc.as_deref(), Some("a function"));
    let z = function.body.find("z").unwrap();
    assert_eq!(function.body.value(z).fact, Fact::tensor(DataType::Float, vec![Dim::from(2)]));
}
