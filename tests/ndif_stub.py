"""A stand-in for an NDIF server with one model: nnsight's protocol on loopback, of the standard library and nnsight.

    python ndif_stub.py FOLDER org/name [BLOCKED ...]        prints its port, then serves until it is ended

This process speaks HTTP and websocket and never looks into a payload. A worker process, in isolated mode, in `/`, runs
payloads on the model in FOLDER; packages that are BLOCKED cannot be imported there, so that only what was sent runs.
POST /trouble takes a list of things that go wrong with the next requests, one each: see `Front.do_POST`.
"""

from __future__ import annotations

import base64
import email
import email.policy
import hashlib
import json
import os
import pickle
import queue
import struct
import subprocess
import sys
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from typing import Any, ClassVar

WORKER = r"""
import contextlib, importlib.abc, io, linecache, os, pickle, struct, sys, traceback
folder, blocked = sys.argv[1], set(sys.argv[2:])
out, inp = os.fdopen(os.dup(1), "wb"), os.fdopen(os.dup(0), "rb")
os.dup2(2, 1); os.chdir("/")
class Absent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Absent())
def send(kind, body=b""):
    data = pickle.dumps((kind, body)); out.write(struct.pack(">Q", len(data)) + data); out.flush()
import torch
torch.set_num_threads(1)
from nnsight.modeling.transformers import TransformersModel
from nnsight.schema.request import RequestModel
from nnsight.tracing.globals import BLOCKS, SOURCES
from nnsight.tracing.tracer import _saves, dec, inc
from nnsight.tracing.util import clean_traceback
from transformers import AutoProcessor
model = TransformersModel(folder, task="image-text-to-text", processor=AutoProcessor.from_pretrained(folder), dispatch=True)
model._module.requires_grad_(False)
class Lines(io.TextIOBase):
    rest = ""
    def write(self, text):
        *lines, self.rest = (self.rest + text).split("\n")
        for line in lines: send("LOG", line)
        return len(text)
send("READY")
while True:
    head = inp.read(8)
    if len(head) < 8: break
    meta, blob, trouble = pickle.loads(inp.read(struct.unpack(">Q", head)[0]))
    caches = [(c, dict(c)) for c in (linecache.cache, SOURCES, BLOCKS)]
    cut = None
    if trouble == "cut":  # as NDIF's sandbox: what arrives requires a gradient and has no graph
        first = model.get("model.language_model.layers.0")._module
        cut = first.register_forward_hook(lambda module, args, output: output.detach().requires_grad_())
    if trouble == "die": os._exit(1)
    try:
        with contextlib.redirect_stdout(Lines()), contextlib.redirect_stderr(Lines()):
            tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), compress=meta["compress"])
            inc()
            try:
                tracer.execute(tracer.info.code)
                saved = {k: v for k, v in tracer.info.frame.f_locals.items() if id(v) in _saves()}
            finally:
                dec()
        buffer = io.BytesIO(); torch.save(saved, buffer); data = buffer.getvalue()
        if meta["compress"]:
            import zstandard; data = zstandard.ZstdCompressor(level=3).compress(data)
        send("COMPLETED", data)
    except Exception as e:
        send("ERROR", "".join(traceback.format_exception(type(e), e, clean_traceback(e.__traceback__))))
    finally:
        if cut is not None: cut.remove()
        model.interleaver.cancel()
        for cache, before in caches: cache.clear(); cache.update(before)
"""


DIED = "worker process died"


class Worker:
    """The process that has the model, one job at a time; a new one where it died."""

    def __init__(self, folder: str, blocked: list[str]):
        self.arguments, self.process = [sys.executable, "-I", "-c", WORKER, folder, *blocked], None
        self.jobs: queue.Queue[Any] = queue.Queue()
        self.start()
        threading.Thread(target=self.loop, daemon=True).start()

    def start(self) -> None:
        kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        self.process = subprocess.Popen(self.arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=kept)
        assert self.receive()[0] == "READY", "the worker did not start"

    def receive(self) -> tuple[str, Any]:
        head = self.process.stdout.read(8)
        if len(head) < 8:
            return "ERROR", DIED
        return pickle.loads(self.process.stdout.read(struct.unpack(">Q", head)[0]))

    def loop(self) -> None:
        while True:
            meta, blob, trouble, respond = self.jobs.get()
            data = pickle.dumps((meta, blob, trouble))
            self.process.stdin.write(struct.pack(">Q", len(data)) + data)
            self.process.stdin.flush()
            respond("DISPATCHED")
            respond("RUNNING", "Your job has started running.")
            kind = ""
            while kind not in ("COMPLETED", "ERROR"):
                kind, body = self.receive()
                done = kind == "COMPLETED"
                respond(kind, "Your job has been completed." if done else body, body if done else None)
            if body == DIED:
                self.process.wait()
                self.start()


