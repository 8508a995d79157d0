"""Features of a task's images while experts are fine-tuned on it: what the book's Figure 8 is drawn from.

Usage: python benchmarks/kernels_through_finetuning.py; needs the task under MZLIB_DATA and the experts of thumb64; takes seconds.
Writes results/thumb64/fig8-rsscn7-20.safetensors: labels int64 [N], features float16 [N, D] as `<expert>/<epoch>`, and how they were computed.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file

from mzlib.benchmark import load_suite
from mzlib.benchmark.notebooks import functions_of
from mzlib.benchmark.stages import zoo_folder
from mzlib.evidence import subset
from mzlib.provenance import machine, results_folder
from mzlib.training import ResidentSet, default_device
from mzlib.zoo import load_expert

SUITE, TASK, SHOTS = "thumb64", "rsscn7", "20"
EXPERTS = ["resnet-scenes15-scratch", "resnet-grocery-scratch", "resnet-font_characters-scratch"]


def compute(suite_name: str, task: str, experts: list[str], shots: str) -> Path:
    suite = load_suite(suite_name)
    target = suite.task(task)
    device = default_device()
    recipe = suite.recipe("finetune")
    index = subset(target, shots, 0).train
    images, labels = target.train.images[index], target.train.labels[index]
    features_during_finetuning = functions_of("05_linearization").features_during_finetuning
    tensors = {"labels": torch.tensor(labels)}
    for name in experts:
        expert = load_expert(name, zoo_folder(suite.zoo))
        expert.model.to(device)
        data = ResidentSet(images, labels, flip=target.flip, device=device)
        pixels = torch.tensor(images, device=device)
        seen = features_during_finetuning(expert, data, recipe, pixels, seed=0)
        tensors |= {f"{name}/{epoch}": f.half().cpu() for epoch, f in seen.items()}
    about = {"task": task, "shots": shots, "seed": "0", "learning rate": f"{recipe.lr:g}"}
    path = results_folder(suite_name) / f"fig8-{task}-{shots}.safetensors"
    save_file(tensors, path, metadata={"about": json.dumps(machine() | about)})
    return path


if __name__ == "__main__":
    print(compute(SUITE, TASK, EXPERTS, SHOTS))
