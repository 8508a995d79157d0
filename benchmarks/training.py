"""Throughput of the training loop (data, augmentation, schedule, logging) against the bare forward
+ backward + step on one resident random batch, both in one run: `python benchmarks/training.py`.
Writes results/benchmarks/training.csv.
"""

import statistics
import time

import numpy as np
import pandas as pd
import timm
import torch
import torch.nn.functional as F

import mzlib.zoo.architectures  # noqa: F401  (registers the architectures)
from mzlib.provenance import machine, results_folder
from mzlib.training import Recipe, ResidentSet, autocast, default_device, train

STEPS = 24


def bare(architecture, size, batch, device):
    model = (
        timm.create_model(architecture, num_classes=10)
        .to(device, memory_format=torch.channels_last)
        .train()
    )
    optimizer = torch.optim.SGD(
        model.parameters(), lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4
    )
    x = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    y = torch.randint(10, (batch,), device=device)

    def run():
        for _ in range(STEPS):
            with autocast(device):
                loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()

    return run


def loop(architecture, size, batch, device):
    model = timm.create_model(architecture, num_classes=10).to(device)
    rng = np.random.default_rng(0)
    data = ResidentSet(
        rng.integers(0, 256, (STEPS * batch, size, size, 3), np.uint8),
        rng.integers(0, 10, STEPS * batch),
        flip=True,
        device=device,
    )
    return lambda: train(model, data, Recipe(lr=1e-3, epochs=1, batch_size=batch), seed=0)


def seconds(run):
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main():
    device, rows = default_device(), []
    for architecture in ("mzlib_resnet", "mzlib_densenet"):
        for size, batch in ((32, 32), (32, 128), (64, 32), (64, 128)):
            runs = {
                "bare": bare(architecture, size, batch, device),
                "loop": loop(architecture, size, batch, device),
            }
            times = {name: [] for name in runs}
            for repeat in range(6):
                for name, run in runs.items():
                    elapsed = seconds(run)
                    if repeat:  # the first is the warm-up
                        times[name].append(elapsed)
            rate = {name: STEPS * batch / statistics.median(t) for name, t in times.items()}
            rows.append(
                {
                    "architecture": architecture,
                    "image_size": size,
                    "batch_size": batch,
                    "bare_images_per_s": round(rate["bare"]),
                    "loop_images_per_s": round(rate["loop"]),
                    "ratio": round(rate["loop"] / rate["bare"], 3),
                    "threads": torch.get_num_threads(),
                    **machine(),
                }
            )
            print(rows[-1], flush=True)
    pd.DataFrame(rows).to_csv(results_folder("benchmarks") / "training.csv", index=False)


if __name__ == "__main__":
    main()
