"""Kernels, scores and ranking on a CUDA GPU: seconds, memory, and the share of the card's own limit.

    python benchmarks/gpu.py [FOLDER [PART ...]]  # about 3 minutes on an H100; writes gpu_*.csv there

kernels: ResNet-50 and ViT-S/16 at 224 px in float32 (TF32 off, as the package computes them).
Baselines in the same run: the features alone, one forward and backward pass of the summed features,
and the explicit Jacobian of `torch.func`: per-sample gradients of the same scalar by `vmap(grad)`,
kept, then one product (250 images: 1,000 would take 100 GB). tflop: of every convolution and matrix
product that ran, counted; limit: those over the seconds, as a share of this card's float32 rate
for 8,192 x 8,192 matrices, measured in the same run.
precision: LGC of committed experts as TF32 and bf16 change it.
scores: scores of features and probabilities on the CPU's threads and on the GPU.
ranking: `mzlib.rank` of 500 images with the architectures of `--zoo recommended` (random weights: no
download, and the time is the same).
"""

import os
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import timm
import torch
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import mzlib
from mzlib.evidence import prepared
from mzlib.linearization import ntk_gram, tangent_kernel
from mzlib.provenance import machine
from mzlib.selectors import SELECTORS, _linalg, lfc, lgc, resolve
from mzlib.zoo.checkpoints import expert_of
from mzlib.zoo.recommended import RECOMMENDED

CUDA = torch.device("cuda")
CLASSES = 10


def features(model, images):
    return model.forward_head(model.forward_features(images), pre_logits=True)


def backbone(model):
    """The parameters that features depend on, by name."""
    head = model.default_cfg["classifier"]
    return {n: p for n, p in model.named_parameters() if not n.startswith(f"{head}.")}


@torch.no_grad()
def forward(model, images):
    return torch.cat([features(model, batch) for batch in images.split(64)])


def forward_backward(model, images):
    parameters = list(backbone(model).values())
    for batch in images.split(64):
        torch.autograd.grad(features(model, batch).sum(), parameters, allow_unused=True)


def explicit_jacobian(model, images):
    """Gram of per-sample gradients of all layers, as they are usually computed."""
    parameters = {name: p.detach() for name, p in backbone(model).items()}
    net = torch.nn.Module()
    net.forward = lambda image: features(model, image)
    net.model = model

    def value(parameters, image):
        named = {f"model.{name}": p for name, p in parameters.items()}
        return torch.func.functional_call(net, named, (image[None],)).sum()

    per_sample = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))
    jacobian = torch.empty(len(images), sum(p.numel() for p in parameters.values()), device=CUDA)
    for start in range(0, len(images), 25):
        parts = per_sample(parameters, images[start : start + 25])
        rows = torch.cat([part.flatten(1) for part in parts.values()], 1)
        jacobian[start : start + 25] = rows
    return jacobian @ jacobian.T


CASES = {
    "features": forward,
    "forward_backward": forward_backward,
    "last layer, all probes": tangent_kernel,
    "last layer, one probe": ntk_gram,
    "all layers, one probe": lambda model, images: ntk_gram(model, images, layers="all"),
    "explicit Jacobian": explicit_jacobian,
}


class Counted(TorchDispatchMode):
    """Floating-point operations of convolutions and matrix products.

    PyTorch's FlopCounterMode also follows modules, by hooks that keep every graph alive.
    """

    flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        count = flop_registry.get(function._overloadpacket)
        if count:
            self.flops += count(*args, **(kwargs or {}), out_val=found)
        return found


def seconds(run, repeats=3):
    """Median of a synchronised clock after one warm-up."""
    times = []
    for _ in range(repeats + 1):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return sorted(times[1:])[repeats // 2]


def float32_rate():
    """TFLOP/s of a float32 product without TF32."""
    a = torch.randn(8192, 8192, device=CUDA)
    return 2 * 8192**3 / seconds(lambda: a @ a) / 1e12


def kernels():
    torch.backends.cudnn.allow_tf32 = False  # the baselines too
    rate = float32_rate()
    for name in ("resnet50", "vit_small_patch16_224"):
        torch.manual_seed(0)
        model = timm.create_model(name).eval().to(CUDA)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.0)  # no branch of weight zero
        for count in (250, 1000):
            images = torch.randn(count, 3, 224, 224, device=CUDA)
            for case, run in CASES.items():
                explicit = case == "explicit Jacobian"
                if explicit and count > 250:
                    continue
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
                elapsed = seconds(lambda: run(model, images), 3 if count == 250 else 1)
                peak = torch.cuda.max_memory_allocated() - before
                with Counted() as counted:
                    run(model, images)
                # vmap's grouped convolutions are counted as if their groups met each other
                tflop = float("nan") if explicit else counted.flops / 1e12
                yield {
                    "network": name,
                    "images": count,
                    "case": case,
                    "seconds": elapsed,
                    "peak_gb": peak / 2**30,
                    "tflop": tflop,
                    "limit": tflop / elapsed / rate,
                    "card_tflops": rate,
                }


