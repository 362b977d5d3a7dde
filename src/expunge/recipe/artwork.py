"""Fetch the pinned icon sets and draw every object in every icon set's hand."""

import importlib.util
import io
import json
import re
import shutil
import subprocess
import tarfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expunge.core.errors import ExpungeError
from expunge.recipe.artists import ARTISTS
from expunge.store import new_file, new_folder

INK = "#222222"
"""The one ink colour of the high-contrast set."""
PIXELS = 96
"""Side of a drawing, in pixels."""


@dataclass(frozen=True, kw_only=True)
class Artwork:
    """Every object drawn by every hand."""

    drawings: np.ndarray
    """uint8 ``[objects, hands, 96, 96, 4]``, RGBA."""
    names: list[str]
    hands: list[str]
    """The icon sets."""
    categories: list[str]
    keywords: list[list[str]]
    """Words that mean the object without naming it, one list per object."""

    @property
    def styles(self) -> list[str]:
        """The hands, then the artists who work from their drawings: a scene's style counts through both."""
        return [*self.hands, *ARTISTS]


def specification() -> dict[str, Any]:
    """The recipe's own list of objects, styles and packages."""
    return tomllib.loads((Path(__file__).parent / "objects.toml").read_text())


def fetch(package: str, cache: Path) -> Path:
    """Folder with the unpacked npm ``package`` (``name@version``), downloaded once.

    Raises:
        ExpungeError: if npm is not installed, or cannot fetch it.
    """
    folder = cache / package.replace("/", "__")
    if not folder.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise ExpungeError(f"'{package}' comes from npm, which is not installed: expected `npm` on the path")
        cache.mkdir(parents=True, exist_ok=True)
        out = subprocess.run([npm, "pack", package], cwd=cache, check=False, capture_output=True, text=True)
        if out.returncode:
            said = [line for line in out.stderr.splitlines() if " error " in line] or ["it did not say why"]
            raise ExpungeError(f"npm cannot fetch '{package}': {' '.join(said)}")
        with new_folder(folder) as temporary, tarfile.open(cache / out.stdout.split()[-1]) as tar:
            tar.extractall(temporary, filter="data")
    return folder / "package"


def svg(icons: dict[str, Any], slug: str) -> str:
    """The drawing ``slug`` of an iconify set as a standalone SVG, aliases resolved."""
    flips = ""
    while slug not in icons["icons"]:
        alias = icons["aliases"][slug]
        flips += " scale(-1,1)" if alias.get("hFlip") else ""
        slug = alias["parent"]
    icon = icons["icons"][slug]
    width, height = (icon.get(k, icons.get(k, 16)) for k in ("width", "height"))
    body = icon["body"].replace("currentColor", INK)
    if flips:
        body = f'<g transform="translate({width},0){flips}">{body}</g>'
    head = (
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 {width} {height}"'
    )
    return f"<svg {head}>{body}</svg>"


def draw(text: str) -> np.ndarray:
    """Render an SVG to uint8 ``[96, 96, 4]``, cropped to its ink and centred in a square."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg_string=text, width=2 * PIXELS, height=2 * PIXELS))
    image = Image.open(io.BytesIO(png)).convert("RGBA")
    box = image.getchannel("A").getbbox() or (0, 0, *image.size)
    image = image.crop(box)
    side = max(image.size)
    square = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    return np.asarray(square.resize((PIXELS, PIXELS), Image.Resampling.LANCZOS))


def keywords(label: str, tags: list[str], names: set[str], drop: set[str]) -> list[str]:
    """Tags that are not words of any object's name (plurals of it may be among them)."""
    words = set(re.findall(r"[a-z]+", " ".join(names))) | set(re.findall(r"[a-z]+", label.lower()))
    keep = [t.lower() for t in tags if re.fullmatch(r"[A-Za-z][A-Za-z ]+", t)]
    return [t for t in keep if t not in drop and not words & set(t.split())]


def load(cache: Path) -> Artwork:
    """Draw all objects by all hands; the result is kept in ``cache/artwork.npz``.

    Raises:
        ExpungeError: if what fetches or draws them is not installed.
    """
    spec = specification()
    stored = cache / "artwork.npz"
    if not stored.exists() and importlib.util.find_spec("resvg_py") is None:
        raise ExpungeError("drawing icons needs resvg_py: expected `pip install 'expunge[recipe]'`")
    names, hands = list(spec["objects"]), list(spec["styles"])
    labels = fetch(spec["words"]["labels"], cache) / "en" / "data.json"
    entries = {re.sub(r"[^a-z0-9]+", "-", e["label"].lower()): e for e in json.loads(labels.read_text())}
    drop = set(spec["keywords"]["drop"])
    extra = spec["keywords"]["extra"]
    words = [
        keywords(entries[slug]["label"], entries[slug].get("tags", []), set(names), drop | {category})
        + extra.get(name, [])
        for name, (slug, category) in spec["objects"].items()
    ]
    if not stored.exists():
        sets = [json.loads((fetch(p, cache) / "icons.json").read_text()) for p in spec["styles"].values()]
        rows = [[draw(svg(icons, slug)) for icons in sets] for slug, _ in spec["objects"].values()]
        with new_file(stored) as temporary, temporary.open("wb") as opened:  # a bare name would get ".npz" added
            np.savez_compressed(opened, drawings=np.array(rows))
    return Artwork(
        drawings=np.load(stored)["drawings"],
        names=names,
        hands=hands,
        categories=[category for _, category in spec["objects"].values()],
        keywords=words,
    )
