"""The metadata service of a machine of the tests, at 169.254.169.254: AWS's and GCP's, as far as a notice needs it.

`python metadata.py FOLDER` runs on the machine; a file FOLDER/taken makes it tell that the machine is taken back.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

TOKEN = "a-token-of-this-machine"


class Handler(BaseHTTPRequestHandler):
    taken: Path

    def do_PUT(self) -> None:
        wanted = self.path == "/latest/api/token" and "X-aws-ec2-metadata-token-ttl-seconds" in self.headers
        self._say(200 if wanted else 400, TOKEN)

    def do_GET(self) -> None:
        if self.path == "/computeMetadata/v1/instance/preempted":
            right = self.headers.get("Metadata-Flavor") == "Google"
            self._say(200 if right else 403, "TRUE" if self.taken.exists() else "FALSE")
        elif self.headers.get("X-aws-ec2-metadata-token") != TOKEN:
            self._say(401, "no token")
        elif self.path == "/latest/meta-data/spot/instance-action" and self.taken.exists():
            self._say(200, json.dumps({"action": "terminate", "time": "2026-11-23T20:00:00Z"}))
        else:
            self._say(404, "not found")

    def _say(self, status: int, text: str) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *arguments: object) -> None:
        pass


if __name__ == "__main__":
    Handler.taken = Path(sys.argv[1]) / "taken"
    HTTPServer(("169.254.169.254", 80), Handler).serve_forever()
