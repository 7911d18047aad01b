"""Makes trained ONNX models smaller and faster, and proves it.

    import onnx_pare

    result = onnx_pare.optimize("model.onnx", "small.onnx")
    result.report["proof"]["outcome"]                        # 'equal'

`optimize` runs a pipeline of passes over a model, runs both models in ONNX Runtime, and returns the result only if it
keeps what the passes promise. Models are paths, bytes or `onnx.ModelProto`; samples are paths, arrays by name, iterables
of them, or a `CalibrationDataReader`. Reports are typed dictionaries.

| function | returns |
|---|---|
| `optimize` | the model after a pipeline, with the report and the proof |
| `search` | the fastest or smallest model within limits on quality |
| `verify` | how far the outputs of two models differ |
| `bench` | the latency of models |
| `quantize` | the model in eight bits |
| `calibrate` | statistics of activations, for passes that need samples |
| `inspect`, `text`, `diff` | structure and cost, the graph as text, differences of structure |
| `passes` | the passes and presets |
| `simplify`, `slim` | the model, with the arguments of onnxsim and onnxslim |
| `distributed.calibrate`, `distributed.evaluate` | `calibrate`, and `verify` of several models, on a cluster of Ray or Dask |
"""

from ._api import (
    FunctionStep,
    bench,
    calibrate,
    diff,
    inspect,
    optimize,
    passes,
    quantize,
    search,
    step,
    text,
    verify,
)
from ._drop_in import simplify, slim
from ._errors import PareError, Rejected
from ._models import Model
from ._native import __version__
from ._results import Benchmark, Metric, Result, SearchResult, Verification, page_of
from ._samples import Samples, batches

__all__ = [
    "Benchmark",
    "FunctionStep",
    "Metric",
    "Model",
    "PareError",
    "Rejected",
    "Result",
    "Samples",
    "SearchResult",
    "Verification",
    "__version__",
    "batches",
    "bench",
    "calibrate",
    "diff",
    "inspect",
    "optimize",
    "page_of",
    "passes",
    "quantize",
    "search",
    "simplify",
    "slim",
    "step",
    "text",
    "verify",
]
