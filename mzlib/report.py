"""The ranking as one self-contained HTML page: no script, no request, light and dark, names escaped."""

import base64
import io
import shlex
from collections.abc import Callable
from html import escape
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import colormaps
from PIL import Image

from mzlib.dataset import few_shot
from mzlib.evidence import Evidence
from mzlib.selectors import SELECTORS

CLASSES, PER_CLASS, ROWS = (
    12,
    12,
    40,
)  # shown: classes, images of each in a kernel, experts in a table
EPOCHS = 30  # of the paper's fine-tuning

STYLE = """
:root { color-scheme: light dark; --bg: #fff; --fg: #1c2126; --soft: #5b6670; --line: #d8dde2; --mark: #1f6fb2; --tint: 31,111,178 }
@media (prefers-color-scheme: dark) {
  :root { --bg: #14181c; --fg: #e4e8ec; --soft: #9aa5af; --line: #323a42; --mark: #62aee8; --tint: 98,174,232 } }
body { background: var(--bg); color: var(--fg); font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.6rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.5rem }
.answer { font-size: 1.15rem; border-left: .3rem solid var(--mark); padding-left: 1rem }
.soft, figcaption, th { color: var(--soft); font-size: .87rem; font-weight: 400 }
.wide { overflow-x: auto } table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .2rem .7rem .2rem 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap }
td.n, th.n { text-align: right } td.name { white-space: normal; overflow-wrap: anywhere; min-width: 7rem } .heat td.n { padding: .2rem .5rem }
svg { color: var(--mark); vertical-align: middle } pre { border: 1px solid var(--line); padding: .8rem; overflow-x: auto; font-size: .87rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: 1.5rem } figure { margin: 0 }
.kernel { width: 100%; image-rendering: pixelated } .classes { display: flex; flex-wrap: wrap; gap: .8rem }
.classes div { max-width: 12rem; overflow-wrap: anywhere; font-size: .87rem } .classes img { height: 3.4rem; margin-right: 2px }
"""


def write_report(
    path: Path, table: pd.DataFrame, source, sample, evidence: Callable[[str], Evidence]
) -> None:
    """Write the page of `mzlib.rank`'s table. source: the task or image listing; sample: its scored images; evidence: of an
    expert by name, on all of the sample (cached)."""
    from mzlib.ranking import verdict

    first = table[table["selector"] == table["selector"].iloc[0]].dropna(subset="score")
    best, worst = (evidence(name) for name in (first["expert"].iloc[0], first["expert"].iloc[-1]))
    small = (
        best.images
        if best.images.shape[1] <= 96
        else torch.from_numpy(np.array(sample.images({"image_size": 64})))
    )
    sections = [
        _answer(table, verdict(table), source),
        _ranking(table),
        _kernels(best, worst, small, source.class_names),
        _confusions(best, small, source.class_names),
        _selectors(table),
        _cost(table, source),
        _finetune(table, source),
    ]
    text = (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>mzlib: {escape(source.name)}</title><style>{STYLE}</style></head><body>{''.join(sections)}</body></html>"
    )
    path.write_text(text, "utf-8", errors="backslashreplace")


def _answer(table, sentence, source) -> str:
    facts, notes = table.attrs, "".join(f"<li>{escape(note)}</li>" for note in table.attrs["notes"])
    partial = " Interrupted: the ranking is partial." if facts["interrupted"] else ""
    return (
        f"<h1>Which model to fine-tune for {escape(source.name)}</h1><p class='answer'>{escape(sentence)}</p>"
        f"<p class='soft'>{facts['images']} images of {len(source.class_names)} classes, {table['expert'].nunique()} experts, "
        f"{facts['seconds']:.1f} s.{partial}</p>"
        + (f"<ul class='soft'>{notes}</ul>" if notes else "")
    )


def _title(selector: str) -> str:
    return escape(SELECTORS[selector].title)


