"""A local stand-in of the Hub: what huggingface_hub asks of it to push a small model, over real HTTP."""

import base64
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

REASON = "Access to this repository is restricted and you are not in the authorized list. Ask on its page."


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub`: takes at `hub.url` what "someone" pushes; whatever is asked to be read is gated.

    While `hub.cut` names a step ("create", "preupload", "commit", "committed"), its requests lose their connection:
    half-way through what they send or, "committed", before they hear that it is done.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.token = f"http://127.0.0.1:{self.server_port}", "hf_" + "w" * 34
        self.repos, self.private = {}, set()  # id -> {path: bytes}, ids
        self.commits, self.seen, self.cut = 0, [], None  # seen: the Authorization of each request

    def __enter__(self):
        Thread(target=self.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args): ...

    def reply(self, status, answer, code=""):
        body = json.dumps(answer).encode()
        self.send_response(status)
        message = answer.get("error", "")
        for name, value in {"Content-Length": len(body), "X-Error-Code": code, "X-Error-Message": message}.items():
            self.send_header(name, str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, message, code=""):
        self.reply(status, {"error": message}, code)

    def lose_connection(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def do_GET(self):
        self.refuse(403, REASON, "GatedRepo")

    do_HEAD = do_GET

    def do_POST(self):
        hub, path = self.server, self.path.strip("/").split("/")
        given, length = self.headers["Authorization"], int(self.headers["Content-Length"])
        hub.seen.append(given)
        step = next(step for step in ("create", "validate-yaml", "preupload", "commit") if step in path)
        if step == hub.cut:
            self.rfile.read(length // 2)
            return self.lose_connection()
        body = self.rfile.read(length)
        if given != f"Bearer {hub.token}":
            return self.refuse(401, "Invalid credentials in Authorization header")
        return getattr(self, step.partition("-")[0])(body, path)

    def create(self, body, path):
        hub, asked = self.server, json.loads(body)
        owner, name = asked.get("organization", "someone"), asked["name"]
        if owner != "someone":
            return self.refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        repo, status = f"{owner}/{name}", 200 if f"{owner}/{name}" not in hub.repos else 409
        hub.repos.setdefault(repo, {})
        hub.private |= {repo} if asked.get("visibility") == "private" else set()
        return self.reply(status, {"url": f"{hub.url}/{repo}"})

    def validate(self, body, path):
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, body, path):
        how = {"uploadMode": "regular", "shouldIgnore": False}
        self.reply(200, {"files": [file | how for file in json.loads(body)["files"]]})

    def commit(self, body, path):
        hub, repo = self.server, "/".join(path[2:4])
        for operation in map(json.loads, body.splitlines()[1:]):
            hub.repos[repo][operation["value"]["path"]] = base64.b64decode(operation["value"]["content"])
        hub.commits += 1
        if hub.cut == "committed":
            return self.lose_connection()
        return self.reply(200, {"commitUrl": f"{hub.url}/{repo}/commit/1", "commitOid": "1", "hookOutput": ""})
