"""A loopback server laid out like the COCO site, the VQA site and the hub, that fails in the ways networks fail."""

import hashlib
import http.server
import json
import threading
import time
import urllib.parse


class Site:
    """Serves `files` {path: bytes}; `faults` {path: [fault, ...]} are used up, one a request.

    Faults: a status; "slow" (a byte at a time); "cut" (half of it, then the line drops); "short" (half, with a length
    that says so); "stall" (half, then silence); "redirect" (to the same file under /moved).
    """

    def __init__(self):
        self.files, self.faults, self.asked, self.commits = {}, {}, [], {}
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                site.respond(self, urllib.parse.unquote(self.path.split("?")[0]), body)

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()

    def respond(self, handler, path, body):
        self.asked.append(path)
        faults = self.faults.get(path, [])
        fault = faults.pop(0) if faults and body else None
        data = self.files.get(path.removeprefix("/moved"))
        if isinstance(fault, int) or data is None:
            handler.send_response(fault if isinstance(fault, int) else 404)
            handler.send_header("Content-Length", "0")
            if data is None and "/resolve/" in path:
                handler.send_header("X-Error-Code", "EntryNotFound")
            handler.end_headers()
            return
        if fault == "redirect":
            handler.send_response(302)
            handler.send_header("Location", f"{self.address}/moved{path}")
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        half = data[: len(data) // 2]
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(half if fault == "short" else data)))
        handler.send_header("ETag", f'"{hashlib.md5(data).hexdigest()}"')
        handler.send_header("X-Repo-Commit", self.commits.get(path, "a" * 40))
        handler.end_headers()
        if not body:
            return
        if fault == "slow":
            for start in range(0, len(data), 1 + len(data) // 20):
                handler.wfile.write(data[start : start + 1 + len(data) // 20])
                time.sleep(0.01)
        elif fault in ("cut", "short", "stall"):
            handler.wfile.write(half)
            handler.wfile.flush()
            if fault == "stall":
                time.sleep(1)
            handler.close_connection = True
        else:
            handler.wfile.write(data)

    def add_model(self, name, files, revision="main"):
        """A model repository of the hub: {file name: bytes} at a revision."""
        commit = hashlib.sha1(revision.encode()).hexdigest()
        info = {"id": name, "sha": commit, "siblings": [{"rfilename": file} for file in files]}
        tree = [
            {"type": "file", "path": file, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
            for file, data in files.items()
        ]
        self.files[f"/api/models/{name}/revision/{revision}"] = json.dumps(info).encode()
        self.files[f"/api/models/{name}/tree/{commit}"] = json.dumps(tree).encode()
        for file, data in files.items():
            for place in (revision, commit):
                self.files[f"/{name}/resolve/{place}/{file}"] = data
                self.commits[f"/{name}/resolve/{place}/{file}"] = commit
