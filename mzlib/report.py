"""A ranking as one self-contained HTML page: no script, no request, names escaped."""

import base64
import io
import shlex
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jinja2
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from mzlib.dataset import few_shot
from mzlib.errors import MzlibError
from mzlib.evidence import Evidence
from mzlib.finetuning import Finetuned
from mzlib.ranking import Ranking, span
from mzlib.training import PAPER

CLASSES = 12  # shown
PER_CLASS = 12  # images of each class in a kernel
ROWS = 40  # experts in a table
PAIRS = 6  # of classes that are hard to tell apart
WIDTH = 192  # pixels of the axis of intervals
CIVIDIS = [
    [0, 34, 78],
    [53, 69, 108],
    [102, 105, 112],
    [148, 142, 119],
    [200, 184, 102],
    [254, 232, 56],
]


def write_report(
    ranking: Ranking,
    path: str | Path,
    tried: Sequence[Finetuned] = (),
    kept: Finetuned | None = None,
) -> None:
    """Write the page; the evidence of the best and the worst expert on the whole sample is computed
    if it is not cached. tried: experts that were fine-tuned; kept: the one that was chosen.
    """
    best = ranking.evidence(ranking.first["expert"].iloc[0])
    worst = ranking.evidence(ranking.first["expert"].iloc[-1])
    shown = best.images.numpy()
    if shown.shape[1] > 96:
        shown = np.asarray(ranking.sample.images({"image_size": 64}))
    source = ranking.sample.source
    gallery = Gallery(shown, ranking.sample.labels, source.class_names)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True
    )
    shell, python = snippets(ranking)
    text = environment.get_template("report.html.j2").render(
        name=source.name,
        one_class=source.targets is None,
        verdict=ranking.verdict,
        facts=ranking.facts,
        table=_ranking(ranking),
        kernels=_kernels(best, worst, gallery),
        confused=_confused(best, gallery) if source.targets is None else None,
        agreement=_agreement(ranking),
        cost=_cost(ranking),
        trials=[_trial(done, done is kept) for done in tried],
        snippets={"shell": shell, "python": python},
    )
    Path(path).write_text(text, "utf-8", errors="backslashreplace")


def check_writable(path: str | Path) -> None:
    """Raises MzlibError where a file of that name could not be written: before work is done that
    would be lost.
    """
    path = Path(path)
    there = path.exists()
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

    def __init__(self, images: np.ndarray, labels: np.ndarray, names: tuple[str, ...]):
        self.images = images
        self.labels = labels
        self.names = names

    def of(self, label: int, number: int) -> dict:
        """The name of the class and its first images."""
        index = np.flatnonzero(self.labels == label)[:number]
        return {"name": self.names[label], "images": [_uri(self.images[i], "WebP") for i in index]}


def _uri(pixels: np.ndarray, kind: str) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _ranking(ranking: Ranking) -> dict:
    """Rows with the geometry of their intervals, and who has no score."""
    rows = ranking.first
    low = rows["low"].fillna(rows["score"])
    high = rows["high"].fillna(rows["score"])
    scale = WIDTH / max(high.max() - low.min(), 1e-12)
    seconds = ranking.table.groupby("expert")["seconds"].sum()
    shown = [
        {
            "rank": span(row),
            "expert": row.expert,
            "score": f"{row.score:.4g}",
            "label": f"{row.score:.3g}, from {a:.3g} to {b:.3g}",
            "low": f"{4 + scale * (a - low.min()):.1f}",
            "at": f"{4 + scale * (row.score - low.min()):.1f}",
            "high": f"{4 + scale * (b - low.min()):.1f}",
            "source": row.source,
            "seconds": f"{seconds[row.expert]:.2f}",
        }
        for row, a, b in zip(rows.head(ROWS).itertuples(), low, high)
    ]
    table = ranking.table
    first = table["selector"].iloc[0]
    without = table[(table["selector"] == first) & table["score"].isna()]
    return {
        "title": ranking.scorer.selectors[first].title,
        "rows": shown,
        "more": len(rows) if len(rows) > ROWS else 0,
        "without": without["expert"].head(ROWS).tolist(),
        "reason": without["reason"].iloc[0] if len(without) else "",
    }


def _kernels(best: Evidence, worst: Evidence, gallery: Gallery) -> dict:
    labels = gallery.labels
    classes = np.unique(labels)
    of_shown = np.flatnonzero(np.isin(labels, classes[:CLASSES]))
    few = of_shown[few_shot(labels[of_shown], PER_CLASS, 0)]
    index = few[np.argsort(labels[few], kind="stable")]
    return {
        "figures": [
            {"what": what, "expert": evidence.expert.name, "uri": _kernel(evidence, index)}
            for what, evidence in (("Best", best), ("Worst", worst))
        ],
        "classes": [gallery.of(label, 3) for label in classes[:CLASSES]],
        "more": len(classes) > CLASSES,
    }


