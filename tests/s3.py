"""A server of S3's API on this machine, moto's, which runs in this process and answers one request at a time."""

import contextlib
import os
import secrets
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest


@dataclass
class Server:
    """The server, and what it was asked."""

    url: str
    bucket: str = field(default_factory=lambda: f"bucket-{secrets.token_hex(4)}")
    """An empty one, since all servers of a process hold the same."""
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Method and path of each request."""
    conditions: bool = True
    """Whether it takes notice of If-None-Match, as some servers do not."""
    refuses: bool = False
    """Whether it turns every request away."""

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "secret",
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def put(self, name: str) -> list[str]:
        """The paths that were put, of those that end so."""
        return [path for method, path in self.asked if method == "PUT" and path.endswith(name)]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server with an empty bucket, and the variables that lead to it set."""
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    from werkzeug.serving import make_server

    app, turn = moto.DomainDispatcherApplication(moto.create_backend_app), threading.Lock()

    def asked(environ, start):
        server.asked.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if not server.conditions:
            environ.pop("HTTP_IF_NONE_MATCH", None)
        if server.refuses:
            start("403 Forbidden", [("Content-Type", "application/xml")])
            return [b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"]
        with turn:  # S3 promises that one of two with a condition is refused; moto looks first, and writes then
            return list(app(environ, start))

    listening = make_server("127.0.0.1", 0, asked, threaded=True)
    server = Server(f"http://127.0.0.1:{listening.port}")
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    before = {name: os.environ.get(name) for name in server.environment}
    os.environ.update(server.environment)
    try:
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(server.bucket)
        yield server
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        listening.shutdown()
        thread.join()