def precision():
    """LGC and LFC of every committed expert against float64 on the CPU; tf32: as PyTorch's own
    switches are set by the user, bf16: of a network cast to it.
    """
    task = mzlib.load_task("digits")
    index = mzlib.few_shot(task.train.labels, 20, 0)
    labels = torch.as_tensor(task.train.labels[index])
    pixels = torch.as_tensor(task.train.images[index])
    found = []
    for expert in mzlib.load_zoo("thumb64"):
        images = prepared(expert, pixels)
        for case, (device, dtype) in PRECISIONS.items():
            torch.backends.cudnn.allow_tf32 = case == "tf32"
            torch.backends.cuda.matmul.allow_tf32 = case == "tf32"
            model = expert.model.eval().to(device, dtype)
            inputs = images.to(device, dtype)
            kernel = tangent_kernel(model, inputs, labels.to(device), with_outputs=True)
            value = lgc(kernel.gram, labels.to(device))
            other = lfc(kernel.features, labels.to(device))
            found.append({"expert": expert.name, "precision": case, "lgc": value, "lfc": other})
            expert.model.float().cpu()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    for score in ("lgc", "lfc"):
        table = pd.DataFrame(found).pivot(index="expert", columns="precision", values=score)
        truth = table.pop("float64")
        for case, values in table.items():
            yield {
                "score": score,
                "precision": case,
                "experts": len(truth),
                "mean": values.mean(),
                "mean_in_float64": truth.mean(),
                "mean_error": (values - truth).abs().mean(),
                "largest_error": (values - truth).abs().max(),
                "rank_correlation": values.corr(truth, method="spearman"),
            }


PRECISIONS = {
    "float64": ("cpu", torch.float64),
    "float32": ("cuda", torch.float32),
    "tf32": ("cuda", torch.float32),
    "bf16": ("cuda", torch.bfloat16),
}


def scores(n=3_000, d=1_024, c=100):
    """Scores of features and probabilities; both with what earlier scores left forgotten."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(n) % c
    centres = torch.randn(c, d, generator=generator)
    latent = torch.randn(n, d, generator=generator) + centres[labels]
    held = {
        "features": latent.relu(),
        "labels": labels,
        "source_probabilities": torch.randn(n, c, generator=generator).softmax(1),
        "seed": 0,
    }
    on_card = {k: v.to(CUDA) if torch.is_tensor(v) else v for k, v in held.items()}
    for name, selector in SELECTORS.items():
        if not selector.needs or not set(selector.needs.values()) <= set(held):
            continue
        row = {"selector": name, "n": n, "d": d, "c": c, "threads": torch.get_num_threads()}
        for place, evidence in (("cpu", held), ("gpu", on_card)):
            times = []
            for _ in range(1 if place == "cpu" else 2):  # a GPU's first loads its libraries
                _linalg._results.clear()
                torch.cuda.synchronize()
                start = time.perf_counter()
                value = resolve(selector, SimpleNamespace(**evidence))
                times.append(time.perf_counter() - start)
            row |= {f"{place}_seconds": times[-1], f"{place}_value": value}
        yield row


def ranking():
    """Every architecture of `--zoo recommended` on 500 images of 224 px in 10 classes, from files,
    nothing kept of an earlier run; default scores.
    """
    with tempfile.TemporaryDirectory() as place:
        os.environ["MZLIB_CACHE"] = str(Path(place, "cache"))
        rng = np.random.default_rng(0)
        for i in range(500):
            folder = Path(place, "images", f"class{i % CLASSES}")
            folder.mkdir(parents=True, exist_ok=True)
            pixels = rng.integers(0, 256, (224, 224, 3), np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.jpg")
        for name in RECOMMENDED:
            torch.manual_seed(0)
            model = timm.create_model(name)
            config = timm.data.resolve_data_config({}, model=model)
            facts = ("unknown", "random", name)
            expert = expert_of(name, model, name, config, *facts)
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            start = time.perf_counter()
            found = mzlib.rank(str(Path(place, "images")), [expert], progress=False)
            elapsed = time.perf_counter() - start
            missing = found.table[found.table["score"].isna()]
            yield {
                "expert": name,
                "pixels": config["input_size"][-1],
                "seconds": elapsed,
                "peak_gb": torch.cuda.max_memory_allocated() / 2**30,
                "scores": int(found.table["score"].notna().sum()),
                "missing": "; ".join(missing["selector"].astype(str)),
            }


def main(folder: str = "results/benchmarks", *parts: str) -> None:
    for part in (kernels, scores, ranking, precision):
        if parts and part.__name__ not in parts:
            continue
        rows = []
        for row in part():
            rows.append(row)
            print(row, flush=True)
            table = pd.DataFrame(rows).assign(**machine())
            table.to_csv(Path(folder, f"gpu_{part.__name__}.csv"), index=False, float_format="%.4g")


if __name__ == "__main__":
    main(*sys.argv[1:])
