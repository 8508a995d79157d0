"""The command line: `mzlib rank | run | status | data`."""

import argparse
import sys

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
        print("mzlib: interrupted; finished jobs are kept, run the same command again to go on", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("mzlib", description="Which pre-trained model should I fine-tune?")
    commands = parser.add_subparsers(required=True, metavar="command")

    command = commands.add_parser("run", help="run what is missing of a suite")
    command.set_defaults(command=_run)
    command.add_argument("suite")
    command.add_argument("--stage", choices=("zoo", "finetune", "score"), action="append", help="default: all")
    command.add_argument("--only", default="*", metavar="PATTERN", help="jobs whose name contains this, e.g. 'digits/20'")
    command.add_argument("--workers", type=int, help="processes (default: one per core, one in all on a GPU)")

    command = commands.add_parser("status", help="jobs of a suite: done, failed, missing, time left")
    command.set_defaults(command=_status)
    command.add_argument("suite")

    command = commands.add_parser("rank", help="rank a zoo's experts for a task")
    command.set_defaults(command=_rank)
    command.add_argument("task", help="a task's name or an image folder")
    command.add_argument("--zoo", required=True, metavar="SUITE", help="or experts: timm:NAME,torchvision:WEIGHTS")
    command.add_argument("--selectors", default="lfc,leep", help="comma-separated (default: %(default)s)")
    command.add_argument("--images-per-class", default="25", help="or 'all' (default: %(default)s)")
    command.add_argument("--csv", metavar="FILE", help="write the table there")

    command = commands.add_parser("data", help="tasks on this machine")
    data = command.add_subparsers(required=True, metavar="action")
    action = data.add_parser("list", help="all known tasks and which are here")
    action.set_defaults(command=_data_list)
    action = data.add_parser("get", help="download tasks into the cache, once")
    action.set_defaults(command=_data_get)
    action.add_argument("names", nargs="*", metavar="name")
    action.add_argument("--suite", help="all sources and targets of a suite")
    action.add_argument("--size", type=int, default=64, help="pixels a side (default: %(default)s)")
    action = data.add_parser("check", help="are tasks in the cache the ones of the committed results?")
    action.set_defaults(command=_data_check)
    action.add_argument("names", nargs="+", metavar="name")
    return parser


def _run(args) -> int:
    from mzlib.benchmark.jobs import STAGES
    from mzlib.benchmark.run import run_suite

    failed = run_suite(args.suite, stages=args.stage or STAGES, only=args.only, workers=args.workers)
    if failed:
        print(f"mzlib: {failed} jobs failed; `mzlib status {args.suite}` counts them, running again retries them",
              file=sys.stderr)
    return int(failed > 0)


def _status(args) -> None:
    from mzlib.benchmark.run import failures, status

    print(status(args.suite).to_string(index=False))
    for job, error in failures(args.suite):
        print(f"failed: {job}: {error}")


def _rank(args) -> None:
    from mzlib.ranking import rank

    zoo = args.zoo.split(",") if ":" in args.zoo else args.zoo
    per_class = args.images_per_class
    if per_class != "all" and not (per_class.isdecimal() and int(per_class) > 0):
        raise MzlibError(f"expected --images-per-class to be 'all' or a positive number, got {per_class!r}")
    table = rank(args.task, zoo, args.selectors.split(","), images_per_class=per_class)
    if args.csv:
        table.to_csv(args.csv, index=False)
    wide = table.pivot(index=["expert", "source"], columns="selector", values="score").reset_index()
    wide.columns.name = None
    wide = wide.set_index("expert").loc[table["expert"].unique()].reset_index()
    wide.insert(0, "rank", range(1, len(wide) + 1))
    print(wide.to_string(index=False, float_format="{:.4f}".format))
    for (selector, reason), rows in table[table["reason"] != ""].groupby(["selector", "reason"]):
        print(f"no {selector} for {len(rows)} experts: {reason}")


def _data_list(args) -> None:
    from mzlib.tasks import list_tasks

    with pd.option_context("display.width", 160, "display.max_rows", None):
        print(list_tasks().to_string(index=False, na_rep="-"))


def _data_get(args) -> int:
    from mzlib.benchmark import load_suite
    from mzlib.tasks import CARDS
    from mzlib.tasks.download import get_together

    names, groups, failed = args.names, {}, 0
    if not names and not args.suite:
        raise MzlibError("expected names of tasks or a suite, got neither; `mzlib data list` shows the tasks")
    if args.suite:
        suite = load_suite(args.suite)
        names += [n for n in (*suite.sources, *suite.targets) if CARDS.get(n, {}).get("origin") != "embedded"]
    for name in dict.fromkeys(names):
        groups.setdefault(CARDS.get(name, {}).get("source", name), []).append(name)  # one download for all of an origin
    for group in groups.values():
        try:
            print(*get_together(group, args.size), sep="\n")
        except MzlibError as error:  # the others may still be had
            print(f"mzlib: {error}", file=sys.stderr)
            failed = 1
    return failed


def _data_check(args) -> None:
    from mzlib.tasks import manifest, store

    for name in args.names:
        print(f"{name}: {manifest.compare(name, store.root() / name)}")


if __name__ == "__main__":
    sys.exit(main())
