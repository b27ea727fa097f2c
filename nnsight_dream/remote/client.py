"""Jobs on a server: sent, watched, asked after, tried again."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..io import secrets
from . import loopback
from .errors import Lost, ServerError, refused, translated, unreachable

if TYPE_CHECKING:
    from .model import Model


TRIES = 4  # how often a job is sent in all


WAITS = (1.0, 5.0, 20.0)  # seconds before each further try


ASK_EVERY = 1.0  # seconds between questions after a detached job


SILENCE = 60.0  # seconds without a word after which a watched connection is tested


_COMPARED: dict[str, None] = {}


def model_key(vlm: Model) -> str:
    """The name under which servers know a model: as the hub spells it, or as it is given where the hub is out of reach.

    Raises RuntimeError where the hub does not know it.
    """
    from nnsight.modeling.huggingface import _ID_CACHE, _unreachable

    try:
        return str(vlm.model.to_model_key())  # type: ignore[operator]
    except Exception as error:
        if not _unreachable(error) and type(error).__module__.split(".")[0] not in ("httpx", "requests"):
            raise RuntimeError(f"the hub does not know {vlm.id} ({type(error).__name__}: {error})") from error
        _ID_CACHE[vlm.id] = vlm.id
        return str(vlm.model.to_model_key())  # type: ignore[operator]


def backend(vlm: Model, blob: bytes | None = None) -> Any:
    """nnsight's own client for a VLM's server, silent; it sends, reads messages and results.

    Raises PermissionError without the key that the server wants.
    """
    from nnsight.intervention.backends.remote import RemoteBackend
    from nnsight.schema.response import ResponseModel

    from .answers import loaded

    class Careful(RemoteBackend):
        """Results are unpacked as tensors and plain values, where nnsight's own client would run what they name."""

        def finalize(self, content: bytes) -> Any:
            if self.compress:
                import zstandard

                content = zstandard.ZstdDecompressor().decompress(content)
            return loaded(content, self.host)

        def parse(self, message: str | bytes) -> Any:  # type: ignore[override]
            if isinstance(message, (bytes, bytearray)):
                return ResponseModel(**loaded(bytes(message), self.host))
            return ResponseModel.model_validate_json(message)

    assert vlm.remote is not None
    key = model_key(vlm) if blob is not None else ""
    client = Careful(key, host=vlm.remote.where, env=vlm.model._remoteable_get_env() if blob is not None else {})
    client.display.enabled = False
    client.api_key = client.api_key.strip()  # as read from a file
    if why := secrets.refusal(client.api_key, "NDIF_API_KEY"):
        raise PermissionError(why)
    if client.host.rstrip("/") == "https://api.ndif.us" and not client.api_key:
        raise PermissionError(
            "NDIF's own server wants a key: get one at https://login.ndif.us, then set NDIF_API_KEY or call "
            "nnsight.login()"
        )
    return client


def _request(client: Any, session: str) -> Any:
    from nnsight.schema.request import RequestModel

    return RequestModel(model_key=client.model_key, session_id=session, compress=client.compress, env=client.env)


def _packed(client: Any, blob: bytes) -> bytes:
    if not client.compress:
        return blob
    import zstandard

    return zstandard.ZstdCompressor(level=6).compress(blob)


def _send(client: Any, blob: bytes, vlm: Model, session: str = "") -> Any:
    """Post a job; its first response. Raises what `remote.errors` makes of a refusal."""
    import httpx
    from nnsight.intervention.backends.remote import RemoteError

    try:
        return client._post(_request(client, session), _packed(client, blob))
    except RemoteError as error:
        cause = error.__cause__
        if isinstance(cause, httpx.HTTPStatusError):
            message = str(error).removeprefix("Failed to send request: ")
            raise refused(cause.response.status_code, message, client.host, vlm.id, bool(client.api_key)) from None
        raise unreachable(client.host, cause or error) from None


def compare_versions(vlm: Model, client: Any) -> None:
    """Once for each server: RuntimeError where its nnsight or transformers is another minor version than ours.

    Warns where only patches differ. A server that does not tell is believed.
    """
    from importlib.metadata import version

    import httpx

    if client.host in _COMPARED:
        return
    try:
        answer = httpx.get(f"{client.host}/env", timeout=httpx.Timeout(10.0, read=60.0))
        there = answer.json().get("packages", {}) if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError, AttributeError):
        there = {}  # what is the matter will show when the job is sent
    differing = {
        p: (version(p), there[p]) for p in ("nnsight", "transformers") if there.get(p, version(p)) != version(p)
    }
    differences = "; ".join(f"{p} {mine} here and {theirs} there" for p, (mine, theirs) in differing.items())
    if any(mine.split(".")[:2] != theirs.split(".")[:2] for mine, theirs in differing.values()):
        requirements = " ".join(f"{p}=={theirs}" for p, (_, theirs) in differing.items())
        raise RuntimeError(
            f"{client.host} has other versions: {differences}. Modules and what is sent may differ: "
            f"pip install {requirements}"
        )
    if differences:
        arguments.warn(f"{client.host} has other versions: {differences}")
    if there:
        _COMPARED[client.host] = None


