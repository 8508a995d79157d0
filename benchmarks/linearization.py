"""Time and memory of the kernels against forward + backward, LFC, and the explicit Jacobian.

    OMP_NUM_THREADS=1 python benchmarks/linearization.py  # about 5 minutes; writes
    results/benchmarks/linearization.csv

Ratios are of medians within one run, in CPU seconds of the process, which with one thread hardly
depend on other work on the machine; peak memory is the growth of a fresh process's resident set
over a small case of the same kind. The explicit Jacobian is the usual one: `vmap(grad)` over
batches, then a product a layer.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pandas
import timm
import torch

import mzlib.zoo.architectures  # noqa: F401  registers the zoo networks
from mzlib.linearization import (
    label_gradient_product,
    ntk_gram,
    random_projection,
    tangent_kernel,
)
from mzlib.memory import keeping_freed_memory
from mzlib.selectors.deshpande2021 import lfc, lgc

BATCH, CLASSES, SIZE = 64, 10, 64
TABLE = Path(__file__).parents[1] / "results" / "benchmarks" / "linearization.csv"


def features(model, images):
    return model.forward_head(model.forward_features(images), pre_logits=True)


def layout(images):
    """Channels last, as the package does by itself: the baselines get the same."""
    return images.contiguous(memory_format=torch.channels_last)


def forward_backward(model, images, labels, layout=layout):
    parameters = [p for name, p in model.named_parameters() if not name.startswith("fc.")]
    for batch in images.split(BATCH):
        torch.autograd.grad(features(model, layout(batch)).sum(), parameters)


@keeping_freed_memory()
def paper_lfc(model, images, labels, layout=layout):
    with torch.no_grad():
        return lfc(
            torch.cat([features(model, layout(batch)) for batch in images.split(BATCH)]), labels
        )


def explicit_jacobian(model, images, labels):
    parameters = {
        name: p.detach() for name, p in model.named_parameters() if not name.startswith("fc.")
    }

    class Features(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, x):
            return features(self.model, x)

    net = Features()

    def value(parameters, image):
        return torch.func.functional_call(
            net, {f"model.{n}": p for n, p in parameters.items()}, (image[None],)
        ).sum()

    per_sample = torch.func.vmap(torch.func.grad(value), in_dims=(None, 0))
    parts = [per_sample(parameters, batch) for batch in images.split(BATCH)]
    gram = torch.zeros(len(images), len(images))
    for name in parameters:
        jacobian = torch.cat([part.pop(name).flatten(1) for part in parts])
        gram += jacobian @ jacobian.T
    return gram


CASES = {
    "forward_backward": forward_backward,
    "lfc": paper_lfc,
    "forward_backward_channels_first": lambda *data: forward_backward(
        *data, layout=lambda batch: batch
    ),
    "lfc_channels_first": lambda *data: paper_lfc(*data, layout=lambda batch: batch),
    "lgc_last_conv": lambda m, x, y: lgc(tangent_kernel(m, x, y).gram, y),
    "ntk_gram_all": lambda m, x, y: ntk_gram(m, x, layers="all"),
    "ntk_gram_all_in_128_MiB": lambda m, x, y: ntk_gram(m, x, layers="all", memory_budget=1 << 27),
    "label_gradient_product": lambda m, x, y: label_gradient_product(m, x, y),
    "explicit_jacobian": explicit_jacobian,
    "random_projection_last_conv": lambda m, x, y: random_projection(m, x),
}


def setting(count):
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    model = timm.create_model("mzlib_resnet", num_classes=CLASSES).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1 and name.endswith("weight"):
            torch.nn.init.ones_(parameter)  # timm starts the last batch norm of a block at 0
    return (
        model,
        torch.randn(count, 3, SIZE, SIZE, generator=generator),
        torch.arange(count) % CLASSES,
    )


def timings(repeats, sizes):
    """Median seconds by (case, N); cases alternate, so that a busy minute meets all of them."""
    rows, everything = (
        [],
        [(case, 512) for case in list(CASES)[:9]] + [("random_projection_last_conv", 128)],
    )
    for group, times in (
        (everything, repeats),
        ([("ntk_gram_all", n) for n in sizes], -(-repeats // 2)),
    ):
        data, seconds = {n: setting(n) for n in {n for _, n in group}}, {key: [] for key in group}
        for turn in range(times + 1):
            for case, n in group:
                start = time.process_time()
                CASES[case](*data[n])
                if turn:  # the first turn warms up
                    seconds[case, n].append(time.process_time() - start)
        rows += [
            dict(case=case, images=n, seconds=statistics.median(s), fastest=min(s))
            for (case, n), s in seconds.items()
        ]
    return pandas.DataFrame(rows).drop_duplicates(["case", "images"])


def at_224(count, repeats):
    """LGC over LFC in CPU seconds at 224 px, each alone: features and score, kernel and score.

    `both`: the two of one pass, as `rank` makes it.
    """
    rows = []
    images = torch.randn(count, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(count) % CLASSES
    for name in ("resnet18", "resnet50", "vit_small_patch16_224"):
        torch.manual_seed(0)
        model = timm.create_model(name).eval()
        for parameter in model.parameters():
            if parameter.ndim == 1:
                torch.nn.init.uniform_(parameter, 0.5, 1.0)  # no branch of weight zero

        def score(model, with_outputs=False):
            kernel = tangent_kernel(model, images, labels, with_outputs=with_outputs)
            lgc(kernel.gram, labels)
            if with_outputs:
                lfc(kernel.features, labels)
            return kernel

        calls = {
            "lfc": partial(paper_lfc, model, images, labels),
            "lgc": partial(score, model),
            "both": partial(score, model, with_outputs=True),
        }
        seconds = {case: [] for case in calls}
        for _ in range(repeats):
            for case, call in calls.items():
                start = time.process_time()
                kernel = call()  # the last one's, both, is looked at below
                seconds[case].append(time.process_time() - start)
        row = {"network": name, "images": count}
        row |= {case: statistics.median(times) for case, times in seconds.items()}
        row |= {"lgc_over_lfc": row["lgc"] / row["lfc"], "both_over_lfc": row["both"] / row["lfc"]}
        row |= {"layer": kernel.layers[0]}
        row |= {"probes": kernel.probes, "standard_error": kernel.standard_error}
        rows.append(row)
        print(row, flush=True)
    return pandas.DataFrame(rows)


def high_water():
    """Peak resident bytes of this process; ru_maxrss would start at what the parent had."""
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def peak(case, count):
    """Bytes by which a fresh process grows above model, images and a case of two images."""
    command = [sys.executable, __file__, "--peak", case, str(count)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--at-224", type=int, metavar="N", help="LGC over LFC of N images only")
    arguments = parser.parse_args()
    if arguments.at_224:
        table = at_224(arguments.at_224, arguments.repeats)
        table["torch"] = torch.__version__
        table["date"] = time.strftime("%Y-%m-%d")
        table.to_csv(TABLE.with_name("linearization_224.csv"), index=False, float_format="%.4g")
        return
    if arguments.peak:
        case, count = arguments.peak[0], int(arguments.peak[1])
        model, images, labels = setting(count)
        CASES[case](model, images[:2], torch.arange(2))
        before = high_water()
        CASES[case](model, images, labels)
        print(high_water() - before)
        return
    sizes = (128, 256, 512, 1024, 2048)
    table = timings(arguments.repeats, sizes)
    table["peak_bytes"] = [
        peak(case, n) if case != "random_projection_last_conv" else None
        for case, n in zip(table.case, table.images)
    ]
    unit = table.seconds[table.case == "forward_backward"].iloc[0]
    table["relative_to_forward_backward"] = table.seconds / unit
    table.insert(0, "network", f"mzlib_resnet at {SIZE} px")
    processor = next(
        (line.split(":")[1].strip() for line in open("/proc/cpuinfo") if "model name" in line), ""
    )
    table["machine"] = f"{processor or platform.processor()}, {torch.get_num_threads()} threads"
    table["torch"] = torch.__version__
    table["date"] = time.strftime("%Y-%m-%d")
    TABLE.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(TABLE, index=False, float_format="%.4g")
    print(table.drop(columns=["machine", "torch", "network"]).to_string())
    growth = table[table.case == "ntk_gram_all"].sort_values("images")
    for column in ("seconds", "peak_bytes"):
        logs = torch.tensor(growth[["images", column]].to_numpy(dtype=float)).log()
        slope = torch.linalg.lstsq(
            torch.stack([logs[:, 0], torch.ones(len(logs))], 1), logs[:, 1:]
        ).solution[0, 0]
        print(f"{column} grows as N^{slope:.2f} for N = {sizes[0]} … {sizes[-1]}")


if __name__ == "__main__":
    main()
