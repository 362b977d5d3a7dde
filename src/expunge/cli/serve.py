"""`expunge serve`: a page for the browser."""

import dataclasses
import sys
from pathlib import Path

from expunge.cli.parsing import Positional, parse
from expunge.cli.reporting import Reporting


@dataclasses.dataclass(frozen=True, kw_only=True)
class Serve:
    """Erase, look, attack and report in a browser. Runs are processes of their own, which go on when the page is closed."""

    folder: Positional[Path] = Path("runs")
    """Folder of runs, of finished jobs (store/) and of models, diffusers folders, that may be chosen; nothing else is read."""
    host: str = "127.0.0.1"
    """Address to listen on: this machine alone. With another one the page asks for a token."""
    port: int = 7860
    """Port; 0 for any that is free."""
    token: str | None = None
    """What opens the page, 16 letters and digits or more, if not the one that is made for addresses that others reach.
    Others may see it in the list of processes; the environment's EXPUNGE_TOKEN is not seen."""
    device: str = "cpu"
    """Where models run: `cpu`, `cuda`, `cuda:0`, `mps` (GPU untested)."""
    workers: int | None = None
    """Jobs of a run at a time; as many as there are cores if not given, and one on a GPU."""
    online: bool = False
    """Let runs fetch what they lack, such as the weights of a judge. The page itself asks for nothing outside."""
    reporting: Reporting = dataclasses.field(default_factory=Reporting)


def serve(argv: list[str]) -> None:
    """``expunge serve [FOLDER]``."""
    options = parse(Serve, argv, "expunge serve")
    from expunge.web import server

    def tell(url: str) -> None:
        options.reporting.result({"url": url, "folder": str(options.folder)}, f"{options.folder}: {url}")
        sys.stdout.flush()  # nothing follows it until the end

    runner = {"device": options.device, "workers": options.workers, "online": options.online}
    server.serve(options.folder, lambda: server.address(options.host, options.port, options.token), runner, tell)