def watched(vlm: Model, blob: bytes, watch: loopback.Watch | None) -> Any:
    """Send a job, watch it to its end, and give its result; up to four tries where the server loses it.

    Raises what the job raised, or ServerError for a trouble of the server's.
    """
    client = backend(vlm, blob)
    compare_versions(vlm, client)
    for trial in range(TRIES):
        try:
            return _watched_once(client, vlm, blob, watch)
        except Lost as error:
            if trial + 1 == TRIES:
                raise ServerError(f"{error} (tried {TRIES} times)") from error
            _say(watch, f"sent again in {WAITS[trial]:.0f} s", str(error))
            time.sleep(WAITS[trial])
    raise AssertionError


def _watched_once(client: Any, vlm: Model, blob: bytes, watch: loopback.Watch | None) -> Any:
    import httpx
    import websocket

    header = {"ndif-api-key": client.api_key} if client.api_key else None
    try:
        connection = websocket.create_connection(f"{client.ws_host}/subscribe", header=header, timeout=30)
        session = json.loads(connection.recv())["session_id"]
    except (OSError, websocket.WebSocketException, ValueError, KeyError) as error:
        raise unreachable(client.host, error) from None
    try:
        _say(watch, "sent", "")
        _heard(client, vlm, _send(client, blob, vlm, session), watch)
        connection.settimeout(SILENCE)
        waited = False
        while True:
            try:
                message = connection.recv()
                waited = False
            except websocket.WebSocketTimeoutException:
                if waited and not _answers(client):
                    raise unreachable(client.host, TimeoutError("no word for two minutes")) from None
                waited = True
                connection.ping()
                continue
            if not message:
                raise Lost(f"{client.host} closed the connection before the job had ended")
            response = client.parse(message)
            if _heard(client, vlm, response, watch):
                return client.download_result(response.data)["out"]
    except PermissionError:  # a refusal, not a broken connection
        raise
    except (OSError, websocket.WebSocketException, httpx.HTTPError) as error:
        raise Lost(f"the connection to {client.host} broke ({type(error).__name__}: {error})") from None
    finally:
        connection.close(timeout=0.5)  # how long to wait for a polite answer


def _answers(client: Any) -> bool:
    import httpx

    try:
        return httpx.get(f"{client.host}/ping", timeout=10.0).status_code < 500
    except httpx.HTTPError:
        return False


def _heard(client: Any, vlm: Model, response: Any, watch: loopback.Watch | None) -> bool:
    """Pass a message on; whether it is the job's end. Raises what the job raised."""
    status = response.status.value
    if status == "ERROR":
        raise translated(response.description, client.host, vlm.id)
    if status == "LOG":
        for line in response.description.splitlines():
            loopback.forward_line(line, watch)
    elif status != "COMPLETED":
        _say(watch, f"{status.lower()}: {response.description}".rstrip(": "), "")
    return bool(status == "COMPLETED")


def _say(watch: Any, state: str, line: str) -> None:
    show = getattr(watch, "status", None)
    if show is not None:
        show(state, line)


def send_detached(vlm: Model, blob: bytes) -> str:
    """Send a job that nobody watches; its id."""
    client = backend(vlm, blob)
    compare_versions(vlm, client)
    return str(_send(client, blob, vlm).id)


def ask_after(vlm: Model, job: str) -> tuple[str, Any]:
    """(state, result) of a detached job: the result once the state is "completed", else None.

    Raises what the job raised, LookupError for an id that the server does not know (yet), Lost for one that it lost.
    """
    import httpx

    client = backend(vlm)
    try:
        answer = httpx.get(
            f"{client.host}/response/{job}",
            headers={"ndif-api-key": client.api_key} if client.api_key else None,
            timeout=httpx.Timeout(10.0, read=600.0),
        )
    except httpx.HTTPError as error:
        raise unreachable(client.host, error) from None
    if answer.status_code == 404:
        raise LookupError(f"{client.host} knows no job {job!r}: see that id and server are right")
    if answer.status_code >= 400:
        raise refused(answer.status_code, answer.text, client.host, vlm.id, bool(client.api_key))
    response = client.parse(answer.text)
    if _heard(client, vlm, response, None):
        try:
            return "completed", client.download_result(response.data)["out"]
        except httpx.HTTPError as error:
            raise Lost(f"{client.host} no longer has the result of job {job} ({error})") from None
    return f"{response.status.value.lower()}: {response.description}", None


def wait_for(vlm: Model, job: str, on_state: Callable[[str], None] | None = None, patience: float = 30.0) -> Any:
    """A detached job's result, once it is there; an unknown id is asked after for `patience` seconds.

    on_state   called with the state at each question; may raise to stop
    """
    began = time.monotonic()
    while True:
        try:
            state, result = ask_after(vlm, job)
        except LookupError:
            if time.monotonic() - began > patience:
                raise
            state, result = "not known yet", None
        if state == "completed":
            return result
        if on_state is not None:
            on_state(state)
        time.sleep(ASK_EVERY)
