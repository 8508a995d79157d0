"""The command line: `mzlib rank | finetune | choose | predict | run | status | data`.

Imports what a command needs when it runs.
"""

import argparse
import os
import shutil
import sys
import tomllib
from argparse import Namespace
from collections.abc import Callable, Iterable
from contextlib import redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from math import exp
from pathlib import Path
from typing import Any

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
    if getattr(args, "cache", None):
        os.environ["MZLIB_CACHE"] = args.cache
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


def _seed(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**63:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 2^63, got {text}")
    return value


TYPES = {"whole": _positive(int), "number": _positive(float), "seed": _seed}


def _parser() -> argparse.ArgumentParser:
    """Of all commands in `cli.toml`."""
    with open(Path(__file__).with_suffix(".toml"), "rb") as file:
        known = tomllib.load(file)
    parser = argparse.ArgumentParser(
        "mzlib", description="Which pre-trained model should I fine-tune?"
    )
    parser.add_argument("--version", action="version", version=f"mzlib {_version()}")
    _add_commands(parser, known["commands"], known["options"])
    return parser


def _add_commands(
    parser: argparse.ArgumentParser, commands: dict, options: dict, before: str = ""
) -> None:
    added = parser.add_subparsers(required=True, metavar="command")
    for name, about in commands.items():
        command = added.add_parser(name, help=about["help"], description=about["help"])
        if "commands" in about:
            _add_commands(command, about["commands"], options, f"{name} ")
            continue
        function = COMMANDS[f"{before}{name}"]
        command.set_defaults(command=function, **about.get("defaults", {}))
        kinds = any("dest" in options[option] for option in about["options"])
        exclusive = command.add_mutually_exclusive_group() if kinds else command
        for option in about["options"]:
            settings = dict(options[option])
            if "type" in settings:
                settings["type"] = TYPES[settings["type"]]
            place = exclusive if "dest" in settings else command
            place.add_argument(option, **settings)


def _given(args: Namespace, names: str) -> dict:
    """Options by name."""
    return {name: getattr(args, name) for name in names.split()}


def _run(args: Namespace) -> int:
    from mzlib.benchmark import load_suite
    from mzlib.benchmark.jobs import STAGES, Store
    from mzlib.benchmark.run import choice, run_suite

    if args.address and args.engine != "ray" or args.workers and args.engine == "serial":
        raise MzlibError("expected --address with --engine ray only, --workers not with serial")
    if args.only != "*":
        suite = load_suite(args.suite)
        chosen, _ = choice(suite, Store(suite.name), args.stage or STAGES, args.only, True)
        if not chosen:
            raise MzlibError(
                f"expected a pattern that names jobs of {suite.name}, got {args.only!r}"
            )
    if args.dry_run:
        from mzlib.benchmark.price import price

        print(price(args.suite, args.stage or STAGES, args.only, args.retry_failed))
        return 0
    names = "only retry_failed engine workers slots_per_gpu address time_limit"
    failed = run_suite(args.suite, stages=args.stage or STAGES, **_given(args, names))
    if failed:
        print(
            f"mzlib: {failed} jobs failed; `mzlib status {args.suite}` lists them, "
            "`--retry-failed` runs them again",
            file=sys.stderr,
        )
    return int(failed > 0)


def _status(args: Namespace) -> None:
    from mzlib.benchmark.run import failures, status

    print(status(args.suite).to_string(index=False))
    for job, error in failures(args.suite):
        print(f"failed: {job}: {error}")


def _rank(args: Namespace) -> int:
    from mzlib import api

    file = None if args.json == "-" else args.json
    _check_outputs(args.task, args.report, args.csv, file)
    names = "images_per_class until_settled report seed device"
    found = api.rank(
        _images(args), args.zoo, args.selectors, **_given(args, names), **_zoo_options(args)
    )
    if args.csv:
        found.table.to_csv(args.csv, index=False)
    as_json = found.table.to_json(file, orient="records", indent=1, double_precision=15)
    if args.json == "-":
        print(as_json)
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


def _check_outputs(read: str, *written: str | None) -> None:
    """Before work is done that would be lost, or images' labels be written over."""
    from mzlib.report import check_writable

    files = [file for file in written if file]
    for file in files:
        check_writable(file)
    paths = {os.path.realpath(file) for file in [read, *files]}
    if len(paths) <= len(files):
        raise MzlibError(f"expected a file of its own for each output, got {', '.join(files)}")


def _zoo_options(args: Namespace) -> dict:
    """Of what the zoo may hold, and what is asked before it is downloaded."""

    def confirm(size: int) -> None:
        if args.yes:
            return
        amount = f"{size / 1e6:,.0f} MB of weights"
        if not sys.stdin.isatty():
            raise MzlibError(
                f"expected --yes to download {amount}, for there is no terminal to ask"
            )
        if "recommended" in args.zoo:
            from mzlib.zoo.recommended import recommended

            print(recommended().to_string(index=False), file=sys.stderr)
        print(f"Download {amount}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise MzlibError(f"expected yes to download {amount}, got no: nothing was downloaded")

    limits = _given(args, "max_params max_gflops")
    return limits | {"confirm": confirm, "progress": not args.quiet}


def _images(args: Namespace):
    """What was named, opened already where its columns or the kind of its labels were, too."""
    names = ("image_column", "label_column", "labels")
    asked = {name: getattr(args, name) for name in names if getattr(args, name, None)}
    if not asked:
        return args.task
    from mzlib.images import open_images

    return open_images(args.task, **asked)


def _show(found: Any, args: Namespace) -> None:
    """The table, what it says, and what is missing from it."""
    table = found.table
    facts = found.facts
    if not args.quiet:
        for note in facts["notes"]:
            print(f"note: {note}", file=sys.stderr)
    print(_in_blocks(found.summary(), shutil.get_terminal_size(TERMINAL).columns))
    seen = table.loc[table["images"] > 0, "images"]
    images = " to ".join(map(str, sorted({seen.min(), seen.max()})))
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
    if found.layers:
        layers = [f"{layer} ({number} experts)" for layer, number in found.layers.items()]
        print("LGC is of the gradients of the layer", ", ".join(layers))
    for selector, rows in table[table["reason"] != ""].groupby("selector", sort=False):
        reasons = rows["reason"].value_counts()
        print(f"no {selector} for {len(rows)} experts:", "; ".join(_counted(reasons)))


def _say_meaning(found: Any) -> None:
    """What a score of the best expert means, of the first selector of which that can be said."""
    table = found.table
    told = table[(table["expert"] == found.best) & table["selector"].isin(list(READING))]
    told = told.dropna(subset="score")
    if told.empty:
        return
    row = told.iloc[0]
    reading = READING[row["selector"]].format(score=row["score"], exp=exp(min(row["score"], 0)))
    title = found.scorer.selectors[row["selector"]].title
    print(
        f"What {title} {row['score']:.2g} means: {reading}. Compare experts on these images only."
    )
    if row["score_all"] == row["score_all"] and row["images"] < found.sample.training:
        print(
            f"On all {found.sample.training} training images it would be about "
            f"{row['score_all']:.2g}: few images flatter it."
        )


def _counted(reasons: Any, most: int = 5) -> list[str]:
    """Each reason with its number of experts where it has several, the most frequent first."""
    shown = [f"{why} ({n} times)" if n > 1 else why for why, n in reasons.head(most).items()]
    if len(reasons) > most:
        shown.append(f"and {len(reasons) - most} other reasons")
    return shown


def _in_blocks(table: Any, width: int) -> str:
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


TRAINING = "out force lr epochs batch_size flip freeze seed device"


def _finetune(args: Namespace) -> None:
    from mzlib import api

    if bool(args.expert) == bool(args.top):
        got = "both" if args.top else "neither"
        raise MzlibError(
            f"expected --expert NAME or --top N, got {got}: `mzlib rank` shows the names"
        )
    for expert in args.expert:
        options = _given(args, TRAINING) | {"zoo": args.zoo, "progress": not args.quiet}
        _say(api.finetune(_images(args), expert, **options), args)
    if args.top:
        _chosen(_choice(args), args)


def _choose(args: Namespace) -> None:
    report = Path(args.report or Path(args.out, "report.html"))
    if args.report:
        _check_outputs(args.task, args.report)
    else:
        _make(report.parent)
    chosen = _choice(args, report=report, selectors=args.selectors, time_limit=args.time_limit)
    _chosen(chosen, args)
    print(f"The page: {report}")


def _choice(args: Namespace, **options):
    from mzlib import api

    options |= _given(args, TRAINING) | _zoo_options(args)
    return api.choose(_images(args), args.zoo, top=args.top, **options)


def _chosen(choice: Any, args: Namespace) -> None:
    _show(choice.ranking, args)
    for done in choice.tried:
        _say(done, args)
    for note in choice.notes:
        print(f"note: {note}", file=sys.stderr)
    kept = choice.kept
    print(
        f"The best on validation images, shrunk towards the ranking: {kept.expert.name}, in "
        f"{kept.folder}"
    )


def _say(done: Any, args: Namespace) -> None:
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


def _predict(args: Namespace) -> None:
    from mzlib import api

    _check_outputs(args.images, args.csv)
    table = api.predict(args.images, args.model, device=args.device, progress=not args.quiet)
    for note in [] if args.quiet else table.attrs["notes"]:
        print(f"note: {note}", file=sys.stderr)
    separator = "," if args.csv else "\t"
    table.to_csv(args.csv or sys.stdout, index=False, float_format="%.4f", sep=separator)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MzlibError(
            f"expected a folder that can be made, got {str(folder)!r}: {error.strerror}"
        ) from error


def _data_list(args: Namespace) -> None:
    import pandas as pd

    from mzlib.benchmark.data import list_tasks

    with pd.option_context("display.width", 160, "display.max_rows", None):
        print(list_tasks().to_string(index=False, na_rep="-"))


def _data_get(args: Namespace) -> int:
    from mzlib.benchmark import load_suite
    from mzlib.benchmark.data import CARDS
    from mzlib.benchmark.data.download import get_together

    names = list(args.names)
    if not names and not args.suite:
        raise MzlibError(
            "expected names of tasks or a suite, got neither; `mzlib data list` shows the tasks"
        )
    if args.suite:
        suite = load_suite(args.suite)
        if suite.collection:
            raise MzlibError(
                f"expected a suite whose tasks can be fetched, got {args.suite}: lay its data sets "
                "out as the book says (page 'The paper's own setting') and run `mzlib data check "
                "NAME --root FOLDER`"
            )
        tasks = (*suite.sources, *suite.targets)
        names += [name for name in tasks if CARDS.get(name, {}).get("origin") != "embedded"]
    groups: dict[str, list[str]] = {}  # by origin: one download for all of it
    for name in dict.fromkeys(names):
        groups.setdefault(CARDS.get(name, {}).get("source", name), []).append(name)
    return _each(groups.values(), lambda group: get_together(group, args.size))


def _data_check(args: Namespace) -> int:
    from mzlib.benchmark.data import duplicates, paper

    def check(name: str) -> list[str]:
        if args.root:
            lines = paper.check(name, Path(args.root, name))
        else:
            lines = [duplicates.check(name)]
        return [f"{name}: {line}" for line in lines]

    return _each(args.checked, check, most=1)


def _each(items: Iterable, lines_of: Callable, most: int | None = None) -> int:
    """Print the lines of each; 1 where one failed or has more than `most` lines."""
    failed = 0
    for item in items:
        try:
            lines = lines_of(item)
        except MzlibError as error:  # the others may still be had
            print(f"mzlib: {error}", file=sys.stderr)
            failed = 1
            continue
        print(*lines, sep="\n")
        if most and len(lines) > most:
            failed = 1
    return failed


COMMANDS = {
    "rank": _rank,
    "finetune": _finetune,
    "choose": _choose,
    "predict": _predict,
    "run": _run,
    "status": _status,
    "data list": _data_list,
    "data get": _data_get,
    "data check": _data_check,
}

if __name__ == "__main__":
    sys.exit(main())
