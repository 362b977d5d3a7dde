"""Wanted images: what a method wants to see, read from a user's folders, or made by the model and read from disk one by one."""

import hashlib
import json
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, final

from jaxtyping import UInt8
from torch import Tensor
from typing_extensions import override

from expunge.core.backbone import Backbone
from expunge.core.cost import Cost
from expunge.core.eraser import Marked, Redrawn, Task, Wish
from expunge.core.errors import ExpungeError
from expunge.core.query import Query, Shot, Start
from expunge.settings import presets
from expunge.stages import generate
from expunge.store import (
    FORMAT,
    RUN,
    new_folder,
    read_any_images,
    read_images,
    read_pairs,
    read_pixels,
    read_run,
    write_images,
    write_json,
)
from expunge.store.listing import METADATA

VERSION = 1
"""Raised when the same wishes begin to give other images."""


class Made(NamedTuple):
    """What it took to make images."""

    cost: Cost
    seconds: float


Sources = Mapping[str, Sequence[Shot]]
"""Images by role, which others are made from."""


@final
class _Queries(Sequence[Query]):
    """What the model is asked for, a query for each image; put together when it is looked at, with the image it starts from."""

    def __init__(
        self, backbone: Backbone, task: Task, role: str, wishes: Sequence[str | Redrawn], sources: Sources
    ) -> None:
        self._task, self._role, self._wishes, self._sources = task, role, wishes, sources
        self.guidance, self.steps = presets.generation(backbone)

    @override
    def __len__(self) -> int:
        of = next((wish.of for wish in self._wishes if isinstance(wish, Redrawn)), None)
        return len(self._wishes) if of is None else len(self._sources[of])

    @override
    def __getitem__(self, number: Any) -> Any:
        if not -len(self) <= number < len(self):
            raise IndexError(number)  # which ends a loop over it
        wish = self._wishes[number % len(self._wishes)]
        seed = self._task.number("images", self._role, number)
        sampling = {"seed": seed, "guidance": self.guidance, "steps": self.steps}
        if isinstance(wish, str):
            return Query(prompt=wish, **sampling)
        start = Start(image=self._sources[wish.of][number].pixels(), strength=wish.strength)
        return Query(prompt=wish.prompt, negative=wish.negative, start=start, **sampling)


def make(
    backbone: Backbone,
    role: str,
    wishes: Sequence[Wish],
    seed: int,
    salt: str,
    out: Path,
    sources: Sources | None = None,
    *,
    overwrite: bool = False,
    on_batch: Callable[[int], None] | None = None,
) -> Path:
    """Images as the model, with the edits that it carries, makes them for a method: an image folder, with what it cost.

    Args:
        backbone: the model.
        role: what the method calls these images; ``seed``, ``salt`` and it tell an image's noise.
        wishes: one for each image. Those that are redrawn are as many as there are images of the role they are made from, in
            turn with each wish.
        seed: the erasure's.
        salt: the erasure's secret, which is not written down; empty for a method without a key.
        out: the folder.
        sources: images by role, for wishes that are made from others.
        overwrite: replace an earlier folder.
        on_batch: called after every batch with the number of its images.

    Raises:
        ExpungeError: for an image with marks, or one made from a role that has none.
    """
    plain = _drawable(role, wishes, sources or {})
    task = Task(targets=(), seed=seed, salt=salt)
    queries = _Queries(backbone, task, role, plain, sources or {})
    before, start = backbone.cost, time.perf_counter()
    with new_folder(out, overwrite) as folder:
        batches = generate.render(backbone, queries, on_batch=on_batch)
        write_images(folder, queries, batches)
        run = {
            "format": FORMAT,
            "model": backbone.name,
            "family": backbone.family,
            "dtype": str(backbone.dtype).removeprefix("torch."),
            "split": "none",
            "strength": 1.0,
            "sampling": {"guidance": queries.guidance, "steps": queries.steps},
            "edits": [{"id": e.id, "kind": e.kind, "provenance": None} for e in backbone.edits],
            "wanted": {"role": role, "sha256": fingerprint(backbone, role, plain, seed, salt, sources or {})},
            "cost": asdict(backbone.cost - before),
            "seconds": round(time.perf_counter() - start, 3),
        }
        write_json(folder / RUN, run)
    return out


def fingerprint(backbone: Backbone, role: str, wishes: Sequence[Wish], seed: int, salt: str, sources: Sources) -> str:
    """What tells a folder that `make` wrote from others: all that its images depend on.

    Images that these start from are told by their prompts and seeds, which are a method's own.
    """
    of = {wish.of for wish in wishes if isinstance(wish, Redrawn)}
    content = {
        "version": VERSION,
        "model": [_model_of(backbone), backbone.family, str(backbone.dtype), [e.id for e in backbone.edits]],
        "role": role,
        "wishes": [wish if isinstance(wish, str) else [type(wish).__name__, *wish] for wish in wishes],
        "draws": [seed, salt],
        "sources": {name: [[s.prompt, s.seed] for s in sources.get(name, ())] for name in sorted(of)},
        "sampling": presets.generation(backbone),
    }
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _model_of(backbone: Backbone) -> str:
    """What tells a model from others: its files, wherever they lie, or the name of a pipeline that somebody holds."""
    try:
        return backbone.identity()
    except ExpungeError:
        return backbone.name


