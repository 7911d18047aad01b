"""The types of reports. They are dictionaries; `cli/REPORTS.md` in the source describes their fields."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

Effect = Literal["exact", "rounding", "lossy"]
Measure = Literal["classes", "cosine", "error", "exact", "ignore"]


class ModelSize(TypedDict):
    """The size of a model."""

    nodes: int
    parameters: int
    macs: int
    bytes: int | None


# The name of the first field is a keyword.
_StepReport = TypedDict(
    "_StepReport",
    {
        "pass": str,
        "effect": Effect,
        "patches": int,
        "counts": dict[str, int],
        "declined": dict[str, int],
        "notes": list[str],
        "interface": list[str],
        "figures": dict[str, Any],
        "time": float,
    },
)


class StepReport(_StepReport, total=False):
    """The effect of one pass; `within` is the pass that ran it as a nested step."""

    within: str


class OutputDifference(TypedDict):
    """The differences of one output."""

    name: str
    max_abs: float | None
    max_rel: float | None
    cosine: float | None
    snr_db: float | None
    top1_agreement: float | None
    differing: int
    misplaced: int
    count: int
    mismatch: str | None
    floor_abs: float | None
    deployed_max_abs: float | None


class OutputQuality(TypedDict):
    """The quality of one output by its measure."""

    output: str
    measure: Measure
    why: str
    samples: int
    drift: float | None
    agreement: float | None
    disagreement_limit: float | None
    kl: float | None
    cosine: float | None
    same_nearest: float | None
    nmse: float | None
    reference_accuracy: float | None
    candidate_accuracy: float | None


class Comparison(TypedDict):
    """The comparison of two models."""

    outcome: Literal["equal", "differs", "unproven"]
    why: str | None
    engine: str
    samples: int
    skipped: int
    outputs: list[OutputDifference]
    metrics: list[OutputQuality]
    notes: list[str]


class StageProof(Comparison):
    """The comparison of the models before and after a pass."""

    passes: str
    effect: Effect


class Proof(Comparison):
    """The comparison of the result with the original."""

    effect: Effect
    failures: list[str]
    guilty: str | None
    each: list[StageProof]


class Quartiles(TypedDict):
    """The middle half of measurements."""

    low: float
    median: float
    high: float


class Latency(TypedDict):
    """The latency of the original and of the result, in seconds."""

    batch: int
    threads: int
    provider: str
    rounds: int
    before: Quartiles
    after: Quartiles
    speed: Quartiles
    slower: bool
    reasons: list[str]


class WeightStatistics(TypedDict):
    """Statistics of the weights before and after."""

    density: tuple[float, float]
    zstd_bytes: tuple[int, int]


class _Detailed(TypedDict, total=False):
    details: dict[str, Any]


class OptimizeReport(_Detailed):
    """The report of `optimize`."""

    schema: int
    model: str | None
    output: str | None
    written: bool
    pipeline: str
    before: ModelSize
    after: ModelSize
    steps: list[StepReport]
    rounds: int
    unfinished: bool
    proof: Proof | None
    seconds: float
    weights: WeightStatistics | None
    latency: Latency | None


class Measured(TypedDict):
    """Cost and quality of a candidate of a search."""

    latency: tuple[float, float, float] | None
    bytes: int
    macs: int
    cost: float
    drift: float | None
    agreement: float | None
    accuracy_drop: float | None
    metric_drop: float | None


class Trial(TypedDict, total=False):
    """A candidate of a search: either `measured`, or `skipped` with the reason."""

    pipeline: str
    strengths: list[int]
    samples: int
    seconds: float
    measured: Measured
    skipped: str


class SearchLimits(TypedDict):
    """The limits of a search."""

    accuracy_drop: float | None
    agreement: float | None
    drift: float | None
    metric_drop: float | None


class Family(TypedDict):
    """A family of passes in a search."""

    name: str
    trials: int
    skipped: str | None


class SearchReport(TypedDict):
    """The report of `search`."""

    schema: int
    model: str | None
    goal: Literal["latency", "bytes", "macs"]
    limits: SearchLimits
    pipeline: str
    best: Trial | None
    confidence: float | None
    latency: tuple[float, float, float] | None
    samples: int
    metric: float | None
    trials: list[Trial]
    front: list[int]
    families: list[Family]
    resumed: int
    end: Literal["finished", "budget", "cancelled"]
    batch: int
    threads: int
    provider: str
    result: OptimizeReport
    seconds: float


class TensorDrift(TypedDict):
    """The drift of one tensor."""

    name: str
    operator: str
    drift: float | None


class _Layered(TypedDict, total=False):
    layers: list[TensorDrift]


class VerifyReport(Comparison, _Layered):
    """The report of `verify`."""

    schema: int
    verdict: Literal["agree", "differ"]
    failures: list[str]


class Timing(TypedDict):
    """The latency of one model, in seconds; ratios are to the first model."""

    model: str | None
    median_s: float
    low_s: float
    high_s: float
    ratio: float
    ratio_low: float
    ratio_high: float


class BenchReport(TypedDict):
    """The report of `bench`."""

    schema: int
    engine: str
    threads: int
    provider: str
    batch: int
    rounds: int
    models: list[Timing]


class LayerCost(TypedDict):
    """The cost of one node."""

    name: str
    output: str
    params: int
    macs: int | None


class Inspection(TypedDict):
    """The result of `inspect`."""

    schema: int
    model: str | None
    bytes: int
    nodes: int
    opsets: dict[str, int]
    parameters: int
    weight_bytes: int
    macs: int
    activation_peak: int
    operators: dict[str, int]
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    layers: list[LayerCost]


class CalibrationReport(TypedDict):
    """The result of `calibrate`."""

    operators: int
    samples: int
    rows: int
    bytes: int


class PropertyChange(TypedDict):
    """A property that differs."""

    name: str
    before: str | None
    after: str | None


class NodeChange(TypedDict):
    """A node that differs."""

    node: str
    changes: list[str]


class NodeDiff(TypedDict):
    """The differences of nodes."""

    equal: int
    added: list[str]
    removed: list[str]
    changed: list[NodeChange]
    operators: dict[str, int]


class WeightChange(TypedDict):
    """A weight that differs."""

    name: str
    before: str
    after: str
    max_abs: float | None
    max_rel: float | None
    differing: int | None


class WeightDiff(TypedDict):
    """The differences of weights."""

    equal: int
    added: list[str]
    removed: list[str]
    renamed: list[tuple[str, str]]
    changed: list[WeightChange]


class ModelDiff(TypedDict):
    """The result of `diff`."""

    schema: int
    properties: list[PropertyChange]
    interface: list[PropertyChange]
    nodes: NodeDiff
    weights: WeightDiff


class OptionInfo(TypedDict):
    """An option of a pass."""

    name: str
    type: str
    default: str
    docs: str


class PassInfo(TypedDict):
    """A pass, or a preset, which has a `text` instead of an effect and options."""

    name: str
    effect: Effect | None
    docs: str
    options: list[OptionInfo]
    text: str | None
