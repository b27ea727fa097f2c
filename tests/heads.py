"""A server on loopback that answers every question for a file's head with a status, as a hub in trouble does."""

from __future__ import annotations

import contextlib
import http.server
import threading
from collections.abc import Iterator
from typing import Any

CODES = {404: "RepoNotFound", 403: "GatedRepo"}  # what the hub says beside the status


@contextlib.contextmanager
def heads(root: int, file: int, codes: bool = False) -> Iterator[str]:
    """Its address. root, file   the statuses for the address itself and for a file; with `codes` the hub's own too."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            status = root if self.path == "/" else file
            self.send_response(status)
            self.send_header("content-length", "0")
            if codes and file in CODES:
                self.send_header("X-Error-Code", CODES[file])
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
