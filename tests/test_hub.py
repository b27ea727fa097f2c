"""Hub ids and folders: what is not there is said in seconds, and no code of strangers runs or is asked about."""

from __future__ import annotations

import builtins
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from heads import heads
from PIL import Image

import nnsight_dream as nd
from nnsight_dream.alignment import encoders
from nnsight_dream.alignment.pairs import from_hub, pair
from nnsight_dream.alignment.preference import clip_scores
from nnsight_dream.cli import main
from nnsight_dream.models import hub, network
from nnsight_dream.models.estimate import estimate

DOORS: dict[str, Callable[[Any], Any]] = {
    "load": nd.load,
    "up_to_layer": lambda x: nd.load(x, up_to_layer=1),
    "local": lambda x: nd.load(x, remote="local"),
    "estimate": estimate,
    "sweep": lambda x: nd.sweep(x, nd.jobs_of([("fox", "animal", "fox")], [1]), "unused"),
    "vision_model": encoders.vision_model,
    "language_model": encoders.language_model,
    "ZeroShotJudge": lambda x: nd.ZeroShotJudge(x, names=["fox"]),
    "VLMJudge": nd.VLMJudge,
    "clip_scores": lambda x: clip_scores(x, [pair("1", Image.new("RGB", (8, 8)), ["fox"])]),
}


@pytest.fixture(autouse=True)
def _nobody_at_the_keyboard(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*args: Any) -> str:
        raise AssertionError(f"standard input was read: {args}")

    monkeypatch.setattr(builtins, "input", asked)


# -- names -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("door", DOORS)
def test_a_folder_that_is_not_there(door: str, tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"no folder .*none; give an existing folder, a hub id such as"):
        DOORS[door](str(tmp_path / "none"))
    assert time.monotonic() - began < 3


def test_names_that_mean_no_model(tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, words in {
        "": "name is empty",
        "../none": "no folder ../none",
        "C:\\models\\gemma": "no folder C:",
        "a/b/c": "no folder a/b/c",
        str(tiny_folder / "config.json"): "is a file; give the folder that it is in",
        "spaces in it": "can be no hub id; give an existing folder",
        str(tmp_path): "holds no config.json, so no model; it is empty",
        str(tiny_folder.parent): f"there is one in .*{tiny_folder.name}",
    }.items():
        with pytest.raises((FileNotFoundError, ValueError), match=words):
            nd.load(name)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="holds an adapter alone: load its base model"):
        nd.load(tmp_path)
    monkeypatch.setenv("HOME", str(tiny_folder.parent))
    assert nd.load(f"~/{tiny_folder.name}", check=False).layers == 4


