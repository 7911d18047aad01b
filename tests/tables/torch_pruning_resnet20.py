"""cifar-resnet20 rebuilt in PyTorch, pruned by Torch-Pruning to a share of its MACs, and exported again.

    python3 tests/tables/torch_pruning_resnet20.py MODEL.onnx OUT.onnx SHARE [UNLABELLED.npz EPOCHS]

Groups are ranked by their norm over the whole network (DepGraph, Fang et al. 2023), numbers of channels are multiples of
eight. With samples, the result is trained towards the logits of the original: squared error, Adam, batches of 64, cosine
from 5e-4. Called by `rivals.py`; needs torch, torch-pruning and onnx."""
import copy
import sys

import numpy as np
import onnx
import torch
import torch.nn.functional as F
import torch_pruning
from onnx import numpy_helper
from torch import nn


class Block(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.c1, self.b1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.c2, self.b2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.sc = nn.Sequential()
        if inputs != outputs or stride != 1:
            self.sc = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        return F.relu(self.b2(self.c2(F.relu(self.b1(self.c1(x))))) + self.sc(x))


def resnet20():
    layers, inputs = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], 16
    for outputs, first in ((16, 1), (32, 2), (64, 2)):
        for stride in (first, 1, 1):
            layers.append(Block(inputs, outputs, stride))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def rebuilt(path):
    """The network with the weights of the file, which have the names of its parameters."""
    graph = onnx.load(path).graph
    weights = {w.name: torch.tensor(numpy_helper.to_array(w)) for w in graph.initializer}
    # Equal parameters are stored once.
    weights |= {node.output[0]: weights[node.input[0]] for node in graph.node if node.op_type == "Identity"}
    network = resnet20()
    missing, _ = network.load_state_dict(weights, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in missing), missing
    return network.eval()


def prune(network, example, share):
    """Removes channels, step by step, until this share of the MACs is left."""
    count = lambda: torch_pruning.utils.count_ops_and_params(network, example)[0]
    steps, whole = 40, count()
    pruner = torch_pruning.pruner.MetaPruner(
        network, example, importance=torch_pruning.importance.GroupMagnitudeImportance(), global_pruning=True,
        pruning_ratio=0.8, iterative_steps=steps, round_to=8, ignored_layers=[network[-1]])
    for _ in range(steps):
        if count() <= share * whole:
            return
        pruner.step()
    raise SystemExit(f"{count() / whole:.2f} of the MACs are left")


def train(network, teacher, images, epochs):
    steps = epochs * (len(images) // 64)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    with torch.no_grad():
        wanted = torch.cat([teacher(part) for part in images.split(500)])
    for _ in range(epochs):
        # Batch norms keep the statistics of the original: those of one batch are noisy.
        for index in torch.randperm(len(images))[: len(images) // 64 * 64].split(64):
            optimizer.zero_grad()
            F.mse_loss(network(images[index]), wanted[index]).backward()
            optimizer.step()
            schedule.step()


def main():
    path, out, share, *more = sys.argv[1:]
    torch.manual_seed(0)
    network, example = rebuilt(path), torch.zeros(1, 3, 32, 32)
    teacher = copy.deepcopy(network)
    prune(network, example, float(share))
    if more:
        with np.load(more[0]) as data:
            images = torch.tensor(data[data.files[0]])
        train(network, teacher, images, int(more[1]))
    torch.onnx.export(network.eval(), example, out, input_names=["image"], output_names=["logits"], dynamo=False,
                      dynamic_axes={"image": {0: "N"}, "logits": {0: "N"}}, opset_version=17)


if __name__ == "__main__":
    main()
