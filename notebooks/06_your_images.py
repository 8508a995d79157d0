# %% [markdown]
# # Notebook: rank experts for your own images
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/06_your_images.ipynb)
#
# **This notebook ranks the experts for your images and shows the full report.** On Colab, drag a zip file of class folders into
# the file browser and give its path, or give a folder on Google Drive. A Parquet file, or a folder of them, with the columns
# `image` and `label` also works, as does a CSV of `path,label`. Parameters: `suite`; `images` (a path; if empty, scikit-learn's
# digits); `experts` (as for `mzlib rank --zoo`, for example `timm:resnet50.a1_in1k`; if empty, those of the suite); `selectors`
# (for example `lfc,leep`; if empty, the best order that applies, with the paper's LFC and LGC beside it); `until_settled` (k:
# drops experts that can no longer be among the first k); `top` and `epochs` for fine-tuning.

# %% tags=["parameters"]
suite = "thumb64"
images = ""
experts = ""
selectors = ""
until_settled = 0
top = 1
epochs = 10
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
# ## Where the images are

# %% tags=["hide-input"]
import shutil
from pathlib import Path

from PIL import Image

import mzlib
from mzlib.provenance import home

runs = home() / "runs"
runs.mkdir(exist_ok=True)
if images.startswith("/content/drive"):
    from google.colab import drive

    drive.mount("/content/drive")
if images.endswith(".zip"):
    unpacked = runs / Path(images).stem
    shutil.unpack_archive(images, unpacked)
    images = unpacked
if not images:  # the images of the quickstart: 40 of a class
    images = runs / "handwritten_digits"
    task = mzlib.load_task("digits")
    for i in mzlib.few_shot(task.train.labels, 40, seed=0):
        folder = Path(images, task.class_names[task.train.labels[i]])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(task.train.images[i]).save(folder / f"{i}.png")
source = mzlib.open_images(images)
print(f"{source.name}: {len(source.class_names)} classes")

# %% [markdown]
# ## The report
#
# This is the page that `mzlib rank … --report out.html` writes: the ranking with intervals, how the best and the worst expert
# see the images, which classes are hard to tell apart, what each selector says, and how much computation the ranking saves.

# %%
from IPython.display import HTML

zoo = experts or None
if suite != "thumb64":
    zoo = [one for one in mzlib.load_zoo(suite) if ":" not in one.name]
options = {"until_settled": until_settled, "progress": False}
report = runs / "report.html"
ranking = mzlib.rank(source, zoo, selectors or None, report=report, **options)
page = report.read_text("utf-8").replace('"', "&quot;")
style = "width: 100%; height: 40rem; border: 1px solid #7c7c7c"
HTML(f'<iframe srcdoc="{page}" title="Report" style="{style}"></iframe>')

# %% [markdown]
# ## Fine-tune the first
#
# If several experts are tied, set `top` to their number and compare the intervals.

# %%
loaded = zoo if isinstance(zoo, list) else []
by_name = {expert.name: expert for expert in loaded}
options = {"epochs": epochs, "force": True, "progress": False}
for name in ranking.first["expert"].head(top):
    tuned = mzlib.finetune(
        source,
        by_name.get(name, name),
        zoo=experts or None,
        out=runs / "finetuned",
        **options,
    )
    print(f"{name}: {tuned.accuracy:.1%} [{tuned.low:.1%}, {tuned.high:.1%}]")
    print(f"saved in {os.path.relpath(tuned.folder, home())}")
