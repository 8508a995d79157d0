"""Features of a task's images while experts are fine-tuned on it: what the paper's Fig. 8 is drawn
from, kept in the results.
"""

import json
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from mzlib.benchmark.stages import zoo_folder
from mzlib.benchmark.suite import load_suite
from mzlib.evidence import prepared, subset
from mzlib.provenance import home, machine, results_folder
from mzlib.training import Recipe, ResidentSet, default_device, train
from mzlib.zoo import Expert, features, load_expert, with_fresh_head


def kernels_through_finetuning(
    name: str,
    task: str,
    experts: list[str],
    *,
    shots: str = "20",
) -> tuple[dict[str, dict[int, Tensor]], Tensor, dict]:
    """Expert -> epoch -> feature kernel [N, N] (float32) before, half-way through and after
    fine-tuning on all N images of the regime; their labels int64 [N]; and how it was computed.

    Read from `results/<suite>/fig8-<task>-<shots>.safetensors` (features in fp16); computed there
    first when the file is absent, which needs the task's data and the experts' weights: MzlibError
    where these are absent.
    """
    path = home() / "results" / name / f"fig8-{task}-{shots}.safetensors"
    if not path.is_file():
        _compute(path, name, task, experts, shots)
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()["about"])
    tensors = load_file(path)
    labels = tensors.pop("labels")
    kernels: dict[str, dict[int, Tensor]] = {expert: {} for expert in experts}
    for key in sorted(tensors, key=lambda key: int(key.rpartition("/")[2])):
        expert, _, epoch = key.rpartition("/")
        f = tensors[key].float()
        kernels[expert][int(epoch)] = f @ f.T
    return kernels, labels, about


def _compute(path: Path, name: str, task: str, experts: list[str], shots: str) -> None:
    """Fine-tune the experts, with their features on the way in the file."""
    suite = load_suite(name)
    target = suite.task(task)
    device = default_device()
    recipe = suite.recipe("finetune")
    index = subset(target, shots, 0).train
    images = target.train.images[index]
    labels = target.train.labels[index]
    tensors = {"labels": torch.tensor(labels)}
    for name_of_one in experts:
        expert = load_expert(name_of_one, zoo_folder(suite.zoo))
        expert.model.to(device)
        data = ResidentSet(images, labels, flip=target.flip, device=device)
        pixels = torch.tensor(images, device=device)
        seen = features_during_finetuning(expert, data, recipe, pixels, seed=0)
        tensors |= {f"{name_of_one}/{epoch}": f.half().cpu() for epoch, f in seen.items()}
    about = {
        "task": task,
        "shots": shots,
        "seed": "0",
        "learning rate": f"{recipe.lr:g}",
    }
    results_folder(name)
    save_file(tensors, path, metadata={"about": json.dumps(machine() | about)})


def features_during_finetuning(
    expert: Expert,
    data: ResidentSet,
    recipe: Recipe,
    images: Tensor,
    *,
    seed: int,
) -> dict[int, Tensor]:
    """Epoch -> features [N, D] of uint8 `images` before, half-way through and after fine-tuning (in
    place).
    """
    model = with_fresh_head(expert.model, int(data.labels.max()) + 1, seed)
    epochs = recipe.total_epochs(data.batches_per_epoch(recipe.batch_size))
    seen = {}

    def look(epoch: int, epochs: int) -> None:
        if epoch in (0, epochs // 2, epochs):
            model.eval()
            with torch.no_grad():
                seen[epoch] = features(model, prepared(expert, images))
            model.train()

    look(0, epochs)
    train(model, data, recipe, seed=seed, progress=False, after_epoch=look)
    return seen
