"""Serving the page: an address of one's own, a token where others may ask, and nothing that leaves this machine."""

import asyncio
import contextlib
import errno
import ipaddress
import logging
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from expunge.core.errors import ExpungeError
from expunge.web.desk import Desk
from expunge.web.guard import Guard
from expunge.web.processes import TOKEN, Runner
from expunge.web.served import Served

SHORTEST = 16
"""Letters of a token that somebody chose."""
HERE = frozenset({"localhost", "127.0.0.1", "::1"})


class Address(NamedTuple):
    """Where a page is served, and to whom."""

    socket: socket.socket
    host: str
    port: int
    token: str
    """Empty where none is asked for."""

    @property
    def url(self) -> str:
        """What is opened in a browser."""
        shown = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{shown}:{self.port}/" + (f"?token={self.token}" if self.token else "")

    @property
    def names(self) -> frozenset[str]:
        """The names by which the page may be asked for; any, where a token guards it and the address has many names."""
        return frozenset() if self.token and not _is_loopback(self.host) else HERE | {self.host}


def address(host: str, port: int, token: str | None) -> Address:
    """Take an address, and a token for it: the one given (or in the environment), or a new one where others can reach it.

    Raises:
        ExpungeError: if it cannot be had, or the token is too short.
    """
    token = os.environ.get(TOKEN) if token is None else token
    if token is not None and (len(token) < SHORTEST or not token.isalnum() or not token.isascii()):
        raise ExpungeError(f"a token of {len(token)} letters: expected {SHORTEST} or more plain letters and digits")
    if not 0 <= port <= 65_535:
        raise ExpungeError(f"--port {port}: expected 0 to 65535")
    needed = token or ("" if _is_loopback(host) else secrets.token_hex(24))
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as stack:
            bound = stack.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(place)
            bound.listen(128)
            stack.pop_all()  # it stays open
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        wanted = (
            "another --port (0 finds a free one)" if taken else "an address of this machine, and a port that may be had"
        )
        raise ExpungeError(
            f"'{host}' port {port} cannot be had: {error.strerror or error}; expected {wanted}"
        ) from error
    return Address(bound, host, bound.getsockname()[1], needed)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_installed() -> None:
    """Refuse to begin without the packages of the page.

    Raises:
        ExpungeError: naming the extra that has them.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when it is imported
    try:
        import gradio  # noqa: F401  # pyright: ignore[reportUnusedImport]
        import uvicorn  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        raise ExpungeError(f"the page needs {error.name}, which is not installed: expected expunge[web]") from error


def application(desk: Desk) -> Any:
    """The page and the reports, before any guard."""
    import fastapi
    import gradio

    from expunge.web.page import CSS, page, theme

    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.get("/report/{name:path}", response_class=fastapi.responses.HTMLResponse)
    def report(name: str) -> Any:
        try:
            return fastapi.responses.HTMLResponse(desk.report(name))
        except ExpungeError as error:
            return fastapi.responses.PlainTextResponse(f"{error}\n", 404)

    looks: dict[str, Any] = {"theme": theme(), "css": CSS, "footer_links": [], "favicon_path": None}
    closed: dict[str, Any] = {"allowed_paths": [], "blocked_paths": ["/"], "max_file_size": 1, "show_error": False}
    without: dict[str, Any] = {"ssr_mode": False, "run_history": False, "mcp_server": False, "pwa": False}
    return gradio.mount_gradio_app(app, page(desk), path="/", enable_monitoring=False, **looks, **closed, **without)


def serve(folder: Path, at: Callable[[], Address], runner: dict[str, Any], tell: Callable[[str], None]) -> None:
    """Serve a folder until somebody ends it; runs that are going on go on.

    Args:
        folder: of runs and models; made if it is missing.
        at: takes the address, after all else was found to be there.
        runner: what runs are started with.
        tell: told the address, and the token with it, once.

    Raises:
        ExpungeError: if the folder, the address or the packages cannot be had.
    """
    served = Served.opened(folder)
    desk = Desk(runner=Runner(served=served, **runner))
    desk.runner.check()
    check_installed()
    address = at()
    import uvicorn

    logging.getLogger("httpx").setLevel(logging.WARNING)
    guarded = Guard(application(desk), address.token, address.names)
    config = uvicorn.Config(
        guarded, log_level="warning", server_header=False, proxy_headers=False, timeout_graceful_shutdown=1
    )
    logging.getLogger("uvicorn.error").addFilter(_no_goodbye)
    tell(address.url)
    with contextlib.closing(address.socket):
        uvicorn.Server(config).run(sockets=[address.socket])


def _no_goodbye(record: logging.LogRecord) -> bool:
    """Whether a line of the log is worth a reader's time: not that pages were open when the server ended."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))
