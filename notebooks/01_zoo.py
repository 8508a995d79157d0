# %% [markdown]
# # The zoo: experts trained on other domains
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/01_zoo.ipynb)
#
# **Every expert is one network trained on one source.** An expert *from scratch* (×) starts at random weights, one *from the
# generic expert* (✓) starts at the network that was trained on the generic source, which plays ImageNet's part.
# A multi-domain expert is one network for all sources. Parameter: `suite`.

# %% tags=["parameters"]
suite = "mini"
known = {name for name in globals() if not name.startswith("_")}

# %% tags=["hide-input"]
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 --branch v0.2.0 https://github.com/mzlib/mzlib && pip install -q ./mzlib")
    os.chdir("mzlib")

from mzlib.benchmark.notebooks import check_parameters

chosen = check_parameters(known, globals())

# %% tags=["hide-input"]
from mzlib.benchmark import figures
from mzlib.benchmark import load_results, run_suite

run_suite(suite, stages=["zoo"])  # trains what is missing: nothing, when the results are there
zoo = load_results(suite).zoo
figures.provenance_line(suite, load_results(suite).provenance)

# %% [markdown]
# ## Are the experts any good at home?
#
# Accuracy (%) of the single-domain experts on the test images of their own source: a toy beside [Table 1](../experts.md). Read along a row
# for how hard each source is; compare rows for what starting from the generic expert brings.

# %% tags=["hide-input"]
figures.show(figures.table1(zoo), "table1")

# %% [markdown]
# Chance is one over the number of classes, given with the sizes of the sources:

# %% tags=["hide-input"]
sources = zoo.drop_duplicates("source").set_index("source")[["domain", "classes", "train_images", "test_images"]]
figures.show(sources.assign(chance=100 / sources["classes"]), "sources")

# %% [markdown]
# ## One network for all sources
#
# Accuracy (%) on each source of the single-domain expert from scratch and of three multi-domain experts: a toy beside
# [Table 2](../experts.md). *Shared* has one set of weights and only a classifier for each domain; *Multi-BN* has batch-norm statistics,
# scale and bias of each domain; *Adapter* adds a parallel 1 × 1 convolution beside every 3 × 3 one. All domains have the
# same number of images in an epoch. The paper finds Multi-BN best and keeps it.

# %% tags=["hide-input"]
figures.show(figures.table2(zoo), "table2")

# %% [markdown]
# ## Cost
#
# What training each expert took, on the hardware named at the top of the page.

# %% tags=["hide-input"]
cost = zoo.assign(expert=zoo["expert"].str.split(":").str[0]).drop_duplicates("expert")
figures.show(cost.set_index("expert")[["parameters", "epochs", "seconds"]], "zoo_cost")
