# %% [markdown]
# # Your own images: the notebook
#
# [Open in Colab](https://colab.research.google.com/github/mzlib/mzlib/blob/main/notebooks/06_your_images.ipynb)
#
# **Rank experts for images of yours and read the whole report.** On Colab: upload a zip file of class folders (drag it into the
# file browser) and give its path, or mount Google Drive and give the folder. A Parquet file or a folder of them with the
# columns `image` and `label`, and a CSV of `path,label`, will do as well. Parameters: `suite`, `images` (a path; empty: the
# digits of scikit-learn), `experts` (what `mzlib rank --zoo` takes, `timm:resnet50.a1_in1k` for one; empty: the suite's),
# `selectors`, `until_settled` (k: drop experts that can no longer be among the first k), `top` and `epochs` of fine-tuning.

# %% tags=["parameters"]
suite = "thumb64"
images = ""
experts = ""
selectors = "lfc,leep"
until_settled = 0
top = 1
epochs = 10
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
    shutil.unpack_archive(images, folder := runs / Path(images).stem)
    images = folder
if not images:  # the images of the quickstart: 40 of a class
    task, images = mzlib.load_task("digits"), runs / "handwritten_digits"
    for i in mzlib.few_shot(task.train.labels, 40, seed=0):
        folder = Path(images, task.class_names[task.train.labels[i]])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(task.train.images[i]).save(folder / f"{i}.png")
source = mzlib.open_images(images)
print(f"{source.name}: {len(source.class_names)} classes")

# %% [markdown]
# ## The report
#
# The same page as `mzlib rank … --report out.html`: the ranking with intervals, how the best and the worst expert see the
# images, classes that are hard to tell apart, what each selector says, what it saves.

# %%
from IPython.display import HTML

zoo = experts or None
if suite != "thumb64":
    zoo = [expert for expert in mzlib.load_zoo(suite) if ":" not in expert.name]
ranking = mzlib.rank(source, zoo, selectors.split(","), until_settled=until_settled, report=runs / "report.html", progress=False)
page = (runs / "report.html").read_text("utf-8").replace('"', "&quot;")
HTML(f'<iframe srcdoc="{page}" title="Report" style="width: 100%; height: 40rem; border: 1px solid #7c7c7c"></iframe>')

# %% [markdown]
# ## Fine-tune the first
#
# Where ranks are tied, set `top` to the number of experts that are and compare the intervals.

# %%
by_name = {expert.name: expert for expert in zoo} if isinstance(zoo, list) else {}
for name in ranking.first["expert"].head(top):
    tuned = mzlib.finetune(source, by_name.get(name, name), zoo=experts or None, epochs=epochs, out=runs / "finetuned", force=True, progress=False)
    print(f"{name}: {tuned.accuracy:.1%} [{tuned.low:.1%}, {tuned.high:.1%}], saved in {os.path.relpath(tuned.folder, home())}")
