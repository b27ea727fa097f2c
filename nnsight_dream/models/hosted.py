"""Models on servers: a VLM without its weights, and which VLMs a server has."""

from __future__ import annotations

import ast
import difflib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..state.nnsight_import import import_nnsight
from . import hub
from .families import FAMILIES, family_of, known_families
from .parts import processor_at, wrap

if TYPE_CHECKING:
    from .family import Family
    from .place import Remote
    from .vlm import VLM


TASK = "image-text-to-text"


_WEIGHTS_ONLY = ("up_to_layer", "device", "dtype", "device_map", "checkpoint_tower", "head", "max_memory")


def without_weights(x: Any, processor: Any, family: Family | None, place: Remote, options: dict[str, Any]) -> VLM:
    """A VLM of a model that a server has: config, processor and the form of its modules, no weights.

    Raises ValueError for what is no hub id, for options that only weights have, and for an unknown family; TypeError
    for options that it does not know.
    """
    import_nnsight()
    from nnsight.modeling.transformers import TransformersModel
    from transformers import AutoConfig

    if not isinstance(x, str) or x in ("demo", "gemma-270m") or Path(x).is_dir():
        raise ValueError(
            f"remote={place.where!r}: a server knows models by their hub ids, such as 'google/gemma-3-27b-it'; got "
            f"{x if isinstance(x, str) else type(x).__name__!r}. For a model of your own there is remote='local'"
        )
    if wrong := [name for name in _WEIGHTS_ONLY if name in options]:
        raise ValueError(
            f"{', '.join(wrong)}= {'is' if len(wrong) == 1 else 'are'} the server's choice, which has loaded the model "
            "already; leave out"
        )
    if unknown := [name for name in options if name not in hub.ACCESS]:
        near = difflib.get_close_matches(unknown[0], hub.ACCESS, 1)
        raise TypeError(
            f"load: unexpected keyword {unknown[0]!r} for a model on a server, of which config and processor alone are "
            f"read here; it takes {', '.join(f'{name}=' for name in hub.ACCESS)}"
            + (f"; did you mean {near[0]}=?" if near else "")
        )
    with hub.door(x, options):
        config = AutoConfig.from_pretrained(x, **hub.access(options))
        family = family or family_of(config)
        if family is None:
            raise ValueError(
                f"model_type {config.model_type!r} is of no known family, and probing one needs weights. Known are "
                f"{known_families()}; for others pass family=, a record of your own"
            )
        handler = processor or processor_at(x, family, **options)
        named = {"task": TASK, "revision": options.get("revision"), "config": config}
        model = TransformersModel(x, **named, **_preprocessors(handler))
        model.kwargs.pop("config", None)  # it would travel with every job, as classes of our transformers
        hf = model._module
    vlm = wrap(model, hf, handler, family, x)
    vlm.revision = options.get("revision") or hub.commit(x, options)
    vlm.remote = place
    return vlm


def _preprocessors(handler: Any) -> dict[str, Any]:
    """Arguments that keep nnsight from guessing: the processor, or the parts of one that cannot be made whole."""
    if callable(handler):
        return {"processor": handler, "tokenizer": handler.tokenizer}
    return {"tokenizer": handler.tokenizer, "image_processor": handler.image_processor}


@dataclass(frozen=True)
class Hosted:
    """A vision-language model on a server.

    id       its hub id, for `nd.load(id, remote=True)`; `revision` where the server holds a certain one
    state    "running", "deploying", "unhealthy", "cold" (on the server's disk) or "unknown"
    family   the name of the family's record here, or "" where there is none
    ready    whether it is known here, and under the name by which `nd.load` asks for it
    """

    id: str
    state: str
    family: str
    ready: bool
    revision: str | None = None


def remote_models(host: str | None = None) -> list[Hosted]:
    """The vision-language models that a server has, those that run first.

    host   a server's address; the one that nnsight is set to ($NDIF_HOST) if not given

    Raises RuntimeError where it does not answer.
    """
    import_nnsight()
    import httpx
    from nnsight.schema.config import CONFIG

    from ..remote.errors import refused, unreachable

    host = None if host is None else arguments.text(host, "host", "https://api.ndif.us", blank=False)
    place = (host or str(CONFIG.API.HOST)).rstrip("/")
    try:
        answer = httpx.get(f"{place}/status", timeout=httpx.Timeout(10.0, read=60.0))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise unreachable(place, error) from None
    if answer.status_code != 200:
        raise refused(answer.status_code, answer.text, place, "the list of models", bool(CONFIG.API.APIKEY))
    models: dict[tuple[str, Any, bool], Hosted] = {}
    order = ("running", "deploying", "unknown", "cold", "unhealthy")
    for name, row in answer.json().get("deployments", {}).items():
        model = _hosted(str(name), row)
        if model is None:
            continue
        key = (model.id, model.revision, model.ready)
        if key not in models or order.index(model.state) < order.index(models[key].state):
            models[key] = model
    return sorted(models.values(), key=lambda model: (order.index(model.state), model.id.lower()))


def _hosted(name: str, row: dict[str, Any]) -> Hosted | None:
    """A model of a server's list, if it is one that sees pictures."""
    config = _config(row.get("config"))
    task = row.get("task") or json_task(row.get("model_key"))
    family = _family(config) if config else ""
    sees = bool(family) or task == TASK or (config is not None and "vision_config" in config)
    if not sees:
        return None
    level, state = str(row.get("deployment_level") or ""), str(row.get("application_state") or "").lower()
    if state not in ("running", "deploying", "unhealthy"):
        state = "cold" if level == "COLD" else "unknown"
    ready = bool(family) and task in (TASK, None)
    return Hosted(str(row.get("repo_id") or name), state, family, ready, row.get("revision"))


def json_task(key: Any) -> str | None:
    """The task in a model key, or None."""
    try:
        return json.loads(str(key).split(":", 1)[1]).get("task")
    except (IndexError, ValueError, AttributeError):
        return None


def _config(stated: Any) -> dict[str, Any] | None:
    """A config as a server sends it: JSON, or a Python dict as printed."""
    if isinstance(stated, dict):
        return stated
    text = str(stated or "")
    text = text[text.find("{") :] if "{" in text else ""
    for read in (json.loads, ast.literal_eval):
        try:
            config = read(text)
        except (ValueError, SyntaxError):
            continue
        return config if isinstance(config, dict) else None
    return None


def _family(config: dict[str, Any]) -> str:
    """The family's name, by the types in a config of plain data."""
    text = (config.get("text_config") or {}).get("model_type")
    tower = (config.get("vision_config") or {}).get("model_type")
    for family in FAMILIES:
        fits = not family.decoders or text in (*family.decoders, None)
        fits = fits and (not family.towers or tower in (*family.towers, None))
        if config.get("model_type") in family.model_types and fits:
            return family.name
    return ""
