"""What can be read of one network of every module of timm: features, logits, a fresh head, LFC.

A small network of each module, random weights, the smallest input of 32 px and more that it
takes. `python benchmarks/timm_sweep.py` writes results/benchmarks/timm_sweep.csv;
`--modules resnet,levit` does some. A failure is a row with its reason.
"""

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import timm
import torch

from mzlib.errors import one_line
from mzlib.provenance import home, machine
from mzlib.selectors import lfc
from mzlib.training import seeded
from mzlib.zoo import heads, outputs, with_fresh_head

SIZES = (32, 64, 96, 128, 224, 256, 384, 448)
CLASSES = 7
SMALL = "atto femto pico nano micro xxs tiny small _xs _ti _n0 _s0 _050 _t0 _b0 18 mini".split()


def smallest(module: str) -> str:
    """The network with the fewest parameters of the eight whose names promise the fewest."""
    names = timm.list_models(module=module)
    names.sort(key=lambda name: (not any(word in name for word in SMALL), len(name)))
    sizes = {}
    for name in names[:8]:
        try:
            with torch.device("meta"):  # no memory for the weights
                sizes[name] = sum(p.numel() for p in timm.create_model(name).parameters())
        except Exception:  # some cannot be made on the meta device
            continue
    return min(sizes, key=sizes.__getitem__, default=names[0])


def networks(name: str) -> Iterator[tuple[torch.nn.Module, int]]:
    """(network in eval mode, input size) from the smallest size that may do."""
    fixed = timm.get_pretrained_cfg(name)
    native = fixed.input_size[-1] if fixed else 224
    for size in sorted({*(s for s in SIZES if s < native), native}):
        for options in ({}, {"img_size": size}):
            try:
                yield seeded(lambda: timm.create_model(name, **options).eval(), 0), size
            except Exception:  # no such size, no such option
                continue


@torch.inference_mode()
def read(name: str) -> dict:
    """The row of one network."""
    labels = torch.arange(6) % 2
    reason = "no size does"
    for model, size in networks(name):
        x = torch.randn(6, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            expected = model(x)
        except Exception as error:  # this size is too small for it
            reason = one_line(error)
            continue
        row = {"network": name, "size": size}
        row["parameters"] = sum(p.numel() for p in model.parameters())
        try:
            features, logits = outputs(model, x)
            row["features"] = features.ndim == 2 and len(features) == 6
            row["logits"] = torch.allclose(logits, expected, atol=1e-4, rtol=1e-4)
            row["heads"] = len(heads(model))
            row["lfc"] = bool(torch.isfinite(torch.tensor(lfc(features, labels))))
            fresh = with_fresh_head(copy.deepcopy(model), CLASSES, seed=0)
            row["fresh_head"] = tuple(outputs(fresh, x)[1].shape) == (6, CLASSES)
            row["fresh_head"] &= len(heads(fresh)) > 0
            row["reason"] = ""
        except Exception as error:
            row["reason"] = one_line(error)
        return row
    return {"network": name, "reason": reason}


def main(argv: list[str] | None = None) -> pd.DataFrame:
    """One row a module, written after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--modules", default=",".join(timm.list_modules()))
    out = home() / "results" / "benchmarks" / "timm_sweep.csv"
    parser.add_argument("--out", type=Path, default=out)
    args = parser.parse_args(argv)
    rows = []
    for module in args.modules.split(","):
        name = smallest(module)
        row = {"module": module} | read(name)
        rows.append(row | {key: machine()[key] for key in ("torch", "timm")})
        table = pd.DataFrame(rows)
        table.to_csv(args.out, index=False)
        print(module, {k: v for k, v in row.items() if k != "module"}, flush=True)
    return table


if __name__ == "__main__":
    main()
