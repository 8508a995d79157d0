"""A ranking as one self-contained HTML page: no script, no request, names escaped."""

import base64
import io
import shlex
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import torch
import torch.nn.functional as F
from numpy import ndarray
from PIL import Image, ImageOps

from mzlib.dataset import few_shot
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence
from mzlib.finetuning import Finetuned
from mzlib.pixels import extensions
from mzlib.ranking import Ranking, span
from mzlib.tables import METADATA
from mzlib.training import PAPER

CLASSES = 12  # shown
PER_CLASS = 12  # images of each class in a kernel
ROWS = 40  # experts in a table
PAIRS = 6  # of classes that are hard to tell apart
WIDTH = 192  # pixels of the axis of intervals
CIVIDIS = ("#00224e", "#fee838", "#7c7b78")  # darkest, lightest, middle


def write_report(
    ranking: Ranking,
    path: str | Path,
    tried: Sequence[Finetuned] = (),
    kept: Finetuned | None = None,
) -> None:
    """Write the page; the evidence of the best and the worst expert on the whole sample is computed
    if it is not cached. tried: experts that were fine-tuned; kept: the one that was chosen.
    """
    best, worst = (ranking.evidence(ranking.first["expert"].iloc[i]) for i in (0, -1))
    sample = ranking.sample
    one_class = sample.kind == "classes"
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    environment.globals |= {
        "span": span,
        "duration": _duration,
    }
    images = best.images.numpy()
    if images.shape[1] > 96:
        images = np.asarray(sample.images({"image_size": 64}))
    gallery = Gallery(images, sample.labels, sample.source.class_names)
    shell, python = snippets(ranking)
    text = environment.get_template("report.html.j2").render(
        name=sample.source.name,
        one_class=one_class,
        verdict=ranking.verdict,
        facts=ranking.facts,
        table=_ranking(ranking),
        kernels=_kernels(best, worst, gallery),
        confused=_confused(best, gallery) if one_class else None,
        agreement=_agreement(ranking),
        layers=ranking.layers,
        cost=_cost(ranking),
        trials=tried,
        kept=kept,
        snippets={
            "shell": shell,
            "python": python,
        },
    )
    Path(path).write_text(text, "utf-8", errors="backslashreplace")


def check_writable(path: str | Path) -> None:
    """Raises MzlibError where a file of that name could not be written, or is an image or a table
    that may be read, here or by another command: before work is done that would be lost.
    """
    path = Path(path)
    if str(path) == "-":
        raise MzlibError(
            "expected a file that can be written, got '-': do ./- for one of that name"
        )
    there = path.exists()
    is_input = path.suffix.lower() in (".parquet", ".arrow", *extensions())
    if there and (is_input or path.name in METADATA):
        raise MzlibError(
            f"expected a file for output that holds no images or labels, got {str(path)!r}: name "
            "another"
        )
    try:
        with open(path, "ab"):
            pass
        if not there:
            path.unlink()
    except OSError as error:
        raise MzlibError(
            f"expected a file that can be written, got {str(path)!r}: {error.strerror or error}"
        ) from error


class Gallery:
    """Small images of each class as data URIs. images: uint8 [N, H, W, 3]; labels: int [N] into
    names.
    """

    def __init__(
        self,
        images: ndarray,
        labels: ndarray,
        names: tuple[str, ...],
    ):
        self.images = images
        self.labels = labels
        self.names = names

    def of(self, label: int, number: int) -> dict:
        """The name of the class and its first images."""
        index = np.flatnonzero(self.labels == label)[:number]
        return {
            "name": self.names[label],
            "images": [_uri(self.images[i], "WebP") for i in index],
        }


