"""A server on loopback that speaks OpenAI's protocol, looks at colours, grades by words, and misbehaves on order."""

from __future__ import annotations

import base64
import collections
import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from PIL import Image
from stores import concept_of

# what is ordered -> the name under which it is counted
FAULTS = {
    "429": "429",
    "429 wait": "429",
    "500": "500",
    "503": "503",
    "503 wait": "503",
    "timeout": "timeout",
    "connection": "connection",
    "html": "html",
    "cut body": "cut json",
    "empty choices": "empty choices",
    "error in answer": "error in answer",
    "cut json": "cut json",
    "no result": "no result",
    "refusal": "refusal",
    "blank": "empty",
    "censored": "refusal",
    "400": "400",
    "401": "401",
    "404": "404",
    "quota": "429",
    "tomorrow": "429",
}


class Misbehaving(ThreadingHTTPServer):
    """`order(role, nth)` names the fault of the nth request (from 0) with the same body; "" for a good answer.

    role is "ask" or "grade". `requests` holds what came; `faults` what was done, by name; `served` good answers by role.
    """

    daemon_threads = True
    request_queue_size = 128  # the default of 5 would add faults that nobody ordered

    def __init__(self, order: Callable[[str, int], str] = lambda role, nth: "", wait: float = 0.15):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.order, self.wait = order, wait
        self.faults: collections.Counter[str] = collections.Counter()
        self.served: collections.Counter[str] = collections.Counter()
        self.requests: list[dict[str, Any]] = []
        self.seen: collections.Counter[str] = collections.Counter()
        self.lock, self.over = threading.Lock(), threading.Event()
        self.says = lambda concept, question: concept.upper() + "."
        self.usage = (100, 10)  # tokens in and out
        self.sends: Callable[[str, dict[str, Any]], str | None] = lambda role, body: None  # a whole body instead
        self.redirect = ""  # where to send callers, by 307
        self.busy = self.most_busy = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __enter__(self) -> Misbehaving:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: Misbehaving

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        body, here = json.loads(data), self.server
        role = "ask" if isinstance(body["messages"][0]["content"], list) else "grade"
        with here.lock:
            digest = hashlib.sha256(data).hexdigest()
            fault = here.order(role, here.seen[digest])
            here.seen[digest] += 1
            here.requests.append(dict(role=role, body=body, at=time.monotonic(), key=self.headers["Authorization"]))
            here.faults.update([FAULTS[fault]] if fault else [])
            here.busy += 1
            here.most_busy = max(here.busy, here.most_busy)
        try:
            assert self.path.startswith("/v1/chat/completions")
            whole = here.sends(role, body)
            if here.redirect:
                self.send(307, "", Location=here.redirect)
            elif whole is not None:
                self.send(200, whole)
            else:
                self.misbehave(fault, role, body) if fault else self.answer(role, body)
        finally:
            with here.lock:
                here.busy -= 1

    def send(self, status: int, text: str, kind: str = "application/json", short: int = 0, **headers: str) -> None:
        data = text.encode()
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data) + short), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def error(self, status: int, message: str, code: str = "x", **headers: str) -> None:
        self.send(status, json.dumps({"error": {"message": message, "type": "x", "code": code}}), **headers)

    def completion(self, content: Any, model: str, **message: Any) -> str:
        said = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content, **message}}
        usage = dict(zip(("prompt_tokens", "completion_tokens"), self.server.usage, strict=True))
        whole = {"id": "c-1", "object": "chat.completion", "created": 1, "model": model + "-2025", "usage": usage}
        return json.dumps({**whole, "choices": [said]})

    def answer(self, role: str, body: dict[str, Any]) -> None:
        with self.server.lock:
            self.server.served[role] += 1
        if role == "ask":
            text, picture = body["messages"][0]["content"]
            image = Image.open(io.BytesIO(base64.b64decode(picture["image_url"]["url"].split(",")[1])))
            content = self.server.says(concept_of(image), text["text"])
        else:
            told = body["messages"][0]["content"]
            response = re.search(r"<BEGIN RESPONSE> (.*) <END RESPONSE>", told, re.S)[1]
            concept = re.search(r"doesn't mention it sees '(.*?)' in the image", told)[1]
            score = int(concept.lower() in response.lower())
            content = f"It says {response}\nResult: {score}"
            if "response_format" in body:
                content = json.dumps({"analysis": f"it says {response}", "result": score})
        self.send(200, self.completion(content, body["model"]))

    def misbehave(self, fault: str, role: str, body: dict[str, Any]) -> None:
        model, key = body["model"], self.headers["Authorization"]
        if fault in ("429 wait", "503 wait"):
            self.error(int(fault[:3]), "slowly", Retry_After=str(self.server.wait))
        elif fault == "quota":
            self.error(429, "You exceeded your current quota", "insufficient_quota")
        elif fault == "tomorrow":
            self.error(429, "come back", Retry_After="86400")
        elif fault == "censored":
            self.error(400, "filtered", "content_filter")
        elif fault == "timeout":
            self.server.over.wait(3)
        elif fault == "connection":
            self.send(200, '{"id": "c-1", "choi', short=1000)
        elif fault == "html":
            self.send(200, "<html><body>Sign in to the network</body></html>", "text/html")
        elif fault == "cut body":
            self.send(200, self.completion("x", model)[:-20])
        elif fault == "empty choices":
            self.send(200, json.dumps({"id": "c-1", "model": model, "choices": []}))
        elif fault == "error in answer":
            self.send(200, json.dumps({"error": {"message": "upstream"}}))
        elif fault == "cut json":
            self.send(200, self.completion('{"analysis": "it says', model))
        elif fault == "no result":
            self.send(200, self.completion("I think that it fits.", model))
        elif fault == "refusal":
            self.send(200, self.completion(None, model, refusal="I cannot look at that."))
        elif fault == "blank":
            self.send(200, self.completion("  ", model))
        else:  # a status; the server repeats the key, as some do
            self.error(int(fault), f"wrong: {key}")
