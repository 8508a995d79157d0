"""What `mzlib rank` prints: the sample on the book's page about your own images.

Usage: python benchmarks/rank_sample.py [REPORT.html]; needs the committed zoo, `mzlib[imagenet]`
and dtd10_textures under MZLIB_DATA. The command itself runs, on the 500 files of `ranking.folder`
and with an empty cache; results/benchmarks/rank_sample.txt has what it printed, unchanged.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ranking import folder

from mzlib.provenance import home

COMMAND = ["rank", "photos", "--report", "out.html"]
COLUMNS = "110"  # of the terminal: as wide as the page


def main(report: str | None) -> None:
    with tempfile.TemporaryDirectory() as root:
        folder(Path(root, "photos"), 1)
        settings = {
            "MZLIB_HOME": str(home()),
            "MZLIB_CACHE": f"{root}/cache",
            "COLUMNS": COLUMNS,
            "OMP_NUM_THREADS": "1",  # on a busy machine two threads wait for each other
        }
        done = subprocess.run(
            [sys.executable, "-m", "mzlib.cli", *COMMAND],
            cwd=root,
            check=True,
            text=True,
            stdout=subprocess.PIPE,
            env=os.environ | settings,
        )
        if report:
            shutil.copy(Path(root, "out.html"), report)
    Path(home(), "results/benchmarks/rank_sample.txt").write_text(done.stdout, "utf-8")
    print(done.stdout)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