def _kernel(evidence: Evidence, index: np.ndarray) -> str:
    """A picture of the kernel of centred features, from its 1 % to its 99 % quantile."""
    features = evidence.features.double().cpu()
    centred = (features - features.mean(0))[index]
    gram = (centred @ centred.T).numpy()
    low, high = np.quantile(gram, [0.01, 0.99])
    share = ((gram - low) / max(high - low, 1e-12)).clip(0, 1)
    anchors = np.linspace(0, 1, len(CIVIDIS))
    channels = [np.interp(share, anchors, levels) for levels in np.transpose(CIVIDIS)]
    return _uri(np.stack(channels, -1).round().astype(np.uint8), "PNG")


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
    wrong: Counter = Counter()
    for part in kept.split(1024):
        near = f[part] @ means.T
        own = F.normalize(sums[y[part]] - f[part], dim=1)  # without the image itself
        near[torch.arange(len(part)), y[part]] = (f[part] * own).sum(1)
        for true, found in zip(y[part].tolist(), near.argmax(1).tolist()):
            if true != found:
                wrong[min(true, found), max(true, found)] += 1
    accuracy = 1 - wrong.total() / max(1, len(kept))
    pairs = [
        (int(values[a]), int(values[b]), number / int(sizes[a] + sizes[b]))
        for (a, b), number in wrong.items()
    ]
    return accuracy, sorted(pairs, key=lambda pair: -pair[2])


def _confused(best: Evidence, gallery: Gallery) -> dict:
    accuracy, pairs = confusions(best.features, best.labels)
    rows = [
        {"classes": [gallery.of(a, 2), gallery.of(b, 2)], "share": f"{share:.0%}"}
        for a, b, share in pairs[:PAIRS]
    ]
    return {"accuracy": f"{accuracy:.0%}", "expert": best.expert.name, "rows": rows}


def _agreement(ranking: Ranking) -> dict | None:
    """Ranks by every selector that tells experts apart, and where the selectors differ; None for
    fewer than two.
    """
    table = ranking.table
    titles = {name: selector.title for name, selector in ranking.scorer.selectors.items()}
    ranks = table.pivot(index="expert", columns="selector", values="rank")
    ranks = ranks.reindex(table["expert"].unique()).dropna(how="all")
    ranks = ranks[[s for s in table["selector"].unique() if ranks[s].nunique() > 1]]
    if ranks.shape[1] < 2:
        return None
    correlation = ranks.corr(method="spearman")
    above_diagonal = np.triu(np.ones(correlation.shape, bool), 1)
    pairs = correlation.where(above_diagonal).stack().sort_values()
    spread = ranks.max(axis=1) - ranks.min(axis=1)
    most = spread.sort_values(ascending=False).index[0]
    winners = ranks.idxmin()
    votes = [
        {"expert": expert, "titles": [titles[s] for s in winners.index[winners == expert]]}
        for expert in winners.value_counts().index
    ]
    rows = [
        {"expert": expert, "cells": [_cell(rank, len(ranks)) for rank in row]}
        for expert, row in zip(ranks.index[:ROWS], ranks.to_numpy())
    ]
    return {
        "votes": votes,
        "pair": [titles[selector] for selector in pairs.index[0]],
        "correlation": f"{pairs.iloc[0]:.2f}",
        "expert": most,
        "from": f"{ranks.loc[most].min():g}",
        "to": f"{ranks.loc[most].max():g}",
        "titles": [titles[selector] for selector in ranks],
        "rows": rows,
    }


def _cell(rank: float, experts: int) -> dict:
    if np.isnan(rank):
        return {"rank": "–", "shade": 0}
    return {"rank": f"{rank:g}", "shade": f"{0.6 * (1 - (rank - 1) / experts) ** 2:.2f}"}


def _cost(ranking: Ranking) -> dict | None:
    """What fine-tuning would take, estimated from the forward passes that were timed; None where
    none was.
    """
    facts = ranking.facts
    seen = ranking.table.drop_duplicates("expert").set_index("expert")["images"]
    train = int((~ranking.sample.source.held_out).sum())
    timed = {name: seconds for name, seconds in facts["forward_seconds"].items() if seconds}
    each = {
        name: 3 * PAPER.epochs * train * seconds / seen[name] for name, seconds in timed.items()
    }
    if not each:
        return None
    three = [name for name in seen.index if name in each][:3]
    everything = sum(each.values())
    scoring = max(facts["seconds"], sum(timed.values()))
    first = scoring + sum(each[name] for name in three)
    rows = [
        ("scoring all, as done here", scoring, f"{scoring / everything:.1%}"),
        ("and fine-tuning the first three", first, f"{first / everything:.0%}"),
        ("fine-tuning all of them", everything, "100%"),
    ]
    return {
        "rows": [{"what": w, "duration": _duration(s), "share": share} for w, s, share in rows],
        "epochs": PAPER.epochs,
        "images": train,
        "seen": f"{facts['cost']:.0%}",
    }


def _trial(done: Finetuned, kept: bool) -> dict:
    return {
        "expert": done.expert.name,
        "kept": kept,
        "validation": f"{done.validation:.1%}",
        "test": f"{done.accuracy:.1%} [{done.low:.1%}, {done.high:.1%}]",
        "balanced": f"{done.balanced:.1%}",
        "seconds": f"{done.seconds:.0f}",
    }


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def snippets(ranking: Ranking) -> tuple[str, str]:
    """How to fine-tune the winner: on the command line, in Python."""
    images = ranking.sample.source.path
    zoo = ranking.facts["zoo"]
    shell = ["mzlib", "finetune", images, "--expert", ranking.best]
    arguments = f"{images!r}, {ranking.best!r}"
    if zoo:
        shell += ["--zoo", zoo]
        arguments += f", zoo={zoo!r}"
    python = (
        f"import mzlib\n\ntuned = mzlib.finetune({arguments})\n"
        "print(tuned.accuracy, tuned.low, tuned.high, tuned.folder)"
    )
    return shlex.join(shell), python