def _table(
    header: list[str], rows: list[list[str]], numbers: set[int] = frozenset(), kind: str = ""
) -> str:
    """Cells are HTML; a cell may bring its own <td>."""

    def row(cells, tag):
        return (
            "<tr>"
            + "".join(
                c if c.startswith("<td") else f"<{tag}{' class=n' * (i in numbers)}>{c}</{tag}>"
                for i, c in enumerate(cells)
            )
            + "</tr>"
        )

    body = "".join(row(cells, "td") for cells in rows)
    return f"<div class='wide'><table class='{kind}'><thead>{row(header, 'th')}</thead><tbody>{body}</tbody></table></div>"


def _ranking(table: pd.DataFrame) -> str:
    first = table["selector"].iloc[0]
    rows = table[table["selector"] == first]
    without, rows = rows[rows["score"].isna()], rows.dropna(subset="score")
    low, high = (
        rows["low"].fillna(rows["score"]).min(),
        rows["high"].fillna(rows["score"]).max(),
    )  # of the axis

    def bar(row) -> str:
        a, x, b = (
            4 + 192 * (v - low) / max(high - low, 1e-12)
            for v in np.nan_to_num([row.low, row.score, row.high], nan=row.score)
        )
        return (
            f"<svg width='200' height='14' role='img' aria-label='{row.score:.3g}, from {row.low:.3g} to {row.high:.3g}'><line x1='{a:.1f}' "
            f"x2='{b:.1f}' y1='7' y2='7' stroke='currentColor' stroke-width='2'/><circle cx='{x:.1f}' cy='7' r='4' fill='currentColor'/></svg>"
        )

    def span(row) -> str:
        return (
            f"{row.rank_low:.0f}"
            if row.rank_low == row.rank_high
            else f"{row.rank_low:.0f}–{row.rank_high:.0f}"
        )

    seconds = table.groupby("expert")["seconds"].sum()
    cells = [
        [
            span(r),
            f"<td class=name>{escape(r.expert)}",
            f"{r.score:.4g}",
            bar(r),
            escape(r.source),
            f"{seconds[r.expert]:.2f}",
        ]
        for r in rows.head(ROWS).itertuples()
    ]
    more = f"<p class='soft'>The first {ROWS} of {len(rows)}.</p>" * (len(rows) > ROWS)
    if len(without):
        more += (
            f"<p class='soft'>Without a score: {', '.join(map(escape, without['expert'][:ROWS]))}. The first, because: "
            f"{escape(without['reason'].iloc[0])}.</p>"
        )
    return (
        "<h2>The ranking</h2>"
        + _table(
            ["rank", "expert", _title(first), "95 % interval", "source", "seconds"], cells, {2, 5}
        )
        + more
        + "<p class='soft'>Intervals: jackknife over images. A span of ranks is what the intervals of paired "
        "differences between experts leave open, pair by pair.</p>"
    )


def _uri(array: np.ndarray, kind: str) -> str:
    Image.fromarray(array).save(buffer := io.BytesIO(), kind, quality=80)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _thumbnails(images: torch.Tensor, labels: np.ndarray, label: int, number: int) -> str:
    return "".join(
        f"<img alt='' src='{_uri(images[int(i)].numpy(), 'WebP')}'>"
        for i in np.flatnonzero(labels == label)[:number]
    )


def _kernels(best: Evidence, worst: Evidence, images, names) -> str:
    labels = best.labels.cpu().numpy()
    classes = np.unique(labels)[:CLASSES]
    at = np.flatnonzero(np.isin(labels, classes))
    at = at[few_shot(labels[at], PER_CLASS, 0)]
    at = at[np.argsort(labels[at], kind="stable")]

    def figure(evidence: Evidence, what: str) -> str:
        f = evidence.features.double()
        gram = ((f - f.mean(0))[at] @ (f - f.mean(0))[at].T).cpu().numpy()
        low, high = np.quantile(gram, [0.01, 0.99])
        shades = colormaps["cividis"](
            ((gram - low) / max(high - low, 1e-12)).clip(0, 1), bytes=True
        )[..., :3]
        return (
            f"<figure><img class='kernel' alt='Kernel of {escape(evidence.expert.name, quote=True)}: images by images, sorted by "
            f"class' src='{_uri(shades, 'PNG')}'><figcaption>{what}: {escape(evidence.expert.name)}</figcaption></figure>"
        )

    shown = "".join(
        f"<div>{escape(names[c])}<br>{_thumbnails(images, labels, c, 3)}</div>" for c in classes
    )
    return (
        "<h2>How the best and the worst expert see the images</h2><p>Similarity of every pair of images by the expert's "
        "features, images sorted by class in the order below. Bright squares along the diagonal: the expert already holds the "
        f"classes together.</p><div class='pair'>{figure(best, 'Best')}{figure(worst, 'Worst')}</div>"
        f"<p class='soft'>{'The first ' * (len(np.unique(labels)) > CLASSES)}{len(classes)} classes:</p><div class='classes'>{shown}</div>"
    )