def _uri(pixels: ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _ranking(ranking: Ranking) -> dict:
    """Rows with an interval, its scale in pixels, and who has no score."""
    table = ranking.table
    rows = ranking.first.copy()
    for end in ("low", "high"):
        rows[end] = rows[end].fillna(rows["score"])
    rows["seconds"] = rows["expert"].map(table.groupby("expert")["seconds"].sum())
    first = table["selector"].iloc[0]
    without = table[(table["selector"] == first) & table["score"].isna()]
    return {
        "title": ranking.scorer.selectors[first].title,
        "rows": list(rows.head(ROWS).itertuples()),
        "number": len(rows),
        "least": rows["low"].min(),
        "scale": WIDTH / max(rows["high"].max() - rows["low"].min(), 1e-12),
        "without": list(without.head(ROWS).itertuples()),
    }


def _kernels(best: Evidence, worst: Evidence, gallery: Gallery) -> dict:
    labels = gallery.labels
    classes = np.unique(labels)
    of_shown = np.flatnonzero(np.isin(labels, classes[:CLASSES]))
    few = of_shown[few_shot(labels[of_shown], PER_CLASS, 0)]
    index = few[np.argsort(labels[few], kind="stable")]
    return {
        "figures": [
            {
                "what": what,
                "expert": evidence.expert.name,
                "uri": _kernel(evidence, index),
            }
            for what, evidence in (("Best", best), ("Worst", worst))
        ],
        "classes": [gallery.of(label, 3) for label in classes[:CLASSES]],
        "more": len(classes) > CLASSES,
    }


def _kernel(evidence: Evidence, index: ndarray) -> str:
    """A picture of the kernel of centred features, from its 1 % to its 99 % quantile."""
    features = evidence.features.double().cpu()
    centred = (features - features.mean(0))[index]
    gram = (centred @ centred.T).numpy()
    low, high = np.quantile(gram, [0.01, 0.99])
    share = ((gram - low) / max(high - low, 1e-12)).clip(0, 1)
    grey = Image.fromarray((255 * share).round().astype(np.uint8))
    return _uri(np.asarray(ImageOps.colorize(grey, *CIVIDIS)), "PNG")


def confusions(
    features: torch.Tensor, labels: torch.Tensor
) -> tuple[float, list[tuple[int, int, float]]]:
    """How well the nearest class mean classifies: accuracy, and pairs of classes that it confuses.

    features: [N, D]; labels: int [N]. Cosine similarity of centred features; each image is left out
    of its own class's mean, so classes of one image are left out. Pairs (a, b, share of their
    images that are nearer to the other), worst first.
    """
    values, y, sizes = labels.unique(return_inverse=True, return_counts=True)
    centred = features.double() - features.double().mean(0)
    f = F.normalize(centred, dim=1)
    sums = torch.zeros(len(values), f.shape[1], dtype=f.dtype, device=f.device).index_add_(0, y, f)
    means = F.normalize(sums, dim=1)
    kept = torch.flatten((sizes[y] > 1).nonzero())
    found = []
    for part in kept.split(1024):
        near = f[part] @ means.T
        own = F.normalize(sums[y[part]] - f[part], dim=1)  # without the image itself
        near[torch.arange(len(part)), y[part]] = (f[part] * own).sum(1)
        found.append(near.argmax(1))
    both = torch.stack([y[kept], torch.cat(found)], 1)
    wrong = both[both[:, 0] != both[:, 1]].sort(1).values
    confused, times = wrong.unique(dim=0, return_counts=True)
    shares = times / sizes[confused].sum(1)
    pairs = zip(*values[confused].T.tolist(), shares.tolist())
    accuracy = 1 - len(wrong) / max(1, len(kept))
    return accuracy, sorted(pairs, key=lambda pair: -pair[2])


def _confused(best: Evidence, gallery: Gallery) -> dict:
    accuracy, pairs = confusions(best.features, best.labels)
    rows = [([gallery.of(a, 2), gallery.of(b, 2)], share) for a, b, share in pairs[:PAIRS]]
    return {
        "accuracy": accuracy,
        "expert": best.expert.name,
        "rows": rows,
    }


def _agreement(ranking: Ranking) -> dict | None:
    """Ranks by every selector that tells experts apart, and where the selectors differ; None for
    fewer than two.
    """
    table = ranking.table
    ranks = table.pivot(
        index="expert",
        columns="selector",
        values="rank",
    )
    ranks = ranks.reindex(table["expert"].unique()).dropna(how="all")
    ranks = ranks[[s for s in table["selector"].unique() if ranks[s].nunique() > 1]]
    if ranks.shape[1] < 2:
        return None
    ranks.columns = [ranking.scorer.selectors[name].title for name in ranks]
    correlation = ranks.corr(method="spearman")
    above_diagonal = np.triu(np.ones(correlation.shape, bool), 1)
    pairs = correlation.where(above_diagonal).stack().sort_values()
    spread = ranks.max(axis=1) - ranks.min(axis=1)
    most = ranks.loc[spread.sort_values(ascending=False).index[0]]
    winners = ranks.idxmin()
    most_voted = winners.value_counts().index
    return {
        "votes": {name: list(winners.index[winners == name]) for name in most_voted},
        "pair": pairs.index[0],
        "correlation": pairs.iloc[0],
        "most": most,
        "titles": list(ranks),
        "rows": ranks.head(ROWS).to_dict("split"),
        "number": len(ranks),
    }


def _cost(ranking: Ranking) -> dict | None:
    """What fine-tuning would take, estimated from the forward passes that were timed; None where
    none was.
    """
    facts = ranking.facts
    seen = ranking.table.drop_duplicates("expert").set_index("expert")["images"]
    timed = {name: seconds for name, seconds in facts["forward_seconds"].items() if seconds}
    steps = 3 * PAPER.epochs * ranking.sample.training  # a step costs three forward passes
    each = {name: steps * seconds / seen[name] for name, seconds in timed.items()}
    if not each:
        return None
    three = [name for name in seen.index if name in each][:3]
    scoring = max(facts["seconds"], sum(timed.values()))
    rows = {
        "scoring all, as done here": scoring,
        "and fine-tuning the first three": scoring + sum(each[name] for name in three),
        "fine-tuning all of them": sum(each.values()),
    }
    return {
        "rows": rows,
        "epochs": PAPER.epochs,
        "images": ranking.sample.training,
    }


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def snippets(ranking: Ranking) -> tuple[str, str]:
    """How to fine-tune the winner: on the command line ("" for images that it cannot be told), in
    Python.
    """
    images = ranking.sample.source.path
    zoo = ranking.facts["zoo"]
    shell = ["mzlib", "finetune", images, "--expert", ranking.best]
    opened = repr(images) if images else "images"
    columns = getattr(ranking.sample.source, "columns", {})
    if columns:
        opened = ", ".join([opened, *(f"{key}={name!r}" for key, name in columns.items())])
        opened = f"mzlib.open_images({opened})"
        for key, name in columns.items():
            shell += [f"--{key.replace('_', '-')}", name]
    arguments = f"{opened}, {ranking.best!r}"
    if zoo:
        shell += ["--zoo", zoo]
        arguments += f", zoo={zoo!r}"
    python = (
        f"import mzlib\n\ntuned = mzlib.finetune({arguments})\n"
        "print(tuned.accuracy, tuned.low, tuned.high, tuned.folder)"
    )
    return shlex.join(shell) if images else "", python
