"""Run the notebooks of this folder anew and keep their outputs: `make tutorials`, or `python run.py NAME ...`.

Outputs are those of one run from first to last in an empty folder. What goes to stderr (progress bars, notes of other
libraries) is not kept, pictures are kept once and as WebP.
"""

from __future__ import annotations

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent


def smaller(found: re.Match[str]) -> str:
    """A PNG in a page as WebP."""
    made = io.BytesIO()
    Image.open(io.BytesIO(base64.b64decode(found[1]))).convert("RGB").save(made, "WEBP", quality=80, method=6)
    return f"data:image/webp;base64,{base64.b64encode(made.getvalue()).decode()}"


def kept(output: Any) -> Any:
    """An output as it is kept."""
    data = output.get("data", {})
    if "text/html" in data:
        data.pop("image/png", None)
        data["text/html"] = re.sub(r"data:image/png;base64,([A-Za-z0-9+/=]+)", smaller, data["text/html"])
    return output


def is_shown(output: Any) -> bool:
    """Results, pictures and what was printed, but no progress bars."""
    if output["output_type"] == "display_data":
        return "image/png" in output["data"]
    return output["output_type"] != "stream" or output["name"] == "stdout"


def run(path: Path) -> None:
    """One notebook, in place."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        resources = {"metadata": {"path": folder}}
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [kept(output) for output in cell.outputs if is_shown(output)]
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    nbformat.write(notebook, path)


def main() -> None:
    """All, or those named."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    paths = [HERE / f"{Path(name).stem}.ipynb" for name in sys.argv[1:]] or sorted(HERE.glob("*.ipynb"))
    for path in paths:
        began = time.time()
        run(path)
        print(f"{path.stem:<24} {time.time() - began:5.0f} s, {path.stat().st_size / 1024:.0f} KB", flush=True)


if __name__ == "__main__":
    main()