def confusions(
    features: torch.Tensor, labels: torch.Tensor
) -> tuple[float, list[tuple[int, int, float]]]:
    """Accuracy of the nearest class mean (cosine, centred features, each image left out of its own class's mean), and pairs of
    classes (a, b, share of their images that are nearer to the other), worst first; classes of one image are left out."""
    values, y, sizes = labels.unique(return_inverse=True, return_counts=True)
    f = torch.nn.functional.normalize(features.double() - features.double().mean(0), dim=1)
    sums = torch.zeros(len(values), f.shape[1], dtype=f.dtype, device=f.device).index_add_(0, y, f)
    kept, wrong = torch.flatten((sizes[y] > 1).nonzero()), {}
    for part in kept.split(1024):
        near = f[part] @ torch.nn.functional.normalize(sums, dim=1).T
        own = torch.nn.functional.normalize(sums[y[part]] - f[part], dim=1)
        near[torch.arange(len(part)), y[part]] = (f[part] * own).sum(1)
        for true, found in zip(y[part].tolist(), near.argmax(1).tolist()):
            if true != found:
                wrong[min(true, found), max(true, found)] = (
                    wrong.get((min(true, found), max(true, found)), 0) + 1
                )
    pairs = [
        (int(values[a]), int(values[b]), n / int(sizes[a] + sizes[b]))
        for (a, b), n in wrong.items()
    ]
    return 1 - sum(wrong.values()) / max(1, len(kept)), sorted(pairs, key=lambda pair: -pair[2])


def _confusions(best: Evidence, images, names) -> str:
    accuracy, pairs = confusions(best.features, best.labels)
    labels = best.labels.cpu().numpy()
    rows = [
        [
            f"{escape(names[a])}<br>{_thumbnails(images, labels, a, 2)}",
            f"{escape(names[b])}<br>{_thumbnails(images, labels, b, 2)}",
            f"{share:.0%}",
        ]
        for a, b, share in pairs[:6]
    ]
    body = (
        _table(["class", "and class", "taken for the other"], rows, {2}, "classes-table")
        if rows
        else "<p>None.</p>"
    )
    return (
        f"<h2>Classes that are hard to tell apart</h2><p>Before any fine-tuning, {accuracy:.0%} of the scored images are nearest "
        f"to the mean of their own class in the features of {escape(best.expert.name)}. Where it errs most:</p>{body}"
    )


