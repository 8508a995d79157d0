"""What networks of timm cost before they are downloaded, and the `--zoo recommended`."""

import tomllib
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path

import pandas as pd
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

from mzlib.zoo.expert import Candidate

# Name at timm -> what it was pre-trained on, and how.
RECOMMENDED: dict[str, str] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))


def recommended() -> pd.DataFrame:
    """A row a recommended network: name, pretraining, licence (of the weights, as timm states it),
    pixels, classes, parameters (millions), megabytes (to download), gflops (as in `cost`).
    """
    rows = []
    for name, pretraining in RECOMMENDED.items():
        config = timm.get_pretrained_cfg(name)
        parameters, gflops = cost(f"timm:{name}")
        rows.append(
            {
                "name": f"timm:{name}",
                "pretraining": pretraining,
                "licence": config.license or "not stated",
                "pixels": config.input_size[-1],
                "classes": config.num_classes,
                "parameters": round(parameters / 1e6, 1),
                "megabytes": round(4 * parameters / 1e6),
                "gflops": round(gflops, 1),
            }
        )
    return pd.DataFrame(rows)


@lru_cache(1024)
def cost(name: str) -> tuple[int, float]:
    """(parameters, billions of multiply-adds an image of its own size) of `timm:NAME`, by its
    layers alone: no weights are loaded.
    """
    with torch.device("meta"):  # shapes without numbers
        model = timm.create_model(name.removeprefix("timm:")).eval()
        image = torch.empty(1, *model.pretrained_cfg["input_size"])
        with FlopCounterMode(display=False) as counter:
            model(image)
    return sum(p.numel() for p in model.parameters()), counter.get_total_flops() / 2e9


def download_bytes(experts: Iterable[Candidate]) -> int:
    """Of the weights, four bytes a parameter, that are not in the Hugging Face cache yet."""
    here = cached()
    names = [expert.origin for expert in experts if expert.origin.startswith("timm:")]
    missing = [name for name in names if not is_cached(name, here)]
    return sum(4 * cost(name)[0] for name in missing)


def within(
    experts: Iterable[Candidate], max_params: float = 0, max_gflops: float = 0
) -> list[Candidate]:
    """Those of at most so many million parameters and billion multiply-adds an image (0: any).

    Of networks of timm; experts that lie on this machine are all kept.
    """
    kept = []
    for expert in experts:
        if expert.origin.startswith("timm:"):
            parameters, gflops = cost(expert.origin)
            if max_params and parameters > max_params * 1e6 or max_gflops and gflops > max_gflops:
                continue
        kept.append(expert)
    return kept


def is_cached(name: str, here: list[str]) -> bool:
    """Whether the weights of `timm:NAME` are among those that are here."""
    return any(name.removeprefix("timm:") in known for known in here)


def cached() -> list[str]:
    """Names of timm's weights that lie in the Hugging Face cache on this machine."""
    from huggingface_hub import constants

    return sorted(
        p.name.removeprefix("models--timm--")
        for p in Path(constants.HF_HUB_CACHE).glob("models--timm--*")
        if any(p.glob("snapshots/*/*"))
    )
