# %% [markdown]
# # From a folder to "fine-tune this one"
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/00_quickstart.ipynb)
#
# **A folder with a sub-folder of images for each class goes in, a ranking of pre-trained experts comes out, and the first of
# them is fine-tuned.** Without a folder of yours, handwritten digits are written into one. Parameters: `suite` (whose experts;
# those of `thumb64` come with the repository), `images` (a path), `epochs`.

# %% tags=["parameters"]
suite = "thumb64"
images = ""
epochs = 30
known = {name for name in globals() if not name.startswith("_")}

# %% tags=["hide-input"]
import os
import sys

if "google.colab" in sys.modules:
    os.system("git clone -q --depth 1 --branch v0.2.0 https://github.com/mzlib/mzlib && pip install -q ./mzlib")
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
    task, images = mzlib.load_task("digits"), runs / "digits"
    for i in mzlib.few_shot(task.train.labels, 40, seed=0):
        folder = Path(images, task.class_names[task.train.labels[i]])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(task.train.images[i]).save(folder / f"{i}.png")
listing = mzlib.open_images(images)
print(f"{len(listing.labels)} images of {len(listing.class_names)} classes, {listing.held_out.sum()} of them kept for the test")

# %% [markdown]
# ## The ranking
#
# `score` is label-feature correlation (LFC), `low` and `high` its 95 % interval. `rank_low` to `rank_high` are the ranks that
# the images leave open: experts whose spans overlap are not told apart by 25 images per class.

# %%
zoo = None if suite == "thumb64" else [expert for expert in mzlib.load_zoo(suite) if ":" not in expert.name]
ranking = mzlib.rank(images, zoo, "lfc,leep", progress=False)
first = ranking.first
first[["rank_low", "rank_high", "expert", "source", "score", "low", "high", "seconds"]].head(10).round(3)

# %%
print(ranking.verdict)

# %% [markdown]
# ## Fine-tune the first
#
# The paper's recipe on the training images; accuracy on the test images, which no score has looked at.

# %%
winner = first["expert"].iloc[0]
expert = winner if zoo is None else next(expert for expert in zoo if expert.name == winner)
tuned = mzlib.finetune(images, expert, epochs=epochs, out=runs / "finetuned", force=True, progress=False)
print(f"{winner}: {tuned.accuracy:.1%} [{tuned.low:.1%}, {tuned.high:.1%}] of {tuned.test_images} test images, {tuned.seconds:.0f} s")
print(f"timm.create_model('local-dir:{os.path.relpath(tuned.folder, home())}', pretrained=True)")