def _selectors(table: pd.DataFrame) -> str:
    ranks = (
        table.pivot(index="expert", columns="selector", values="rank")
        .reindex(table["expert"].unique())
        .dropna(how="all")
    )
    ranks = ranks[[s for s in table["selector"].unique() if ranks[s].nunique() > 1]]
    if ranks.shape[1] < 2:
        return "<h2>What each selector says</h2><p>Only one selector ranks these experts; try <code>--selectors all</code>.</p>"
    agreement, size = ranks.corr(method="spearman"), len(ranks)
    pairs = agreement.where(np.triu(np.ones(agreement.shape, bool), 1)).stack().sort_values()
    (a, b), spread = (
        pairs.index[0],
        (ranks.max(axis=1) - ranks.min(axis=1)).sort_values(ascending=False),
    )

    def cell(rank: float) -> str:
        return (
            "<td class=n>–"
            if np.isnan(rank)
            else f"<td class=n style='background:rgba(var(--tint),{0.6 * (1 - (rank - 1) / size) ** 2:.2f})'>{rank:g}"
        )

    rows = [
        [f"<td class=name>{escape(expert)}", *map(cell, row)]
        for expert, row in zip(ranks.index[:ROWS], ranks.to_numpy())
    ]
    tops = ranks.idxmin().map(escape).groupby(lambda s: ranks[s].idxmin()).groups
    votes = "; ".join(
        f"{escape(e)}: {', '.join(map(_title, s))}"
        for e, s in sorted(tops.items(), key=lambda item: -len(item[1]))
    )
    return (
        f"<h2>What each selector says</h2><p>First by each: {votes}.</p><p>Least agreement: {_title(a)} and {_title(b)} "
        f"(Spearman correlation {pairs.iloc[0]:.2f}). They disagree most on {escape(spread.index[0])}, which is placed from "
        f"{ranks.loc[spread.index[0]].min():g} to {ranks.loc[spread.index[0]].max():g}.</p>"
        + _table(["rank by", *map(_title, ranks)], rows, set(range(1, ranks.shape[1] + 1)), "heat")
    )


def _cost(table: pd.DataFrame, source) -> str:
    forward, images = (
        table.attrs["forward_seconds"],
        table.drop_duplicates("expert").set_index("expert")["images"],
    )
    train = len(source.train.labels) if hasattr(source, "train") else int((~source.test).sum())
    each = {
        name: 3 * EPOCHS * train * seconds / images[name]
        for name, seconds in forward.items()
        if seconds
    }
    if not each:
        return ""
    first = [name for name in table["expert"].unique() if name in each]
    scoring, all_of, three = (
        max(table.attrs["seconds"], sum(forward.values())),
        sum(each.values()),
        sum(each[n] for n in first[:3]),
    )
    rows = [
        ["scoring all, as done here", _duration(scoring), f"{scoring / all_of:.1%}"],
        [
            "and fine-tuning the first three",
            _duration(scoring + three),
            f"{(scoring + three) / all_of:.0%}",
        ],
        ["fine-tuning all of them", _duration(all_of), "100%"],
    ]
    return (
        "<h2>What it saves</h2>"
        + _table(["", "on this machine", "of fine-tuning all"], rows, {1, 2})
        + f"<p class='soft'>Fine-tuning is an estimate: {EPOCHS} epochs over {train} training images, a step at three times the forward "
        f"pass that was timed. Experts were shown {table.attrs['cost']:.0%} of the images that scoring all on all takes.</p>"
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 100
        else f"{seconds / 60:.0f} min"
        if seconds < 6000
        else f"{seconds / 3600:.1f} h"
    )


def snippets(table: pd.DataFrame, source) -> tuple[str, str]:
    """How to fine-tune the winner: on the command line, in Python."""
    winner, zoo, path = (
        table["expert"].iloc[0],
        table.attrs["zoo"],
        getattr(source, "path", source.name),
    )
    shell = f"mzlib finetune {shlex.quote(path)} --expert {shlex.quote(winner)}" + (
        f" --zoo {shlex.quote(zoo)}" if zoo else ""
    )
    given = f"{path!r}, {winner!r}" + (f", zoo={zoo!r}" if zoo else "")
    return (
        shell,
        f"import mzlib\n\ntuned = mzlib.finetune({given})\nprint(tuned.accuracy, tuned.low, tuned.high, tuned.folder)",
    )


def _finetune(table: pd.DataFrame, source) -> str:
    shell, python = map(escape, snippets(table, source))
    return (
        f"<h2>Fine-tune the winner</h2><pre>{shell}</pre><p>or in Python:</p><pre>{python}</pre><p class='soft'>Both report the accuracy "
        "on test images, which no score has looked at, with an interval, and save the model where timm loads it. Where ranks are "
        "tied, fine-tune those experts and compare.</p>"
    )
