"""The small net that RSA compares an expert with: trained on the target from scratch (Dwivedi &
Roig 2019).
"""

import dataclasses

import numpy as np
import torch

from mzlib.streaming import ImageFiles, training_set
from mzlib.training import Recipe, seeded, train
from mzlib.zoo.architectures import create

REFERENCE_ARCHITECTURE = "mzlib_resnet"  # the paper's is a ResNet-18
REFERENCE_RATE = 0.005  # paper App. C


def reference_net(
    images: np.ndarray | ImageFiles,
    labels: np.ndarray,
    classes: int,
    recipe: Recipe,
    *,
    flip: bool,
    seed: int,
    device: torch.device,
    architecture: str = REFERENCE_ARCHITECTURE,
) -> torch.nn.Module:
    """Train it on uint8 images [N, H, W, 3] and labels [N] by the recipe at rate 0.005 (paper eq.
    10, App. C).
    """
    net = seeded(lambda: create(architecture, classes, images.shape[1]), seed).to(device)
    data = training_set(images, labels, flip=flip, device=device)
    slow = dataclasses.replace(recipe, lr=REFERENCE_RATE)
    train(net, data, slow, seed=seed, progress=False)
    return net
