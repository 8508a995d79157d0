"""The command line: `mzlib rank | finetune | run | status | data`."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from mzlib.errors import MzlibError


def main(argv: list[str] | None = None) -> int:
    """Exit code 0: done; 1: an error, told in one line on standard error; 2: wrong usage; 130: interrupted."""
    args = _parser().parse_args(argv)
    try:
        return args.command(args) or 0
    except MzlibError as error:
        print(f"mzlib: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(
            "mzlib: interrupted; finished jobs are kept, run the same command again to go on",
            file=sys.stderr,
        )
        return 130


def _positive(kind: type):
    def number(text: str):
        if not 0 < (value := kind(text)) < float("inf"):
            raise argparse.ArgumentTypeError(f"expected a positive number, got {text}")
        return value

    return number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "mzlib", description="Which pre-trained model should I fine-tune?"
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("run", help="run what is missing of a suite")
    command.set_defaults(command=_run)
    command.add_argument("suite")
    command.add_argument(
        "--stage", choices=("zoo", "finetune", "score"), action="append", help="default: all"
    )
    command.add_argument(
        "--only",
        default="*",
        metavar="PATTERN",
        help="jobs whose name contains this, e.g. 'digits/20'",
    )
    command.add_argument(
        "--retry-failed", action="store_true", help="also the jobs that are on record as failed"
    )
    command.add_argument(
        "--time-limit",
        type=_positive(float),
        metavar="SECONDS",
        help="of a job, which then counts as failed",
    )
    command.add_argument(
        "--engine",
        choices=("serial", "local", "ray"),
        default="local",
        help="this process, processes of this machine, a Ray cluster (default: %(default)s)",
    )
    command.add_argument(
        "--workers",
        type=_positive(int),
        help="jobs at a time (default: one per GPU or, without any, per core)",
    )
    command.add_argument(
        "--slots-per-gpu",
        type=_positive(int),
        default=1,
        metavar="N",
        help="jobs at a time on a GPU (default: %(default)s)",
    )
    command.add_argument(
        "--address", help="of a Ray cluster, e.g. auto (default: Ray is started on this machine)"
    )
    command.add_argument(
        "--scale", choices=("tiny",), help="the suite SUITE_tiny on miniatures of its data sets"
    )
    command.add_argument(
        "--dry-run",
        action="store_true",
        help="measure a few steps and print what the suite would cost",
    )

    command = commands.add_parser(
        "status", help="jobs of a suite: done, failed, missing, time left"
    )
    command.set_defaults(command=_status)
    command.add_argument("suite")

    command = commands.add_parser("rank", help="rank a zoo's experts for your images or a task")
    command.set_defaults(command=_rank)
    _images_and_zoo(command)
    command.add_argument(
        "--selectors", default="lfc,leep", help="comma-separated, or 'all' (default: %(default)s)"
    )
    command.add_argument("--images-per-class", help="or 'all' (default: 25)")
    command.add_argument(
        "--until-settled",
        type=_positive(int),
        nargs="?",
        const=3,
        default=0,
        metavar="K",
        help="take images in rounds, drop experts that can no longer be among the first K (default: 3)",
    )
    command.add_argument(
        "--report", metavar="FILE.html", help="write a page with the ranking and what it rests on"
    )
    command.add_argument("--csv", metavar="FILE", help="write the table there")
    command.add_argument("--json", metavar="FILE", help="write the table there")

    command = commands.add_parser(
        "finetune", help="fine-tune an expert on your images, with test accuracy"
    )
    command.set_defaults(command=_finetune)
    _images_and_zoo(command)
    command.add_argument(
        "--expert",
        action="append",
        default=[],
        help="a name as `mzlib rank` shows it; may be repeated",
    )
    command.add_argument(
        "--top",
        type=_positive(int),
        metavar="N",
        help="the first N of `mzlib rank` with the same images and zoo",
    )
    command.add_argument(
        "--out",
        default="finetuned",
        metavar="FOLDER",
        help="a folder an expert is made there (default: %(default)s)",
    )
    command.add_argument(
        "--lr",
        type=_positive(float),
        default=0.005,
        help="learning rate (default: %(default)s, the paper's)",
    )
    command.add_argument(
        "--epochs", type=_positive(int), default=30, help="(default: %(default)s, the paper's)"
    )
    command.add_argument(
        "--flip", action="store_true", help="a mirrored image keeps its label: mirror half of them"
    )

    command = commands.add_parser("data", help="tasks on this machine")
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
    return parser


def _images_and_zoo(command) -> None:
    command.add_argument(
        "task",
        metavar="IMAGES",
        help="class folders, train/ and test/ with class folders, a Parquet or CSV "
        "file of images and labels; or a task's name",
    )
    command.add_argument(
        "--zoo",
        help="experts: a suite, timm:NAME, torchvision:WEIGHTS (globs, too), a checkpoint, a folder of "
        "these, a .toml or .yaml list; comma-separated (default: the committed experts)",
    )


def _run(args) -> int:
    from mzlib.benchmark.jobs import STAGES
    from mzlib.benchmark.run import run_suite
    from mzlib.benchmark.suite import load_suite

    if args.scale:
        from mzlib.benchmark.data import miniature, paper

        args.suite = load_suite(f"{args.suite}_{args.scale}").name
        miniature.write_all(paper.root(args.suite))
    if args.dry_run:
        from mzlib.benchmark.price import price

        return print(price(args.suite, args.stage or STAGES, args.only, args.retry_failed))
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
            f"mzlib: {failed} jobs failed; `mzlib status {args.suite}` lists them, `--retry-failed` runs them again",
            file=sys.stderr,
        )
    return int(failed > 0)


def _status(args) -> None:
    from mzlib.benchmark.run import failures, status

    print(status(args.suite).to_string(index=False))
    for job, error in failures(args.suite):
        print(f"failed: {job}: {error}")


def _rank(args) -> int:
    from mzlib.ranking import rank, verdict
    from mzlib.selectors import SELECTORS

    per_class = args.images_per_class
    if per_class not in (None, "all") and not (per_class.isdecimal() and int(per_class) > 0):
        raise MzlibError(
            f"expected --images-per-class to be 'all' or a positive number, got {per_class!r}"
        )
    selectors = [*SELECTORS] if args.selectors == "all" else args.selectors.split(",")
    table = rank(
        args.task,
        args.zoo,
        selectors,
        images_per_class=per_class,
        until_settled=args.until_settled,
        report=args.report,
    )
    facts = table.attrs
    if args.csv:
        table.to_csv(args.csv, index=False)
    if args.json:
        table.to_json(args.json, orient="records", indent=1)
    for note in facts["notes"]:
        print(f"note: {note}", file=sys.stderr)
    print(_wide(table).to_string(index=False))
    print(
        f"{verdict(table)} {facts['images']} images, {facts['seconds']:.1f} s. Each score: [95 % interval]."
    )
    if args.until_settled:
        print(
            f"Dropping experts early took {facts['cost']:.0%} of the forward passes of scoring all on all images."
        )
    for selector, rows in table[table["reason"] != ""].groupby("selector", sort=False):
        reasons = rows["reason"].value_counts()
        print(
            f"no {selector} for {len(rows)} experts: {reasons.index[0]}"
            + (f" (and {len(reasons) - 1} other reasons)" * (len(reasons) > 1))
        )
    if facts["interrupted"]:
        print(
            f"mzlib: interrupted after {table['expert'].nunique()} of {facts['experts']} experts; the ranking above is partial, "
            "run the same command again to go on",
            file=sys.stderr,
        )
    return 130 if facts["interrupted"] else 0


def _wide(table: pd.DataFrame) -> pd.DataFrame:
    """A row an expert: rank (as "2-4" where it is not settled), expert, source, a score with interval by selector, seconds."""
    first, wide = (
        table["selector"].iloc[0],
        table.groupby("expert", sort=False).agg(source=("source", "first")).reset_index(),
    )
    rows = table[table["selector"] == first].set_index("expert").loc[wide["expert"]]
    span = zip(rows["rank_low"].fillna(0).astype(int), rows["rank_high"].fillna(0).astype(int))
    wide.insert(
        0,
        "rank",
        ["-" if not low else f"{low}" if low == high else f"{low}-{high}" for low, high in span],
    )
    for selector, part in table.groupby("selector", sort=False):
        part = part.set_index("expert").loc[wide["expert"]]
        wide[selector] = [
            "-"
            if pd.isna(score)
            else f"{score:.4g} [{low:.4g}, {high:.4g}]"
            if high > low
            else f"{score:.4g}"
            for score, low, high in zip(part["score"], part["low"], part["high"])
        ]
    wide["seconds"] = table.groupby("expert", sort=False)["seconds"].sum().round(2).to_numpy()
    return wide


def _finetune(args) -> None:
    from mzlib.finetuning import finetune
    from mzlib.ranking import rank

    experts = args.expert
    if args.top:
        experts = [*experts, *rank(args.task, args.zoo)["expert"].unique()[: args.top]]
    if not experts:
        raise MzlibError(
            "expected --expert NAME or --top N, got neither: `mzlib rank` shows the names"
        )
    for expert in experts:
        done = finetune(
            args.task,
            expert,
            zoo=args.zoo,
            out=args.out,
            lr=args.lr,
            epochs=args.epochs,
            flip=args.flip,
        )
        for note in done.notes:
            print(f"note: {note}", file=sys.stderr)
        print(
            f"{expert}: test accuracy {done.accuracy:.1%} [{done.low:.1%}, {done.high:.1%}] on {done.test_images} images, "
            f"{done.seconds:.0f} s; saved as {done.folder}"
        )


def _data_list(args) -> None:
    from mzlib.benchmark.data import list_tasks

    with pd.option_context("display.width", 160, "display.max_rows", None):
        print(list_tasks().to_string(index=False, na_rep="-"))


def _data_get(args) -> int:
    from mzlib.benchmark import load_suite
    from mzlib.benchmark.data import CARDS
    from mzlib.benchmark.data.download import get_together

    names, groups, failed = args.names, {}, 0
    if not names and not args.suite:
        raise MzlibError(
            "expected names of tasks or a suite, got neither; `mzlib data list` shows the tasks"
        )
    if args.suite:
        if (suite := load_suite(args.suite)).collection:
            raise MzlibError(
                f"expected a suite whose tasks can be fetched, got {args.suite}: lay its data sets out as the book says "
                "(page 'The paper's own setting') and run `mzlib data check NAME --root FOLDER`"
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