def _drawable(role: str, wishes: Sequence[Wish], sources: Sources) -> list[str | Redrawn]:
    """The wishes, if the model can make them all.

    Raises:
        ExpungeError: naming what it cannot.
    """
    plain: list[str | Redrawn] = []
    for wish in wishes:
        if isinstance(wish, Marked):
            raise ExpungeError(
                f"images for '{role}' need {wish.marks}, which no model makes: expected a folder of them (--images) whose "
                f"metadata.jsonl has {'objects with a bbox' if wish.marks == 'boxes' else 'a mask_file_name'}"
            )
        if isinstance(wish, Redrawn) and wish.of not in sources:
            raise ExpungeError(f"images for '{role}' are made from those for '{wish.of}': expected these first")
        plain.append(wish)
    return plain


def attached(backbone: Backbone, task: Task, needs: Mapping[str, Sequence[Wish]], given: Mapping[str, Path]) -> Task:
    """``task`` with the images that a method needs: read from the folders ``given``, or made by the model as it is.

    Images are read from disk when they are looked at. Those that the model makes are in a temporary folder, which goes with the
    last of them.

    Raises:
        ExpungeError: if a folder holds no images, or lacks marks that are needed.
    """
    shots: dict[str, Sequence[Shot]] = {}
    for role, wishes in needs.items():
        if role not in given:
            shots[role] = _made(backbone, task, role, wishes, shots)
            continue
        other = next((wish.of for wish in wishes if isinstance(wish, Redrawn)), None)
        if other is not None and other in given and given[other] != given[role] and not is_made(given[role]):
            matched = read_pairs(given[other], given[role], backbone.image_size)
            shots |= {other: [one for one, _ in matched], role: [one for _, one in matched]}
        else:
            shots[role] = read_any_images(given[role], backbone.image_size, role)
        _check_marks(role, wishes, shots[role], given[role])
    return replace(task, images=shots)


def _made(backbone: Backbone, task: Task, role: str, wishes: Sequence[Wish], sources: Sources) -> list[Shot]:
    """Images of one role that the model makes now, in a folder that is removed with the last of them."""
    if not wishes:
        return []
    _drawable(role, wishes, sources)
    home = _Home()
    folder = make(backbone, role, wishes, task.seed, task.salt, home.path / "images", sources)
    return [replace(shot, pixels=partial(home.pixels, shot.path)) for shot in read_images(folder)]


@final
class _Home:
    """A temporary folder that is there for as long as something reads from it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="expunge-wanted-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def pixels(self, path: Path) -> UInt8[Tensor, "H W 3"]:
        """One of its images."""
        return read_pixels(path)


def _check_marks(role: str, wishes: Sequence[Wish], shots: Sequence[Shot], folder: Path) -> None:
    """Refuse an image, as it was cut to the model's size, without the marks that are needed; or all of them, if none has some.

    Raises:
        ExpungeError: naming the file.
    """
    wanted = [wish for wish in wishes if isinstance(wish, Marked)]
    if any(wish.on == "some" for wish in wanted) and not any(shot.boxes or shot.mask for shot in shots):
        raise ExpungeError(
            f"no image in '{folder}' for '{role}' has {wanted[0].marks}: expected them in its metadata.jsonl"
        )
    marks = {wish.marks for wish in wanted if wish.on == "every"}
    for shot in shots if marks else ():
        if "boxes" in marks and not shot.boxes:
            if _is_marked(folder, shot):
                raise ExpungeError(
                    f"'{shot.path}' for '{role}' has no box left, since its boxes are cut off with the edge of the image: "
                    "expected one that reaches into the middle, which has the model's proportions"
                )
            raise ExpungeError(
                f"'{shot.path}' for '{role}' has no boxes: expected objects with a bbox in its line of metadata.jsonl"
            )
        if "mask" in marks and shot.mask is None:
            raise ExpungeError(
                f"'{shot.path}' for '{role}' has no mask: expected a mask_file_name in its line of metadata.jsonl"
            )


def _is_marked(folder: Path, shot: Shot) -> bool:
    """Whether the folder's metadata has boxes on an image, wherever they lie."""
    listed = read_images(folder) if (folder / METADATA).is_file() else []
    return any(one.boxes and (one.path, one.prompt, one.seed) == (shot.path, shot.prompt, shot.seed) for one in listed)


def is_made(folder: Path) -> bool:
    """Whether `make` wrote a folder."""
    return (folder / RUN).is_file() and "wanted" in read_run(folder)


def own(
    backbone: Backbone, task: Task, needs: Mapping[str, Sequence[Wish]], given: Mapping[str, Path]
) -> dict[str, Made]:
    """By role, what it took to `make` those of the folders ``given`` that hold just what the model would have made.

    ``task`` has its images. An erasure with such folders is the erasure without any: the images are the method's own, and what
    they took is part of what it takes.
    """
    made: dict[str, Made] = {}
    for role, folder in given.items():
        run = read_run(folder) if is_made(folder) else {}
        expected = fingerprint(backbone, role, needs.get(role, ()), task.seed, task.salt, task.images)
        if run.get("wanted", {}).get("sha256") == expected:
            made[role] = Made(Cost(**run["cost"]), float(run.get("seconds", 0.0)))
    return made


def described(shots: Sequence[Shot], folder: Path | None) -> dict[str, Any]:
    """What the provenance says of images: how many, whose, and of a folder that was given who chose them, by what prompts."""
    if folder is None:
        return {"count": len(shots), "given": False}
    judge = read_run(folder).get("judge") if (folder / RUN).is_file() else None
    prompts = list(dict.fromkeys(shot.prompt for shot in shots if shot.prompt))
    return {
        "count": len(shots),
        "given": True,
        **({"judge": judge} if judge else {}),
        **({"prompts": prompts} if prompts else {}),
    }
