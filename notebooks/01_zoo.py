# %% [markdown]
# # The toy zoo
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/01_zoo.ipynb)
#
# **Each single-domain expert is a network trained on one source; a multi-domain expert is one network for all sources.** An
# expert *from scratch* starts from random weights. One *from the generic expert* starts from the network trained on the
# generic source, which plays the role of ImageNet. Parameter: `suite`.

# %% tags=["parameters"]
suite = "mini"
known = {name for name in globals() if not name.startswith("_")}

# %% tags=["hide-input"]
import os
import sys

if "google.colab" in sys.modules:
    os.system(
        "git clone -q --depth 1 --branch v0.2.0 https://github.com/mzlib/mzlib"
        " && pip install -q ./mzlib"
    )
    os.chdir("mzlib")

from mzlib.benchmark.notebooks import check_parameters

chosen = check_parameters(known, globals())

# %% tags=["hide-input"]
from mzlib.benchmark import figures
from mzlib.benchmark import load_results, run_suite

run_suite(suite, stages=["zoo"])  # trains what is missing: nothing, when the results are there
results = load_results(suite)
zoo = results.zoo
figures.provenance_line(suite, results.provenance)

# %% [markdown]
# ## Accuracy on the source
#
# Accuracy (%) of the single-domain experts on the test images of their own source, as in [Table 1](../experts.md) but for the toy
# suite. A row shows how hard each source is; comparing rows shows what starting from the generic expert brings.

# %% tags=["hide-input", "functions"]
from mzlib.benchmark.figures import MULTI_DOMAIN, display_name


def table1(zoo):
    """Accuracy (%) of single-domain experts on their source: architecture, start × sources."""
    single = zoo[~zoo["pretraining"].isin(MULTI_DOMAIN)]
    table = single.pivot(index=["architecture", "pretraining"], columns="source", values="accuracy")
    table = 100 * table[single["source"].unique()]
    return table.rename(index=display_name, columns=display_name)


# %% tags=["hide-input"]
figures.show(
    table1(zoo),
    "table1",
    caption="Accuracy (%) of every single-domain expert on its own source.",
)

# %% [markdown]
# Chance is one over the number of classes:

# %% tags=["hide-input"]
sources = zoo.drop_duplicates("source").set_index("source")
sources = sources[["domain", "classes", "train_images", "test_images"]]
sources["chance (%)"] = 100 / sources["classes"]
sources = sources.rename(columns=figures.display_name)
figures.show(
    sources,
    "sources",
    caption="The sources of the suite and the accuracy that guessing reaches on each.",
)

# %% [markdown]
# ## One network for all sources
#
# Accuracy (%) on each source of the single-domain expert trained from scratch and of three multi-domain experts, as in
# [Table 2](../experts.md). *Shared* has one set of weights, with a classifier per domain. *Multi-BN* has batch-norm statistics, scale
# and bias per domain. *Adapter* adds a 1 × 1 convolution per domain in parallel with every 3 × 3 one. An epoch has the same number
# of images from every domain. The paper finds Multi-BN best and uses it from there on.


# %% tags=["hide-input", "functions"]
def table2(zoo, statistic="mean"):
    """Accuracy (%) of single-domain experts from scratch and of multi-domain ones, by source.

    Mean over the training seeds, or another statistic of them (`std`).
    """
    multi = zoo[zoo["pretraining"].isin(MULTI_DOMAIN)]
    like = zoo[zoo["architecture"].isin(multi["architecture"])]
    shown = ["scratch", *MULTI_DOMAIN]
    like = like[like["pretraining"].isin(shown)]
    table = like.groupby(["source", "pretraining"])["accuracy"].agg(statistic).unstack()
    present = [name for name in shown if name in table]
    table = 100 * table.loc[multi["source"].unique(), present]
    table = table.rename(columns={"scratch": "Single domain"})
    return table.rename(index=display_name, columns=display_name)


# %% tags=["hide-input"]
figures.show(
    table2(zoo),
    "table2",
    caption="Accuracy (%) on each source of one network for all sources, "
    "beside the single-domain expert's.",
)

# %% [markdown]
# ## Cost
#
# What it took to train each expert, on the hardware named at the top of the page.

# %% tags=["hide-input"]
cost = zoo.assign(expert=zoo["expert"].str.split(":").str[0]).drop_duplicates("expert")
minutes = cost["seconds"].sum() / 60
figures.show(
    cost.set_index("expert")[["parameters", "epochs", "seconds"]],
    "zoo-cost",
    caption=f"All {len(cost)} networks together took {minutes:.0f} minutes of one core.",
)
