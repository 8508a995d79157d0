# %% [markdown]
# # Quickstart: from a folder of images to a fine-tuned network
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/00_quickstart.ipynb)
#
# **Give mzlib a folder with one sub-folder of images per class. It ranks the pre-trained experts for these images, and you
# fine-tune the first.** If you give no folder, this notebook makes one of handwritten digits. Parameters: `suite` (whose experts
# to rank; those of `thumb64` come with the repository), `images` (the path), `epochs`.

# %% tags=["parameters"]
suite = "thumb64"
images = ""
epochs = 30
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

# %% [markdown]
# ## The images

# %% tags=["hide-input"]
from pathlib import Path

from PIL import Image

import mzlib
from mzlib.provenance import home

runs = home() / "runs"
if not images:
    images = runs / "digits"
    task = mzlib.load_task("digits")
    for i in mzlib.few_shot(task.train.labels, 40, seed=0):
        folder = Path(images, task.class_names[task.train.labels[i]])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(task.train.images[i]).save(folder / f"{i}.png")
listing = mzlib.open_images(images)
print(
    f"{len(listing.labels)} images of {len(listing.class_names)} classes, "
    f"{listing.held_out.sum()} of them held out as test images"
)

# %% [markdown]
# ## The ranking
#
# mzlib orders the experts by the best score that applies. For the committed experts, this combines ridge regression on these
# images with how the same experts did on past data sets; for others, it is ridge regression alone. Beside it stand the paper's
# scores: label-feature correlation (LFC: do images that share a label have similar features?) and label-gradient correlation
# (LGC). The interval in brackets is of 95 %. `rank` is the span of ranks that the images leave open; if the spans of two experts
# overlap, 25 images per class cannot tell them apart.

# %%
zoo = None  # the committed experts
if suite != "thumb64":
    zoo = [one for one in mzlib.load_zoo(suite) if ":" not in one.name]
ranking = mzlib.rank(images, zoo, progress=False)
table = ranking.summary().head(10).drop(columns="seconds")
table = table.style.hide(axis="index")
table.set_table_attributes('class="dataframe"')

# %%
print(ranking.verdict)
print(ranking.facts["why"])

# %% [markdown]
# ## Fine-tune the first
#
# We fine-tune the first expert on the training images and report its accuracy on the test images, which no score has seen.

# %%
winner = ranking.best
by_name = {expert.name: expert for expert in zoo or []}
tuned = mzlib.finetune(
    images,
    by_name.get(winner, winner),
    epochs=epochs,
    out=runs / "finetuned",
    force=True,
    progress=False,
)
print(winner)
print(f"{tuned.accuracy:.1%} [{tuned.low:.1%}, {tuned.high:.1%}]")
print(f"of {tuned.test_images} test images")
print(f"fine-tuned in {tuned.seconds:.0f} s; load it with timm.create_model:")
print(f"'local-dir:{os.path.relpath(tuned.folder, home())}', pretrained=True")
