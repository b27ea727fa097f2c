"""Build sdist and wheel, install the wheel into a fresh environment, and draw a fox with it from another folder.

python tests/run_dist.py        TORCH="torch==2.13.0" says which torch goes in first
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PIP = ("-m", "pip", "install", "--quiet", "--disable-pip-version-check")


def run(*command: str | Path, folder: str | Path) -> str:
    """A command's output; ends with its own words where it fails."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([str(word) for word in command], cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return done.stdout


def largest(wheel: Path, count: int = 5) -> str:
    """The largest files of a wheel."""
    files = sorted(zipfile.ZipFile(wheel).infolist(), key=lambda file: -file.compress_size)[:count]
    return ", ".join(f"{file.filename} {file.compress_size / 1e6:.1f}" for file in files)


def main() -> None:
    """Build, install, draw, and say how large the wheel is."""
    for old in (ROOT / "dist").glob("nnsight_dream-*"):
        old.unlink()
    run(sys.executable, "-m", "build", "--outdir", ROOT / "dist", ROOT, folder=ROOT)
    (wheel,), (sdist,) = (list((ROOT / "dist").glob(f"nnsight_dream-*.{end}")) for end in ("whl", "tar.gz"))
    print(f"wheel {wheel.stat().st_size / 1e6:.1f} MB, sdist {sdist.stat().st_size / 1e6:.1f} MB  ({wheel.name})")
    print(f"largest in the wheel, MB: {largest(wheel)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        run(sys.executable, "-m", "venv", home / "fresh", folder=home)
        python = home / "fresh" / "bin" / "python"
        if torch := os.environ.get("TORCH"):
            run(python, *PIP, torch, folder=home)
        run(python, *PIP, wheel, folder=home)
        where = run(python, "-c", "import nnsight_dream; print(nnsight_dream.__file__)", folder=home).strip()
        assert Path(where).is_relative_to(home / "fresh"), where
        began = time.time()
        said = run(home / "fresh" / "bin" / "nnsight-dream", "synthesize", "fox", "--layer", "1", folder=home)
        print(said.strip().splitlines()[-1])
        assert list(home.glob("dreams/**/prototype.png")), "no picture was saved"
        print(f"the wheel alone drew a fox in {time.time() - began:.0f} s")


if __name__ == "__main__":
    main()
