"""A local stand-in of the Hub: what huggingface_hub asks of it to push a model, over real HTTP."""

import base64
import hashlib
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

REASON = "Access to this repository is restricted and you are not in the authorized list. Ask on its page."


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub`: takes at `hub.url` what "someone" pushes; whatever is asked to be read is gated.

    While `hub.cut` names a step ("create", "batch", "put", "commit", "committed"), its requests lose their
    connection: half-way through what they send or, "committed", before they hear that it is done.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.token = f"http://127.0.0.1:{self.server_port}", "hf_" + "w" * 34
        self.repos, self.private, self.objects = {}, set(), {}  # id -> {path: bytes}, ids, sha256 -> bytes
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

    def reply(self, status, answer, **headers):
        body = json.dumps(answer).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, message, code=""):
        self.reply(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

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
        steps = {"create": self.create, "validate-yaml": self.validate, "preupload": self.preupload}
        steps |= {"batch": self.batch, "put": self.put, "commit": self.commit}
        step = next(step for step in steps if step in path)
        if step == hub.cut:
            self.rfile.read(length // 2)
            return self.lose_connection()
        body = self.rfile.read(length)
        if step != "put" and given != f"Bearer {hub.token}":  # the address of an object is the permission
            return self.refuse(401, "Invalid credentials in Authorization header")
        return steps[step](body, path)

    do_PUT = do_POST

    def create(self, body, path):
        hub, asked = self.server, json.loads(body)
        owner, name = asked.get("organization", "someone"), asked["name"]
        if owner != "someone":
            return self.refuse(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
        repo, status = f"{owner}/{name}", 200 if f"{owner}/{name}" not in hub.repos else 409
        hub.repos.setdefault(repo, {})
        hub.private |= {repo} if asked.get("visibility") == "private" else set()
        return self.reply(status, {"url": f"{hub.url}/{repo}", "error": "You already created this model repo"})

    def validate(self, body, path):
        self.reply(200, {"errors": [], "warnings": []})

    def preupload(self, body, path):
        names = [file["path"] for file in json.loads(body)["files"]]
        modes = {name: "lfs" if name.endswith(".safetensors") else "regular" for name in names}
        self.reply(200, {"files": [{"path": n, "uploadMode": modes[n], "shouldIgnore": False} for n in names]})

    def batch(self, body, path):
        objects = json.loads(body)["objects"]
        places = [{"upload": {"href": f"{self.server.url}/put/{wanted['oid']}"}} for wanted in objects]
        objects = [wanted | {"actions": place} for wanted, place in zip(objects, places)]
        self.reply(200, {"transfer": "basic", "objects": objects})

    def put(self, body, path):
        if hashlib.sha256(body).hexdigest() != path[-1]:
            return self.refuse(400, "what came is not what was announced")
        self.server.objects[path[-1]] = body
        return self.reply(200, {})

    def commit(self, body, path):
        hub, repo = self.server, "/".join(path[2:4])
        for operation in map(json.loads, body.splitlines()[1:]):
            value, inline = operation["value"], operation["key"] == "file"
            content = base64.b64decode(value["content"]) if inline else hub.objects[value["oid"]]
            hub.repos[repo][value["path"]] = content
        hub.commits += 1
        if hub.cut == "committed":
            return self.lose_connection()
        return self.reply(200, {"commitUrl": f"{hub.url}/{repo}/commit/1", "commitOid": "1", "hookOutput": ""})