def test_the_command_answers_before_it_imports_torch(tmp_path: Path) -> None:
    script = (
        "import sys; from nnsight_dream.cli import main\n"
        "for a in (['synthesize', 'fox', '--model', '/no/such/folder'], ['inspect', '/no/such/folder'],\n"
        "          ['features', '--word', 'fox', '--model', '/no/such'], ['feature', 'demo', '1', '--model', 'a/b']):\n"
        "    assert main(a) == 1\n"
        "assert not {'torch', 'transformers', 'nnsight'} & set(sys.modules)\n"
    )
    env = {**os.environ, "HF_HUB_OFFLINE": "0", "TRANSFORMERS_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
    env["HF_HUB_CACHE"] = str(tmp_path)
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 4
    assert all("no folder /no/such" in line for line in lines[:3])
    assert "a/b here, and config.json of a/b is not in the Hugging Face cache" in lines[3]
    assert "http://127.0.0.1:9 cannot be reached" in lines[3]


# -- a hub out of reach ------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a hub that may be asked."""
    from huggingface_hub import constants

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return folder


@contextlib.contextmanager
def endpoint(how: str) -> Iterator[str]:
    """A hub that refuses connections, takes them and says nothing, or answers with a status."""
    if how.isdigit():
        # the address itself answers, unless the whole hub is down
        with heads(503 if how == "503" else 200, int(how), codes=True) as address:
            yield address
        return
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        if how == "silent":
            listening.listen(8)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def use(monkeypatch: pytest.MonkeyPatch, here: str) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", here)
    template = here + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.mark.parametrize("door", [*DOORS, "NDIF"])
def test_a_hub_out_of_reach_is_said_at_once(door: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doors = {**DOORS, "NDIF": lambda x: nd.load(x, remote="http://127.0.0.1:9")}
    with endpoint("refused") as here:
        use(monkeypatch, here)
        began = time.monotonic()
        with pytest.raises(
            ConnectionError, match=r"config.json of some/model is not in .* cannot be reached: go online"
        ):
            doors[door]("some/model")
        assert time.monotonic() - began < 3


def test_data_sets_and_autoencoders_are_said_at_once_too(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    with endpoint("refused") as here:
        use(monkeypatch, here)
        for given in (lambda: from_hub("some/data", "train", most=1), lambda: nd.feature("some/saes", "layer_1", 0)):
            began = time.monotonic()
            with pytest.raises(
                ConnectionError, match=r"some/(data|saes) is not in .* cannot be reached: go online once"
            ):
                given()
            assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("how", "kind", "words"),
    [
        ("silent", ConnectionError, "cannot be reached"),
        ("503", ConnectionError, "only answers with status 503"),
        ("404", FileNotFoundError, "there is no repository some/model on the hub, or it is private"),
        ("403", PermissionError, "some/model is gated: accept its terms"),
    ],
)
def test_what_the_hub_answers(
    how: str, kind: type[Exception], words: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "PATIENCE", 0.5)
    with endpoint(how) as here:
        use(monkeypatch, here)
        began = time.monotonic()
        with pytest.raises(kind, match=words) as error:
            nd.load("some/model")
        assert time.monotonic() - began < 3
        assert len(str(error.value).splitlines()) == 1


def test_what_is_cached_is_taken_at_once(
    cache: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(network, "PATIENCE", 0.5)
    home = cache / "models--some--model"
    (home / "refs").mkdir(parents=True)
    (home / "refs" / "main").write_text("a" * 40)
    shutil.copytree(tiny_folder, home / "snapshots" / ("a" * 40))
    with endpoint("silent") as here:
        use(monkeypatch, here)
        began = time.monotonic()
        vlm = nd.load("some/model", up_to_layer=2, check=False)
        assert time.monotonic() - began < 10
        assert (vlm.layers, vlm.id, vlm.revision) == (2, "some/model", "a" * 40)
        assert constants.HF_HUB_OFFLINE is False
        said = capsys.readouterr().err
        assert said.count("cannot be reached; some/model is taken from the Hugging Face cache") == 1
        (home / "snapshots" / ("a" * 40) / "model.safetensors").unlink()
        with pytest.raises(ConnectionError, match="a file of some/model is not in the Hugging Face cache"):
            nd.load("some/model", check=False)
        with pytest.raises(ConnectionError, match="local_files_only=True asks no network"):
            nd.load("other/model", local_files_only=True)


# -- code of strangers -------------------------------------------------------------------------------------------

PARTS = {
    "config.json": ("AutoConfig", {"model_type": "strange"}),
    "processor_config.json": ("AutoProcessor", {"processor_class": "StrangeProcessor"}),
    "tokenizer_config.json": ("AutoTokenizer", {"tokenizer_class": "StrangeTokenizer"}),
    "preprocessor_config.json": ("AutoImageProcessor", {"image_processor_type": "StrangeImageProcessor"}),
}


def strange(folder: Path, file: str) -> Path:
    """Make one part of a checkpoint ask for code, which would leave a mark if it ran."""
    kind, changes = PARTS[file]
    place = folder / file
    told = json.loads(place.read_text()) if place.is_file() else {}
    if file == "preprocessor_config.json" and not place.is_file():  # newer ones keep it with the processor
        whole = json.loads((folder / "processor_config.json").read_text())
        told = whole.pop("image_processor")
        (folder / "processor_config.json").write_text(json.dumps(whole))
    code = {"AutoTokenizer": ["strange.Strange", None]}.get(kind, "strange.Strange")
    place.write_text(json.dumps({**told, **changes, "auto_map": {kind: code}}))
    mark = folder / "ran"
    (folder / "strange.py").write_text(f"open({str(mark)!r}, 'w')\nclass Strange: pass\n")
    return mark


@pytest.mark.parametrize("file", [file for file in PARTS if file != "tokenizer_config.json"])
def test_a_part_that_asks_for_code_of_its_own_is_refused(file: str, tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    mark = strange(folder, file)
    doors: list[Callable[[], Any]] = [lambda: nd.load(folder), lambda: nd.load(folder, up_to_layer=1, head=False)]
    doors += [lambda: estimate(folder), lambda: nd.VLMJudge(folder)]
    for door in doors:
        with pytest.raises(ValueError, match=rf"asks to run Python code that comes with it \({file}\)") as error:
            door()
        assert len(str(error.value).splitlines()) == 1
    assert not mark.exists()


def test_a_class_of_transformers_own_goes_before_strangers(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    mark = strange(folder, "tokenizer_config.json")  # by the config's type transformers knows one
    assert nd.load(folder).tokenizer("fox").input_ids == nd.load(tiny_folder).tokenizer("fox").input_ids
    assert not mark.exists()


def test_encoders_and_the_command_run_no_code(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_folder, folder)
    mark = strange(folder, "config.json")
    with pytest.raises(ValueError, match="code of strangers is never run"):
        encoders.language_model(folder)
    with pytest.raises(ValueError, match="code of strangers is never run"):
        encoders.vision_model(folder, processor=object())
    assert main(["inspect", str(folder)]) == 1
    assert "code of strangers is never run" in capsys.readouterr().err
    assert not mark.exists()


def test_the_question_is_asked_of_nobody_by_other_libraries_either() -> None:
    """sae-lens and nnsight load parts of models themselves, and say nothing of trust."""
    from transformers import dynamic_module_utils

    before = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    with hub.never_asking(), hub.never_asking(), pytest.raises(ValueError, match="trust_remote_code") as error:
        dynamic_module_utils.resolve_trust_remote_code(None, "some/model", False, True)
    assert hub.foreign(error.value)
    assert before == dynamic_module_utils.TIME_OUT_REMOTE_CODE > 0


def test_blocks_of_several_threads_end_in_any_order() -> None:
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    first, second = hub.offline(), hub.offline()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE is True
    second.__exit__(None, None, None)
    assert constants.HF_HUB_OFFLINE is before
