"""Writes small models of the kinds that the proof judges most often: `small_models.py FOLDER COUNT`.

Half are scikit-learn pipelines converted by skl2onnx (scalers, regressions, classifiers, networks, trees), half are
heads with one output or an amplifying end (regression behind a scaler, critics, CLIP heads, images converted to
uint8, exponentials, logarithms, reciprocals, integers behind a scale).

Needs numpy, onnx, onnxruntime, scikit-learn and skl2onnx. `tests/tests/mutations/small.rs` reads the folder.
"""

import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
from onnx import TensorProto, checker, helper, numpy_helper, save, shape_inference

warnings.filterwarnings("ignore")


class Head:
    """A model of one input under construction."""

    def __init__(self, rng, shape, dtype=np.float32):
        self.rng, self.dtype, self.nodes, self.constants = rng, dtype, [], []
        self.shape, self.at = shape, "x"

    def constant(self, array):
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def number(self, value):
        return self.constant(np.asarray(value, self.dtype))

    def normal(self, *shape, scale=1.0):
        return self.constant((scale * self.rng.standard_normal(shape)).astype(self.dtype))

    def __call__(self, op, *others, first=None, **attributes):
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, [first or self.at, *others], [out], **attributes))
        self.at = out
        return self

    def linear(self, n, m):
        self("MatMul", self.normal(n, m, scale=n**-0.5))
        return self("Add", self.normal(m)) if self.rng.random() < 0.7 else self

    def affine(self, n):
        """The operations of a scaler, in one of several orders."""
        kind = self.rng.integers(4)
        if kind == 0:
            return self("Sub", self.normal(n, scale=3))("Div", self.constant(self.rng.uniform(0.1, 5, n).astype(self.dtype)))
        if kind == 1:
            return self("Mul", self.constant(self.rng.uniform(0.1, 5, n).astype(self.dtype)))("Add", self.normal(n, scale=3))
        if kind == 2:
            return self("Mul", self.number(self.rng.uniform(0.1, 5)))("Sub", self.normal(n))
        return self("Div", self.number(self.rng.uniform(0.1, 5)))

    def model(self, out_type=None, opset=17):
        np_to = {np.float32: TensorProto.FLOAT, np.float64: TensorProto.DOUBLE}
        x = helper.make_tensor_value_info("x", np_to[self.dtype], self.shape)
        y = helper.make_tensor_value_info(self.at, out_type or np_to[self.dtype], None)
        graph = helper.make_graph(self.nodes, "head", [x], [y], self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        return shape_inference.infer_shapes(model)


def scaled_regression(rng):
    n, dtype = int(rng.integers(2, 64)), np.float64 if rng.random() < 0.2 else np.float32
    h = Head(rng, ["N", n], dtype).affine(n).linear(n, 1)
    if rng.random() < 0.4:
        h("Sigmoid")
    return h.model()


def critic(rng):
    n, hidden = int(rng.integers(2, 64)), int(rng.integers(4, 128))
    h = Head(rng, ["N", n]).affine(n).linear(n, hidden)
    h("Relu" if rng.random() < 0.5 else "Tanh").linear(hidden, hidden)
    if rng.random() < 0.5:
        h("Relu")
    return h.linear(hidden, 1).model()


def chain(rng):
    n, hidden = int(rng.integers(16, 512)), int(rng.integers(4, 32))
    return Head(rng, ["N", n]).linear(n, hidden).linear(hidden, 1).model()


def clip_head(rng):
    n, classes = int(rng.integers(16, 256)), int(rng.integers(2, 32))
    h = Head(rng, ["N", n]).linear(n, n)
    features = h.at
    norm = h("ReduceL2", axes=[-1], keepdims=1).at
    h("Div", norm, first=features)("MatMul", h.normal(n, classes, scale=n**-0.5))
    h("Mul", h.number(rng.uniform(20, 100)))
    return (h("Softmax", axis=-1) if rng.random() < 0.7 else h).model()


def to_uint8(rng):
    c = int(rng.integers(1, 8))
    h = Head(rng, ["N", c, int(rng.integers(4, 24)), int(rng.integers(4, 24))])
    h("Conv", h.normal(3, c, 3, 3, scale=0.2), pads=[1, 1, 1, 1])
    if rng.random() < 0.5:
        h("Sigmoid")
    else:
        h("Mul", h.number(0.5))("Add", h.number(0.5))
    h("Mul", h.number(255.0))
    if rng.random() < 0.5:
        h("Add", h.number(0.5))
    elif rng.random() < 0.5:
        h("Round")
    h("Clip", h.number(0.0), h.number(255.0))
    return h("Cast", to=TensorProto.UINT8).model(TensorProto.UINT8)


def amplified(rng):
    n, m = int(rng.integers(4, 64)), int(rng.integers(1, 32))
    h = Head(rng, ["N", n]).affine(n).linear(n, m)
    h("Mul", h.normal(m))("Add", h.normal(m))
    end = rng.integers(5)
    if end == 0:
        h("Exp")
    elif end == 1:
        h("Abs")("Log")
    elif end == 2:
        h("Reciprocal")
    elif end == 3:
        h("Softmax", axis=-1)("Mul", h.number(100.0))
    else:
        h("Abs")("Sqrt")
    return h.model()


def to_integer(rng):
    n, m = int(rng.integers(4, 64)), int(rng.integers(1, 16))
    h = Head(rng, ["N", n]).affine(n).linear(n, m)
    h("Mul", h.number(float(rng.choice([10, 100, 1000]))))
    if rng.random() < 0.4:
        h("Floor" if rng.random() < 0.5 else "Round")
    to = TensorProto.INT32 if rng.random() < 0.5 else TensorProto.INT64
    return h("Cast", to=to).model(to)


def conv_norm(rng):
    c, m = int(rng.integers(1, 8)), int(rng.integers(2, 16))
    h = Head(rng, ["N", c, 8, 8])
    h("Conv", h.normal(m, c, 3, 3, scale=0.3))
    var = h.constant(rng.uniform(0.01, 4, m).astype(np.float32))
    h("BatchNormalization", h.normal(m), h.normal(m), h.normal(m), var)("Relu")("GlobalAveragePool")("Flatten")
    return h.linear(m, 1).model()


HEADS = [scaled_regression, critic, chain, clip_head, to_uint8, amplified, to_integer, conv_norm]


def pipeline(rng):
    from skl2onnx import to_onnx
    from sklearn import decomposition, ensemble, linear_model, naive_bayes, neural_network, pipeline, preprocessing, svm, tree

    n, rows = int(rng.integers(2, 24)), 80
    x = (rng.standard_normal((rows, n)) * rng.uniform(0.1, 20, n) + 10 * rng.standard_normal(n)).astype(np.float32)
    scalers = [
        preprocessing.StandardScaler(), preprocessing.MinMaxScaler(), preprocessing.RobustScaler(),
        preprocessing.MaxAbsScaler(), preprocessing.Normalizer(), preprocessing.PolynomialFeatures(2),
        decomposition.PCA(min(n, 4)),
    ]
    classes = int(rng.integers(2, 5))
    target = rng.standard_normal(n)
    score = (x - x.mean(0)) / x.std(0) @ target
    labels = np.digitize(score, np.quantile(score, np.linspace(0, 1, classes + 1)[1:-1]))
    if rng.random() < 0.3:
        labels = np.asarray(["cat", "dog", "bird", "fish", "frog"])[labels]
    hidden = tuple(int(k) for k in rng.integers(4, 32, int(rng.integers(1, 3))))
    seed = int(rng.integers(1 << 30))
    estimators = [
        (linear_model.LinearRegression(), score), (linear_model.Ridge(), score),
        (linear_model.LogisticRegression(max_iter=50), labels), (svm.LinearSVC(max_iter=50), labels),
        (neural_network.MLPClassifier(hidden_layer_sizes=hidden, max_iter=5, random_state=seed), labels),
        (neural_network.MLPRegressor(hidden_layer_sizes=hidden, max_iter=5, random_state=seed), score),
        (tree.DecisionTreeClassifier(max_depth=5, random_state=seed), labels),
        (ensemble.RandomForestRegressor(4, max_depth=4, random_state=seed), score),
        (ensemble.GradientBoostingClassifier(n_estimators=3, random_state=seed), labels),
        (naive_bayes.GaussianNB(), labels),
    ]
    estimator, y = estimators[rng.integers(len(estimators))]
    steps = [scalers[i] for i in rng.choice(len(scalers), int(rng.integers(0, 3)), replace=False)]
    fitted = pipeline.make_pipeline(*steps, estimator).fit(x, y)
    double = rng.random() < 0.2
    has_probabilities = hasattr(fitted, "predict_proba") and not isinstance(estimator, svm.LinearSVC)
    options = {"zipmap": bool(rng.random() < 0.5)} if has_probabilities else {}
    example = x[:1].astype(np.float64) if double else x[:1]
    return to_onnx(fitted, example, options={id(fitted): options} if options else None, target_opset=17)


def main():
    onnxruntime.set_default_logger_severity(4)
    folder, count = Path(sys.argv[1]), int(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    failed = written = seed = 0
    while written < count:
        seed += 1
        rng = np.random.default_rng(seed)
        kind = pipeline if seed % 2 else HEADS[seed // 2 % len(HEADS)]
        try:
            model = kind(rng)
            checker.check_model(model)
            onnxruntime.InferenceSession(model.SerializeToString())
        except Exception as error:  # some combinations are not converted, or to invalid models
            failed += 1
            print(f"{seed}: {kind.__name__}: {error}", file=sys.stderr)
            continue
        save(model, folder / f"{seed:04}-{kind.__name__}.onnx")
        written += 1
    print(f"{written} models, {failed} not converted")


main()