class Front(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    name = ""
    worker: ClassVar[Any] = None
    sessions: ClassVar[dict[str, Any]] = {}
    stored: ClassVar[dict[str, bytes]] = {}
    troubles: ClassVar[list[str]] = []
    keys: ClassVar[list[Any]] = []
    packages: ClassVar[dict[str, str]] = {name: version(name) for name in ("nnsight", "transformers")}

    def log_message(self, *_: object) -> None:
        pass

    def body(self, code: int, told: Any) -> None:
        data = told if isinstance(told, bytes) else json.dumps(told).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def do_GET(self) -> None:
        last = self.path.rsplit("/", 1)[1]
        if self.path == "/subscribe":
            self.subscribe()
        elif self.path == "/env":
            self.body(200, {"python_version": sys.version, "packages": self.packages})
        elif self.path == "/status":
            row = {"deployment_level": "HOT", "application_state": "RUNNING", "task": "image-text-to-text"}
            config = json.dumps({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
            text = {**row, "repo_id": "some/text-only", "task": "text-generation", "config": '{"model_type": "gpt2"}'}
            cold = {"deployment_level": "COLD", "repo_id": "some/cold", "task": "image-text-to-text"}
            mine = {**row, "repo_id": self.name, "config": config}
            self.body(
                200, {"deployments": {"a": mine, "b": {**mine, "application_state": "DEPLOYING"}, "c": text, "d": cold}}
            )
        elif self.path.startswith(("/response/", "/result/")):
            key = last if self.path.startswith("/response/") else f"/result/{last}"
            self.body(200, self.stored[key]) if key in self.stored else self.body(404, {"detail": "none"})
        elif self.path == "/jobs":
            self.body(200, {"keys": self.keys, "waiting": self.worker.jobs.qsize()})
        else:
            self.body(200, "pong")

    def subscribe(self) -> None:
        nonce = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(nonce.encode()).digest()).decode())
        self.end_headers()
        session, messages = uuid.uuid4().hex, queue.Queue()
        self.sessions[session] = messages
        messages.put(json.dumps({"session_id": session}))
        while (message := messages.get()) is not None:
            data, code = (message, 2) if isinstance(message, bytes) else (message.encode(), 1)
            n = len(data)
            size = (
                bytes([n])
                if n < 126
                else b"\x7e" + struct.pack(">H", n)
                if n < 65536
                else b"\x7f" + struct.pack(">Q", n)
            )
            self.wfile.write(bytes([0x80 | code]) + size + data)
            self.wfile.flush()
        self.close_connection = True

    def do_POST(self) -> None:
        """A request, or troubles for those to come: "refuse:CODE:WHY", "error:WHY", "drop", "die", "cut", "" (none)."""
        raw = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/trouble":
            told = json.loads(raw)
            self.troubles[:] = told.get("next", [])
            self.packages.update(told.get("packages", {}))
            return self.body(200, {})
        kind = b"Content-Type: " + self.headers["Content-Type"].encode() + b"\r\n\r\n"
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in email.message_from_bytes(kind + raw, policy=email.policy.HTTP).iter_parts()
        }
        meta, job = json.loads(parts["data"]), uuid.uuid4().hex
        self.keys.append(self.headers.get("ndif-api-key"))
        trouble = self.troubles.pop(0) if self.troubles else ""
        if trouble.startswith("refuse:"):
            _, code, why = trouble.split(":", 2)
            if meta["session_id"]:
                self.sessions[meta["session_id"]].put(None)
            return self.body(int(code), {"detail": why})
        if json.loads(meta["model_key"].split(":", 1)[1])["repo_id"] != self.name:
            return self.body(404, {"detail": f"this server only has {self.name}"})
        respond = self.responder(meta, job)
        self.body(200, {"id": job, "status": "RECEIVED", "description": "received"})
        if trouble == "drop":
            self.sessions[meta["session_id"]].put(None)
        elif trouble.startswith("error:"):
            respond("ERROR", trouble.partition(":")[2])
        else:
            respond("QUEUED", "Moved to position 1 in Queue.")
            self.worker.jobs.put((meta, parts["blob"], trouble, respond))
        return None

    def responder(self, meta: dict[str, Any], job: str) -> Any:
        session, stored, address = self.sessions.get(meta["session_id"]), self.stored, self.address

        def respond(status: str, description: str = "", data: bytes | None = None) -> None:
            told: dict[str, Any] = {"id": job, "status": status, "description": description}
            if session is not None and data is not None:
                from nnsight.schema.response import ResponseModel

                session.put(ResponseModel(**told, data=data).pickle())
                session.put(None)
            elif session is not None:
                session.put(json.dumps(told))
            elif status != "LOG":
                if data is not None:
                    stored[f"/result/{job}"] = data
                    told["data"] = f"{address}/result/{job}"
                stored[job] = json.dumps(told).encode()

        return respond


if __name__ == "__main__":
    Front.name, Front.worker = sys.argv[2], Worker(sys.argv[1], sys.argv[3:])
    server = ThreadingHTTPServer(("127.0.0.1", 0), Front)
    server.daemon_threads = True
    print(server.server_address[1], flush=True)
    server.serve_forever()
