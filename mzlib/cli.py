"""The command line: `mzlib rank | finetune | choose | predict | run | status | data`.

Imports what a command needs when it runs.
"""

import argparse
import os
import shutil
import sys
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mzlib.errors import MzlibError

TERMINAL = (140, 24)  # columns and lines where there is none to ask
READING = {
    "lfc": "over pairs of images, being alike in the expert's features and bearing the same label "
    "correlate at {score:.2g} (0: no relation, 1: features that hold nothing but the classes)",
    "leep": "guessed from the expert's own classes alone, the right class gets a probability of "
    "{exp:.2g} (geometric mean)",
}


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done; 1: an error, told in one line on standard error; 2: wrong usage; 130:
    interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal that lacks a character is no reason to end
            stream.reconfigure(errors="backslashreplace")
    args = _parser().parse_args(argv)
    try:
        code = args.command(args) or 0
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `| head`; what Python still holds must not be written at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 141
    except KeyboardInterrupt:
        print(
            "mzlib: interrupted; what is finished is kept, run the same command again to go on",
            file=sys.stderr,
        )
        return 130
    except MzlibError as error:
        print(f"mzlib: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        if os.environ.get("MZLIB_DEBUG"):
            raise
        message = " ".join(str(error).split())[:300]
        print(
            f"mzlib: {type(error).__name__}: {message} (MZLIB_DEBUG=1 shows where)", file=sys.stderr
        )
        return 1


def _version() -> str:
    try:
        return version("mzlib")
    except PackageNotFoundError:  # a checkout on the path
        return "unknown"


def _positive(kind: type):
    def number(text: str):
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
        return value

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mzlib", description="Which pre-trained model should I fine-tune?"
    )
    parser.add_argument("--version", action="version", version=f"mzlib {_version()}")
    commands = parser.add_subparsers(required=True, metavar="command")
    _add_rank(commands.add_parser("rank", help="rank a zoo's experts for your images or a task"))
    _add_finetune(
        commands.add_parser(
            "finetune", help="fine-tune an expert on your images, with test accuracy"
        )
    )
    _add_choose(
        commands.add_parser("choose", help="rank, fine-tune those tied for rank 1, keep the best")
    )
    _add_predict(commands.add_parser("predict", help="classify images with a fine-tuned model"))
    _add_run(commands.add_parser("run", help="run what is missing of a suite"))
    status = commands.add_parser("status", help="jobs of a suite: done, failed, missing, time left")
    status.set_defaults(command=_status)
    status.add_argument("suite")
    _add_data(commands.add_parser("data", help="tasks on this machine"))
    return parser


def _add_rank(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=_rank)
    _add_images_and_zoo(command)
    add = command.add_argument
    add(
        "--selectors",
        help="comma-separated, or 'all'; the first orders (default: what fits the zoo, lfc, lgc)",
    )
    kinds = command.add_mutually_exclusive_group()
    kinds.add_argument(
        "--regression",
        dest="labels",
        action="store_const",
        const="numeric",
        help="labels are measurements",
    )
    kinds.add_argument(
        "--multi-label",
        dest="labels",
        action="store_const",
        const="several",
        help="any number of labels an image: a|b in the column, or columns of 0 and 1",
    )
    add("--images-per-class", help="or 'all' (default: 25)")
    add(
        "--until-settled",
        type=_positive(int),
        nargs="?",
        const=3,
        default=0,
        metavar="K",
        help="take images in rounds, drop who can no longer be among the first K (default: 3)",
    )
    add("--report", metavar="FILE.html", help="write a page with the ranking and what it rests on")
    add("--csv", metavar="FILE", help="write the table there")
    add("--json", metavar="FILE", help="write the table there; '-': to standard output, alone")


def _add_finetune(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=_finetune)
    _add_images_and_zoo(command)
    add = command.add_argument
    add(
        "--expert",
        action="append",
        default=[],
        help="a name as `mzlib rank` shows it; may be repeated",
    )
    add(
        "--top",
        type=_positive(int),
        metavar="N",
        help="rank, fine-tune the first N, name the one that is best on validation images",
    )
    _add_training(command, "finetuned")


def _add_choose(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=_choose)
    _add_images_and_zoo(command)
    add = command.add_argument
    add(
        "--selectors",
        help="comma-separated, or 'all'; the first orders (default: what fits the zoo, lfc, lgc)",
    )
    add("--top", type=_positive(int), metavar="N", help="fine-tune so many (default: those tied)")
    add("--time-limit", type=_positive(float), metavar="SECONDS", help="for all of it")
    add("--report", metavar="FILE.html", help="the page (default: report.html beside the models)")
    _add_training(command, "chosen")


