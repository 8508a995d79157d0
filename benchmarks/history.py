"""`neighbour_history` without leaks: Spearman's correlation with accuracy on every target of a suite when it,
its family of targets, the expert's source or most of the past are left out.

    python benchmarks/history.py [thumb64]

Reads the committed tables; writes results/benchmarks/history.csv: setting, task, spearman, alone (of the
score by itself), difference. About a minute on one core.
"""

import sys

from mzlib.benchmark import complete, learned, load_results, load_suite
from mzlib.provenance import home


def main(name: str = "thumb64") -> None:
    suite = load_suite(name)
    results = load_results(name)
    finetune = complete(results.finetune, suite, "single")
    past = learned.collect(finetune, results.scores, results.zoo, suite.generic, "20")
    source = dict(zip(results.zoo["expert"], results.zoo["source"]))
    table = learned.without_leaks(past, {expert: source[expert] for expert in past.experts})
    table.to_csv(home() / "results/benchmarks/history.csv", index=False, float_format="%.4f")
    means = table.groupby("setting", sort=False)[["spearman", "alone", "difference"]].mean()
    print(means.round(3).to_string())


if __name__ == "__main__":
    main(*sys.argv[1:])
