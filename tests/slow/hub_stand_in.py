"""A local stand-in of the Hub: what huggingface_hub asks of it to push and to load, over real HTTP."""

import base64
import hashlib
import json
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

import yaml

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REASON = "Access to this repository is restricted and you are not in the authorized list. Ask on its page."


class Hub(ThreadingHTTPServer):
    """`with Hub() as hub`: serves at `hub.url` what is in `hub.repos`, an id -> {path: bytes} each.

    `hub.cuts[step]` is how many requests of a step ("create", "batch", "object", "commit", "committed") lose
    their connection: half-way through what they send or, "committed", before they hear that it is done.
    """

    daemon_threads = True

    def __init__(self, token="hf_" + "w" * 34, user="someone"):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url, self.token, self.user = f"http://127.0.0.1:{self.server_port}", token, user
        self.repos, self.gated, self.private, self.objects, self.cuts = {}, set(), set(), {}, {}
        self.seen = []  # (method, path, Authorization) of every request
        self.commits = 0

    def __enter__(self):
        Thread(target=self.serve_forever, args=[0.02], daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args): ...

    def reply(self, status=200, body=b"", **headers):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Length": str(len(body)), **{k.replace("_", "-"): v for k, v in headers.items()}}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status, code, message):
        self.reply(status, {"error": message}, X_Error_Code=code, X_Error_Message=message)

    def cut(self, step):
        """Whether this request loses its connection here."""
        self.server.cuts[step] = left = self.server.cuts.get(step, 0) - 1
        if left >= 0:
            if step != "committed":
                self.rfile.read(int(self.headers["Content-Length"]) // 2)
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
        return left >= 0

    def handle_request(self):
        hub, path = self.server, unquote(urlsplit(self.path).path).strip("/").split("/")
        given = self.headers["Authorization"]
        hub.seen.append((self.command, self.path, given))
        if path[:2] == ["objects", "put"]:  # a storage of its own, whose address is the permission
            return self.put_object(path[2])
        if given not in (None, f"Bearer {hub.token}"):
            self.body()
            return self.refuse(401, "", "Invalid credentials in Authorization header")
        if self.command == "POST":
            return self.write(path, given)
        return self.read(path)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def body(self):
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def write(self, path, given):
        hub = self.server
        step = {"create": "create", "batch": "batch"}.get(path[-1], path[4] if len(path) > 4 else "")
        if self.cut(step):
            return None
        body = self.body()
        if path == ["api", "validate-yaml"]:
            return self.validate(json.loads(body)["content"])
        if given is None:
            return self.refuse(401, "", "Invalid username or password.")
        if path == ["api", "repos", "create"]:
            return self.create(json.loads(body))
        repo = "/".join(path[2:4]) if path[0] == "api" else "/".join(path[:2]).removesuffix(".git")
        files = hub.repos[repo]
        if step == "preupload":
            sent = json.loads(body)["files"]
            return self.reply(body={"files": [self.mode(f["path"], files) for f in sent]})
        if step == "batch":
            objects = [self.action(o) for o in json.loads(body)["objects"]]
            return self.reply(body={"transfer": "basic", "objects": objects})
        if step == "commit":
            _, *operations = [json.loads(line) for line in body.splitlines()]
            for operation in operations:
                value = operation["value"]
                inline = operation["key"] == "file"
                files[value["path"]] = base64.b64decode(value["content"]) if inline else hub.objects[value["oid"]]
            hub.commits += 1
            if self.cut("committed"):
                return None
            url = f"{hub.url}/{repo}/commit/{COMMIT}"
            return self.reply(body={"commitUrl": url, "commitOid": COMMIT, "hookOutput": ""})
        return self.refuse(404, "", f"no such address: {self.path}")

    def create(self, asked):
        hub, name = self.server, f"{asked.get('organization') or self.server.user}/{asked['name']}"
        if not name.startswith(hub.user + "/"):
            namespace = name.split("/")[0]
            return self.refuse(
                403, "", f'You don\'t have the rights to create a model under the namespace "{namespace}"'
            )
        if name in hub.repos:
            return self.reply(409, {"error": "You already created this model repo", "url": f"{hub.url}/{name}"})
        hub.repos[name] = {}
        hub.private |= {name} if asked.get("visibility") == "private" else set()
        return self.reply(body={"url": f"{hub.url}/{name}", "name": name})

    def validate(self, card):
        """As the Hub does: metadata that is no YAML, or of another form, is refused."""
        data = yaml.safe_load(card.split("---")[1])
        known = {"base_model", "datasets", "library_name", "license", "pipeline_tag", "tags", "model-index"}
        results = [result for model in data.get("model-index", []) for result in model["results"]]
        wrong = sorted(set(data) - known) or [result for result in results if not result["metrics"]]
        return self.reply(400 if wrong else 200, {"errors": [{"message": str(w)} for w in wrong], "warnings": []})

    def mode(self, path, files):
        lfs = path.endswith(".safetensors")
        oid = None
        if path in files:  # what is there already is not sent again
            data = files[path]
            blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
            oid = hashlib.sha256(data).hexdigest() if lfs else blob
        return {"path": path, "uploadMode": "lfs" if lfs else "regular", "shouldIgnore": False, "oid": oid}

    def action(self, wanted):
        if wanted["oid"] in self.server.objects:
            return wanted
        return wanted | {"actions": {"upload": {"href": f"{self.server.url}/objects/put/{wanted['oid']}"}}}

    def put_object(self, oid):
        if self.cut("object"):
            return None
        data = self.body()
        if hashlib.sha256(data).hexdigest() != oid:
            return self.refuse(400, "", "what came is not what was announced")
        self.server.objects[oid] = data
        return self.reply()

    def read(self, path):
        hub = self.server
        if path == ["api", "whoami-v2"]:
            return self.reply(body={"type": "user", "name": hub.user})
        if path[0] == "api":
            repo = "/".join(path[2:4])
        else:
            path = path[1:] if path[0] == "datasets" else path
            repo = "/".join(path[:2])
        if repo in hub.gated:
            return self.refuse(403 if self.headers["Authorization"] else 401, "GatedRepo", REASON)
        if repo not in hub.repos:
            return self.refuse(401, "RepoNotFound", "Repository not found")
        files = hub.repos[repo]
        if path[0] == "api" and path[4:5] == ["tree"]:
            within = [n for n in files if n.startswith("".join(part + "/" for part in path[6:]))]
            entries = [{"type": "file", "path": n, "size": len(files[n]), "oid": "0" * 40} for n in within]
            return self.reply(body=entries) if entries else self.refuse(404, "EntryNotFound", "no such folder")
        if path[0] == "api":
            siblings = [{"rfilename": name} for name in files]
            return self.reply(body={"id": repo, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False})
        data = files.get("/".join(path[4:])) if path[2] == "resolve" else None
        if data is None:
            return self.refuse(404, "EntryNotFound", "Entry not found")
        return self.reply(body=data, ETag=f'"{hashlib.sha256(data).hexdigest()}"', X_Repo_Commit=COMMIT)