def _add_training(command: argparse.ArgumentParser, out: str) -> None:
    add = command.add_argument
    add(
        "--out",
        default=out,
        metavar="FOLDER",
        help="a folder an expert is made there (default: %(default)s)",
    )
    add("--force", action="store_true", help="write over models that are there")
    add(
        "--lr",
        type=_positive(float),
        help="learning rate (default: 0.05 for the committed experts, 0.005 for others)",
    )
    add("--epochs", type=_positive(int), default=30, help="(default: %(default)s, the paper's)")
    add("--batch-size", type=_positive(int), default=32, help="(default: %(default)s, the paper's)")
    add("--flip", action="store_true", help="a mirrored image keeps its label: mirror half of them")
    add("--freeze", action="store_true", help="train the head only")


def _add_predict(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=_predict)
    add = command.add_argument
    add("images", metavar="FOLDER", help="of images, at any depth, or one image")
    add("--model", required=True, metavar="FOLDER", help="as `mzlib finetune` saves it")
    add("--csv", metavar="FILE", help="write the table there (default: print it)")
    add("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    add("--quiet", action="store_true", help="no progress")


def _add_run(command: argparse.ArgumentParser) -> None:
    command.set_defaults(command=_run)
    add = command.add_argument
    add("suite")
    add("--stage", choices=("zoo", "finetune", "score"), action="append", help="default: all")
    add(
        "--only",
        default="*",
        metavar="PATTERN",
        help="jobs whose name contains this, e.g. 'digits/20'",
    )
    add("--retry-failed", action="store_true", help="also the jobs that are on record as failed")
    add(
        "--time-limit",
        type=_positive(float),
        metavar="SECONDS",
        help="of a job, which then counts as failed",
    )
    add(
        "--engine",
        choices=("serial", "local", "ray"),
        default="local",
        help="this process, processes of this machine, a Ray cluster (default: %(default)s)",
    )
    add(
        "--workers",
        type=_positive(int),
        help="jobs at a time (default: one per GPU or, without any, per core)",
    )
    add(
        "--slots-per-gpu",
        type=_positive(int),
        default=1,
        metavar="N",
        help="jobs at a time on a GPU (default: %(default)s)",
    )
    add("--address", help="of a Ray cluster, e.g. auto (default: Ray is started on this machine)")
    add(
        "--dry-run",
        action="store_true",
        help="measure a few steps and print what the suite would cost",
    )


def _add_data(command: argparse.ArgumentParser) -> None:
    data = command.add_subparsers(required=True, metavar="action")
    action = data.add_parser("list", help="all known tasks and which are here")
    action.set_defaults(command=_data_list)
    action = data.add_parser("get", help="download tasks into the cache, once")
    action.set_defaults(command=_data_get)
    action.add_argument("names", nargs="*", metavar="name")
    action.add_argument("--suite", help="all sources and targets of a suite")
    action.add_argument("--size", type=int, default=64, help="pixels a side (default: %(default)s)")
    action = data.add_parser(
        "check",
        help="are tasks in the cache the ones of the committed results? With --root: are the "
        "paper's own data sets there as its Table 4 has them, every file readable?",
    )
    action.set_defaults(command=_data_check)
    action.add_argument("names", nargs="+", metavar="name")
    action.add_argument(
        "--root", metavar="FOLDER", help="where the paper's data sets lie, a folder each"
    )


def _add_images_and_zoo(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "task",
        metavar="IMAGES",
        help="class folders, train/ and test/ with class folders, a Parquet or CSV "
        "file of images and labels; or a task's name",
    )
    command.add_argument(
        "--zoo",
        help="experts: a suite, a zoo, timm:NAME (globs, too), recommended, imagenet, a checkpoint "
        "(best.pth:ARCHITECTURE where its name does not tell), a folder of these; comma-separated "
        "(default: the committed experts, and those of mzlib[imagenet] where it is installed)",
    )
    command.add_argument("--image-column", metavar="NAME", help="of a table with odd names")
    command.add_argument("--label-column", metavar="NAME", help="of a table with odd names")
    command.add_argument(
        "--seed", type=int, default=0, help="of every random draw (default: %(default)s)"
    )
    command.add_argument("--device", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    command.add_argument("--quiet", action="store_true", help="no progress, no notes")


def _run(args) -> int:
    from mzlib.benchmark.jobs import STAGES
    from mzlib.benchmark.run import run_suite

    if args.dry_run:
        from mzlib.benchmark.price import price

        print(price(args.suite, args.stage or STAGES, args.only, args.retry_failed))
        return 0
    failed = run_suite(
        args.suite,
        stages=args.stage or STAGES,
        only=args.only,
        retry_failed=args.retry_failed,
        engine=args.engine,
        workers=args.workers,
        slots_per_gpu=args.slots_per_gpu,
        address=args.address,
        time_limit=args.time_limit,
    )
    if failed:
        print(
            f"mzlib: {failed} jobs failed; `mzlib status {args.suite}` lists them, "
            "`--retry-failed` runs them again",
            file=sys.stderr,
        )
    return int(failed > 0)


def _status(args) -> None:
    from mzlib.benchmark.run import failures, status

    print(status(args.suite).to_string(index=False))
    for job, error in failures(args.suite):
        print(f"failed: {job}: {error}")


def _rank(args) -> int:
    from mzlib import api
    from mzlib.report import check_writable

    for file in (args.report, args.csv, args.json):
        if file and file != "-":
            check_writable(file)
    found = api.rank(
        _images(args),
        args.zoo,
        args.selectors,
        images_per_class=args.images_per_class,
        until_settled=args.until_settled,
        report=args.report,
        seed=args.seed,
        device=args.device,
        progress=not args.quiet,
    )
    if args.csv:
        found.table.to_csv(args.csv, index=False)
    if args.json and args.json != "-":
        found.table.to_json(args.json, orient="records", indent=1)
    if args.json == "-":
        print(found.table.to_json(orient="records", indent=1))
    with redirect_stdout(sys.stderr if args.json == "-" else sys.stdout):
        _show(found, args)
    if not found.facts["interrupted"]:
        return 0
    done = found.table["expert"].nunique()
    print(
        f"mzlib: interrupted after {done} of {found.facts['experts']} experts; the ranking above "
        "is partial, run the same command again to go on",
        file=sys.stderr,
    )
    return 130


def _images(args):
    """What was named, opened already where its columns were named, too."""
    asked = {"image_column": args.image_column, "label_column": args.label_column}
    asked["labels"] = getattr(args, "labels", None)
    asked = {name: value for name, value in asked.items() if value}
    if not asked:
        return args.task
    from mzlib.images import open_images

    return open_images(args.task, **asked)


def _show(found, args) -> None:
    """The table, what it says, and what is missing from it."""
    table = found.table
    facts = found.facts
    if not args.quiet:
        for note in facts["notes"]:
            print(f"note: {note}", file=sys.stderr)
    print(_in_blocks(found.summary(), shutil.get_terminal_size(TERMINAL).columns))
    seen = table.loc[table["images"] > 0, "images"]
    images = f"{seen.min()} to {seen.max()}" if seen.min() < seen.max() else f"{seen.max()}"
    print(
        f"{found.verdict} {images} images, {facts['seconds']:.1f} s. Each score: [95 % interval of "
        "the score on other images, as many]."
    )
    if facts["why"]:
        print(facts["why"])
    _say_meaning(found)
    if getattr(args, "until_settled", 0):
        print(
            f"Dropping experts early took {facts['cost']:.0%} of the forward passes of scoring all "
            "on all images."
        )
    for selector, rows in table[table["reason"] != ""].groupby("selector", sort=False):
        reasons = rows["reason"].value_counts()
        print(f"no {selector} for {len(rows)} experts:", "; ".join(_counted(reasons)))


def _say_meaning(found) -> None:
    """What a score of the best expert means, of the first selector of which that can be said."""
    table = found.table
    told = table[(table["expert"] == found.best) & table["selector"].isin(list(READING))]
    told = told.dropna(subset="score")
    if told.empty:
        return
    row = told.iloc[0]
    reading = READING[row["selector"]].format(score=row["score"], exp=_exp(row["score"]))
    title = found.scorer.selectors[row["selector"]].title
    print(
        f"What {title} {row['score']:.2g} means: {reading}. Compare experts on these images only."
    )
    if row["score_all"] == row["score_all"] and row["images"] < found.sample.training:
        print(
            f"On all {found.sample.training} training images it would be about "
            f"{row['score_all']:.2g}: few images flatter it."
        )


def _exp(score: float) -> float:
    from math import exp

    return exp(min(score, 0))


def _counted(reasons, most: int = 5) -> list[str]:
    """Each reason with its number of experts where it has several, the most frequent first."""
    shown = [f"{why} ({n} times)" if n > 1 else why for why, n in reasons.head(most).items()]
    return shown + ([f"and {len(reasons) - most} other reasons"] if len(reasons) > most else [])


def _in_blocks(table, width: int) -> str:
    """The table as text; columns that do not fit beside rank and expert follow below, with these
    two repeated.
    """
    keys = ["rank", "expert"]
    blocks: list[list[str]] = [[]]
    for column in table.columns.drop(keys):
        text = table[[*keys, *blocks[-1], column]].to_string(index=False)
        if blocks[-1] and len(text.partition("\n")[0]) > width:
            blocks.append([])
        blocks[-1].append(column)
    return "\n\n".join(table[[*keys, *block]].to_string(index=False) for block in blocks)


def _options(args) -> dict:
    """Of fine-tuning."""
    names = ("out", "force", "lr", "epochs", "batch_size", "flip", "freeze", "seed", "device")
    return {name: getattr(args, name) for name in names} | {"progress": not args.quiet}


def _finetune(args) -> None:
    from mzlib import api

    if not args.expert and not args.top:
        raise MzlibError(
            "expected --expert NAME or --top N, got neither: `mzlib rank` shows the names"
        )
    for expert in args.expert:
        _say(api.finetune(_images(args), expert, zoo=args.zoo, **_options(args)), args)
    if args.top:
        _chosen(api.choose(_images(args), args.zoo, top=args.top, **_options(args)), args)


def _choose(args) -> None:
    from mzlib import api

    report = Path(args.report or Path(args.out, "report.html"))
    if not args.report:
        _make(report.parent)
    choice = api.choose(
        _images(args),
        args.zoo,
        top=args.top,
        time_limit=args.time_limit,
        report=report,
        ranking_options={"selectors": args.selectors},
        **_options(args),
    )
    _chosen(choice, args)
    print(f"The page: {report}")


def _chosen(choice, args) -> None:
    _show(choice.ranking, args)
    for done in choice.tried:
        _say(done, args)
    for note in choice.notes:
        print(f"note: {note}", file=sys.stderr)
    kept = choice.kept
    print(
        f"The best on validation images, among equals by rank: {kept.expert.name}, in {kept.folder}"
    )


def _say(done, args) -> None:
    """What fine-tuning gave, in one line, after its notes."""
    if not args.quiet:
        for note in done.notes:
            print(f"note: {note}", file=sys.stderr)
    print(
        f"{done.expert.name}: validation accuracy {done.validation:.1%} (epoch {done.epoch} of "
        f"{len(done.losses)}), test accuracy {done.accuracy:.1%} [{done.low:.1%}, {done.high:.1%}] "
        f"on {done.test_images} images, class-balanced {done.balanced:.1%}, {done.seconds:.0f} s; "
        f"saved as {done.folder}"
    )


def _predict(args) -> None:
    from mzlib import api
    from mzlib.report import check_writable

    if args.csv:
        check_writable(args.csv)
    table = api.predict(args.images, args.model, device=args.device, progress=not args.quiet)
    if args.csv:
        table.to_csv(args.csv, index=False, float_format="%.4f")
    else:
        table.to_csv(sys.stdout, index=False, float_format="%.4f", sep="\t")


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MzlibError(
            f"expected a folder that can be made, got {str(folder)!r}: {error.strerror}"
        ) from error


def _data_list(args) -> None:
    import pandas as pd

    from mzlib.benchmark.data import list_tasks

    with pd.option_context("display.width", 160, "display.max_rows", None):
        print(list_tasks().to_string(index=False, na_rep="-"))


def _data_get(args) -> int:
    from mzlib.benchmark import load_suite
    from mzlib.benchmark.data import CARDS
    from mzlib.benchmark.data.download import get_together

    names = args.names
    groups: dict[str, list[str]] = {}
    failed = 0
    if not names and not args.suite:
        raise MzlibError(
            "expected names of tasks or a suite, got neither; `mzlib data list` shows the tasks"
        )
    if args.suite:
        if (suite := load_suite(args.suite)).collection:
            raise MzlibError(
                f"expected a suite whose tasks can be fetched, got {args.suite}: lay its data sets "
                "out as the book says (page 'The paper's own setting') and run `mzlib data check "
                "NAME --root FOLDER`"
            )
        names += [
            n
            for n in (*suite.sources, *suite.targets)
            if CARDS.get(n, {}).get("origin") != "embedded"
        ]
    for name in dict.fromkeys(names):
        groups.setdefault(CARDS.get(name, {}).get("source", name), []).append(
            name
        )  # one download for all of an origin
    for group in groups.values():
        try:
            print(*get_together(group, args.size), sep="\n")
        except MzlibError as error:  # the others may still be had
            print(f"mzlib: {error}", file=sys.stderr)
            failed = 1
    return failed


def _data_check(args) -> int:
    from mzlib.benchmark.data import CARDS, duplicates, not_found, paper, store

    failed = 0
    for name in args.names:
        try:
            if not args.root and name not in CARDS and not store.exists(store.root() / name):
                raise MzlibError(not_found(name, store.root()))
            lines = (
                paper.check(name, Path(args.root, name)) if args.root else [duplicates.check(name)]
            )
            print(*(f"{name}: {line}" for line in lines), sep="\n")
            failed |= len(lines) > 1
        except MzlibError as error:  # the others may still be checked
            print(f"mzlib: {error}", file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
