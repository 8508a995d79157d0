"""The kernels of one network per module of timm, and of twelve of torchvision.

Do they work, are they right, what do they cost?

    python benchmarks/linearization_sweep.py  # writes the table below, goes on where it stopped

One thread; a process of its own and at most `--limit` seconds for each network, whose row keeps
what was found by then.

Random weights, the smallest variant of a module, the smallest input that it takes. `error`: the
largest difference, relative to the largest entry, from the Gram matrix of explicit float64
gradients of v·φ (one backward pass an image), over the last layer and all layers, for one random v,
in networks of less than 16 M parameters. `all_over_forward_backward`, `last_over_forward`: CPU
seconds for 8 images. `image_by_image`: share of all parameters on the slow path.
"""

import argparse
import multiprocessing
import time
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pandas
import timm
import torch
import torchvision

from mzlib.linearization import LinearizationError, ntk_gram, tangent_kernel
from mzlib.linearization.model import Output, cotangents, evaluating
from mzlib.linearization.tangents import Tangents

TABLE = Path(__file__).parents[1] / "results" / "benchmarks" / "linearization_sweep.csv"
SMALL = "atto femto pico nano xxs xxtiny tiny small _t _s 050 18 b0".split() + [""]
TORCHVISION = (
    "alexnet convnext_tiny densenet121 efficientnet_b0 googlenet mnasnet0_5 mobilenet_v3_small "
    "regnet_y_400mf resnet18 shufflenet_v2_x0_5 squeezenet1_1 vgg11_bn"
).split()
SMALL_ENOUGH = 16_000_000  # parameters of a network whose explicit gradients are compared


def smallest(module):
    """The module's variant with the fewest parameters, of the six whose names promise it."""

    def promise(name):
        return next(i for i, word in enumerate(SMALL) if word in name), len(name), name

    counts = {}
    for name in sorted(timm.list_models(module=module), key=promise)[:6]:
        try:
            with torch.device("meta"):
                model = timm.create_model(name)
        except Exception:  # a constructor that needs values
            with torch.random.fork_rng():
                model = timm.create_model(name)
        counts[name] = sum(p.numel() for p in model.parameters())
    return min(counts, key=counts.get)


def created(name):
    """The network, in general position (no zero scale), and the smallest size that it takes."""
    for pixels in (64, 96, 112, 128, None):  # 112: of patches of 14
        for options in ({"img_size": pixels}, {}):
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(0)
                    if name.startswith("torchvision."):
                        options = {}
                        extra = {"init_weights": True} if "googlenet" in name else {}
                        model = getattr(torchvision.models, name.partition(".")[2])(**extra)
                    else:
                        model = timm.create_model(name, **({} if pixels is None else options))
                    size = pixels or timm.get_pretrained_cfg(name).input_size[-1]
                    for parameter in model.parameters():
                        if parameter.ndim == 1:
                            torch.nn.init.uniform_(parameter, 0.5, 1.0)
                    with torch.no_grad():
                        model.eval()(torch.randn(2, 3, size, size))
                return model, size
            except Exception as error:
                last = error
    raise LinearizationError(f"no input that it takes ({type(last).__name__})")


def explicit(net, images, v, parameters):
    """⟨∇(v·φ(x_i)), ∇(v·φ(x_j))⟩ by one backward pass an image."""
    rows = []
    for image in images:
        with evaluating(net, parameters):
            value = net(image[None])[0] @ v
            found = torch.autograd.grad(value, parameters, materialize_grads=True)
        rows.append(torch.cat([g.flatten() for g in found]))
    gradients = torch.stack(rows)
    return gradients @ gradients.T


def error(model, images, outputs):
    """The largest relative difference from the definition, for the last layer and for all."""
    model = model.double()
    images = images.double()
    net = Output(model, outputs)
    worst = 0.0
    for layers in ("last", "all"):
        found = ntk_gram(model, images, layers=layers, outputs=outputs, probes=1)
        tangents = Tangents(model, images, layers, outputs)
        v = cotangents(tangents.dimension, 1, 0)[0]
        names = tangents.layers
        chosen = [
            p
            for n, p in model.named_parameters()
            if layers == "all" or n.rpartition(".")[0] in names
        ]
        truth = explicit(net, images, v, chosen)
        worst = max(worst, float((found - truth).abs().max() / truth.abs().max()))
    return worst


def seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


def costs(model, images, outputs):
    """CPU seconds of both kernels, over a forward + backward and over a forward pass."""
    net = Output(model, outputs)
    parameters = list(model.parameters())

    def both_ways():
        with evaluating(net, parameters):
            torch.autograd.grad(net(images).sum(), parameters, allow_unused=True)

    def forward():
        with torch.no_grad(), evaluating(net):
            net(images)

    forward()
    there, back = seconds(forward), seconds(both_ways)
    everything = seconds(lambda: ntk_gram(model, images, layers="all", outputs=outputs, probes=1))
    last = seconds(lambda: tangent_kernel(model, images, outputs=outputs))
    return {"all_over_forward_backward": everything / back, "last_over_forward": last / there}


def facts(module: str, name: str | None, timed: bool = True) -> Iterator[dict]:
    """All facts about one network, as they are found; timed: its costs too."""
    generator = torch.Generator().manual_seed(0)
    outputs = "features"
    try:
        name = name or smallest(module)
        yield {"module": module, "network": name}
        model, size = created(name)
        parameters = sum(p.numel() for p in model.parameters())
        yield {"pixels": size, "parameters": parameters}
        images = torch.randn(8, 3, size, size, generator=generator)
        kernel = tangent_kernel(model, images, torch.arange(8) % 4, outputs=outputs)
        yield {
            "works": True,
            "layer": ", ".join(kernel.layers),
            "probes": kernel.probes,
            "standard_error": kernel.standard_error,
        }
        yield {"image_by_image": Tangents(model, images, "all", outputs).image_by_image_share}
        if timed:
            yield costs(model, images, outputs)
        if parameters < SMALL_ENOUGH:
            yield {"error": error(model, images[:3], outputs)}
    except LinearizationError as refusal:
        yield {"works": False, "reason": str(refusal)}
    except Exception as broken:  # a fault of ours: the table shows it
        reason = f"RAISED {type(broken).__name__}: {' '.join(str(broken).split())[:200]}"
        yield {"works": False, "reason": reason}


def send(end: Connection, module: str, name: str | None) -> None:
    """What the process of one network does."""
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    for found in facts(module, name):
        end.send(found)
    end.close()


def row(module: str, name: str | None, limit: float) -> dict:
    """The facts that a process finds within `limit` seconds."""
    context = multiprocessing.get_context("fork")  # timm is loaded once
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=send, args=(theirs, module, name))
    start = time.monotonic()
    process.start()
    theirs.close()
    found = {"module": module, "network": name}
    try:
        while ours.poll(max(0.0, start + limit - time.monotonic())):
            found |= ours.recv()
        found["reason"] = f"stopped after {limit:.0f} s"
    except EOFError:  # it is through, or dead
        process.join()
        if process.exitcode:
            found |= {"works": False, "reason": f"RAISED exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()
    found["seconds"] = time.monotonic() - start
    versions = {"torch": torch.__version__, "timm": timm.__version__}
    return found | versions | {"date": time.strftime("%Y-%m-%d")}


def main() -> None:
    """Writes the table after every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("modules", nargs="*", help="of timm; none: all, and torchvision's")
    parser.add_argument("--again", nargs="*", default=[], help="modules with rows in the table")
    parser.add_argument("--limit", type=float, default=240, help="seconds a network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    jobs = [(module, None) for module in arguments.modules or timm.list_modules()]
    if not arguments.modules:
        jobs += [("torchvision", f"torchvision.{name}") for name in TORCHVISION]
    rows = []
    if TABLE.exists() and not arguments.modules:
        rows = pandas.read_csv(TABLE).to_dict("records")
        rows = [row for row in rows if row["module"] not in arguments.again]
    done = {row["network"] for row in rows} | {row["module"] for row in rows} - {"torchvision"}
    for module, name in jobs:
        known = module == "torchvision" or timm.list_models(module=module)
        if not known or (name or module) in done:
            continue
        rows.append(row(module, name, arguments.limit))
        print(rows[-1], flush=True)
        if not arguments.modules:
            new = TABLE.with_suffix(".new")
            pandas.DataFrame(rows).to_csv(new, index=False, float_format="%.3g")
            new.replace(TABLE)


if __name__ == "__main__":
    main()
