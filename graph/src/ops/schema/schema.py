"""Write schema.txt: every operator of the ONNX standard in all its versions, one line each.

    python schema.py > schema.txt        # needs the `onnx` package; the file's first line names its version

    Conv 11 X:T W:T B:T? -> Y:T | auto_pad:string="NOTSET" group:int=1 pads:ints | T=float
    name    inputs          outputs attributes                                     types of the type variables

An input or output is `name:type` with `?` optional, `+` one or more, `*` any number, and `~` after these if their
types may differ. An attribute is `name:kind` with `!` if it is required, else `=default` in JSON if it has a default.
A type is a list of element types and groups (below); `seq(…)`, `optional(…)`, `optional_seq(…)`, `sparse(…)` wrap
one, `map` is any map. The version is followed by `deprecated` if models must no longer use the operator and it has no
function body, by which engines still run it.

ENGINE adds operators that ONNX Runtime registers in the standard domain, and writes there.
"""

import json
import re
from collections import defaultdict

import numpy
import onnx
from onnx import defs

GROUPS = {
    "floats": ["float16", "float", "double"],
    "ints": ["int8", "int16", "int32", "int64"],
    "uints": ["uint8", "uint16", "uint32", "uint64"],
    "complexes": ["complex64", "complex128"],
    "float8s": ["float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz"],
    "int4s": ["int4", "uint4"],
    "int2s": ["int2", "uint2"],
    "float6s": ["float6e2m3", "float6e3m2"],
}
WRAPS = {
    "tensor(": "",
    "seq(tensor(": "seq",
    "optional(tensor(": "optional",
    "optional(seq(tensor(": "optional_seq",
    "sparse_tensor(": "sparse",
}

# Operators that were experimental in old standards, and normalizations from before the standard had them.
ENGINE = """
Affine 1 X:T -> Y:T | alpha:float=1.0 beta:float=0.0 | T=floats
Affine 10 deprecated X:T -> Y:T | alpha:float=1.0 beta:float=0.0 | T=floats
Crop 1 input:T -> output:T | border:ints scale:ints | T=floats
Crop 10 deprecated input:T -> output:T | border:ints scale:ints | T=floats
ImageScaler 1 input:T -> output:T | bias:floats scale:float=1.0 | T=floats
ImageScaler 10 deprecated input:T -> output:T | bias:floats scale:float=1.0 | T=floats
LayerNormalization 1 X:T Scale:V B:V? -> Y:V Mean:U? InvStdDev:U? | axis:int=-1 epsilon:float=1e-05 stash_type:int=1 | T=floats,bfloat16 U=floats,bfloat16 V=floats,bfloat16
ParametricSoftplus 1 X:T -> Y:T | alpha:float beta:float | T=floats
ParametricSoftplus 10 deprecated X:T -> Y:T | alpha:float beta:float | T=floats
Scale 1 input:T -> output:T | scale:float=1.0 | T=floats
Scale 10 deprecated input:T -> output:T | scale:float=1.0 | T=floats
ScaledTanh 1 input:T -> output:T | alpha:float beta:float | T=floats
ScaledTanh 10 deprecated input:T -> output:T | alpha:float beta:float | T=floats
SimplifiedLayerNormalization 1 X:T scale:V -> Y:V inv_std_var:U? | axis:int=-1 epsilon:float=1e-05 stash_type:int=1 | T=floats,bfloat16 U=floats,bfloat16 V=floats,bfloat16
"""


def types(strings):
    """A set of type strings as groups and single names."""
    by_wrap = defaultdict(set)
    for text in strings:
        if "map(" in text:
            by_wrap["map"].add("")
            continue
        start, name, _ = re.fullmatch(r"((?:\w+\()+)(\w+)(\)+)", text).groups()
        by_wrap[WRAPS[start]].add(name)
    parts = []
    for wrap, names in sorted(by_wrap.items()):
        words = []
        for group, members in GROUPS.items():
            if names.issuperset(members):
                words.append(group)
                names = names.difference(members)
        words = ",".join(words + sorted(names))
        parts.append(words if wrap == "" else "map" if wrap == "map" else f"{wrap}({words})")
    return ",".join(parts)


def formal(param):
    many = "*" if param.min_arity == 0 else "+"
    mark = {"Single": "", "Optional": "?", "Variadic": many}[param.option.name]
    if not param.is_homogeneous:
        mark += "~"
    is_type = "(" in param.type_str
    return f"{param.name}:{types([param.type_str]) if is_type else param.type_str}{mark}"


def plain(value):
    """A default as a JSON value: text for bytes, the shortest decimal for a float."""
    if isinstance(value, list):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return float(str(numpy.float32(value)))
    return value.decode() if isinstance(value, bytes) else value


def attribute(attr):
    kind = attr.type.name.lower().replace("type_proto", "type")
    text = f"{attr.name}:{kind}"
    if attr.required:
        return text + "!"
    if attr.default_value.type:
        value = onnx.helper.get_attribute_value(attr.default_value)
        if isinstance(value, (onnx.TensorProto, onnx.GraphProto, onnx.TypeProto)):
            return text  # a placeholder, not a default
        text += "=" + json.dumps(plain(value), separators=(",", ":"))
    assert not re.search(r"[\s|]", text), text
    return text


def line(schema):
    has_body = schema.has_function or schema.has_context_dependent_function
    deprecated = schema.deprecated and not has_body
    head = [schema.name, str(schema.since_version)] + ["deprecated"] * deprecated
    ins, outs = ([formal(p) for p in params] for params in (schema.inputs, schema.outputs))
    attrs = [attribute(schema.attributes[name]) for name in sorted(schema.attributes)]
    variables = [f"{c.type_param_str}={types(c.allowed_type_strs)}" for c in schema.type_constraints]
    parts = [" ".join(head + ins + ["->"] + outs), " ".join(attrs), " ".join(variables)]
    return " | ".join(parts).rstrip(" |")


def main():
    print(f"# Operators of onnx {onnx.__version__}, written by schema.py, which explains the lines.")
    for group, members in GROUPS.items():
        print(f"group {group}={','.join(members)}")
    newest_opsets = defaultdict(int, {"": defs.onnx_opset_version()})
    by_domain = defaultdict(list)
    for schema in defs.get_all_schemas_with_history():
        by_domain[schema.domain].append(schema)
    for domain, schemas in sorted(by_domain.items()):
        # The newest operator set of the domain.
        newest = max(newest_opsets[domain], *(s.since_version for s in schemas))
        print(f"domain {domain or 'ai.onnx'} {newest}")
        lines = [line(schema) for schema in schemas]
        if domain == "":
            lines += ENGINE.strip().splitlines()
        for text in sorted(lines, key=lambda text: (text.split()[0], int(text.split()[1]))):
            print(text)


main()
