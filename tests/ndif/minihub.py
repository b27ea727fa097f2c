"""A loopback Hugging Face hub: serves one folder for each repository id.

python minihub.py PORT org/name=FOLDER ...
"""

from __future__ import annotations

import hashlib
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMIT = "0" * 39 + "1"


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    repositories: ClassVar[dict[str, Path]] = {}

    def log_message(self, *_: object) -> None:
        pass

    def reply(self, code: int, body: bytes = b"", kind: str = "application/json", **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        for name, folder in self.repositories.items():
            files = sorted(f for f in folder.iterdir() if f.is_file())
            if path.startswith(f"/api/models/{name}/tree/"):
                if path.rstrip("/").count("/") > 6:  # a folder in it: there are none
                    return self.reply(404, b"{}", X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                rows = [{"type": "file", "path": f.name, "size": f.stat().st_size, "oid": "x"} for f in files]
                return self.reply(200, json.dumps(rows).encode())
            if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision/"):
                return self.reply(200, json.dumps(self.told(name, folder, files)).encode())
            if path.startswith(f"/{name}/resolve/"):
                file = folder / path.split("/resolve/", 1)[1].split("/", 1)[1]
                if file not in files:
                    return self.reply(404, X_Error_Code="EntryNotFound", X_Repo_Commit=COMMIT)
                body = file.read_bytes()
                tag = f'"{hashlib.sha256(body).hexdigest()}"'
                return self.reply(200, body, "application/octet-stream", ETag=tag, X_Repo_Commit=COMMIT)
        return self.reply(404, b"{}", X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def told(self, name: str, folder: Path, files: list[Path]) -> dict:
        count = (folder / "model.safetensors").stat().st_size // 4
        return {
            "_id": "1",
            "id": name,
            "modelId": name,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "pipeline_tag": "image-text-to-text",
            "library_name": "transformers",
            "siblings": [{"rfilename": f.name} for f in files],
            "safetensors": {"parameters": {"F32": count}, "total": count},
        }


if __name__ == "__main__":
    Hub.repositories = {name: Path(folder) for name, folder in (given.split("=", 1) for given in sys.argv[2:])}
    ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Hub).serve_forever()
