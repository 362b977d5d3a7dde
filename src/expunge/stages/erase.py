"""Erase: model, concepts and an eraser's settings in; an edit out."""

import hashlib
import secrets
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, final

from torch import Tensor

from expunge import backbones
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog
from expunge.core.concept import Concept, check_targets
from expunge.core.cost import Cost
from expunge.core.edit import Edit, Provenance
from expunge.core.eraser import Eraser, Step, Task, files_of, settings_of
from expunge.core.errors import ExpungeError, ExpungeWarning, unknown
from expunge.settings import presets
from expunge.settings.layers import filled
from expunge.stages import finite, resume, texts, wanted
from expunge.stages.stopping import Stop, Watch
from expunge.store import (
    EDIT,
    KEY,
    Checkpoint,
    Checkpoints,
    check_new,
    read_header,
    reserved,
    roles_in,
    save_edit,
    with_provenance,
)


@final
@dataclass(frozen=True, kw_only=True)
class EraseResult:
    """What an erasure gave."""

    edit: Edit
    path: Path
    key: Path | None
    """Where the private key is, for a method that has one."""
    seconds: float


def build(method: str, given: dict[str, Any], kind: str | None) -> Eraser:
    """The eraser ``method``: the paper's defaults, then the preset of ``kind`` (if any), then what the user gave.

    Raises:
        ExpungeError: for an unknown method or setting.
    """
    cls = Catalog("erasers").load(method)
    return filled(cls, method, presets.eraser(method, kind) if kind else {}, given)


def erase(
    model: Any,
    targets: str | Concept | Sequence[str | Concept],
    method: str = "uce",
    *,
    retain: str | Sequence[str] = (),
    settings: dict[str, Any] | None = None,
    preset: bool = True,
    seed: int = 0,
    images: str | Path | Mapping[str, str | Path] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> Edit:
    """Make an edit that removes ``targets`` from ``model``, which is left as it was.

    Where the method makes a private key, it is the edit's ``key``, to be saved by itself: ``edit.key.save(path)``.

    Args:
        model: a diffusers pipeline that you hold, a backbone, or a name as `load` takes it.
        targets: one concept or several, in words.
        method: catalog name of the eraser; see `expunge list`.
        retain: words of a concept to keep, or of several.
        settings: the eraser's settings, over the preset's and the paper's.
        preset: start from the settings found for this kind of model, if there are any.
        seed: seed of whatever the method draws.
        images: a folder of images for a method that wants some, or one for each target or role; the model makes them if not
            given.
        on_step: called after every update.

    Raises:
        ExpungeError: for bad input, in one line.
    """
    backbone = backbones.load(model) if isinstance(model, str) else backbones.of(model)
    eraser = build(method, dict(settings or {}), backbone.kind if preset else None)
    kept = [retain] if isinstance(retain, str) else list(retain)
    aims = concepts(targets)
    return run(
        backbone, method, eraser, aims, kept, seed, images=folders(images, eraser.wants(aims, kept)), on_step=on_step
    )


def concepts(targets: str | Concept | Sequence[str | Concept]) -> list[Concept]:
    """Targets in any of the accepted forms, as concepts."""
    several = [targets] if isinstance(targets, str | Concept) else list(targets)
    return [Concept(name=t) if isinstance(t, str) else t for t in several]


def folders(images: str | Path | Mapping[str, str | Path] | None, roles: Iterable[str]) -> dict[str, Path]:
    """Image folders by role, from folders by role, or from one folder: of the only role, or with all roles in its metadata.

    Raises:
        ExpungeError: if one folder serves several roles without telling them apart, or one is for a role that there is not.
    """
    names = list(roles)
    if not images:
        return {}
    if not names:
        raise ExpungeError(f"images '{images}' are given to a method that wants none: expected none")
    if isinstance(images, str | Path):
        if len(names) > 1 and not set(names) <= roles_in(Path(images)):
            raise ExpungeError(
                f"one folder of images '{images}' for {' and '.join(names)}: expected one for each, by name"
            )
        return {name: Path(images) for name in names}
    for name in images:
        if name not in names:
            raise unknown("role of the images", name, names)
    return {name: Path(path) for name, path in images.items()}


def prepared(
    backbone: Backbone,
    eraser: Eraser,
    targets: list[Concept],
    retain: Sequence[str],
    seed: int,
    salt: str = "",
    images: Mapping[str, Path] | None = None,
) -> Task:
    """The task of an eraser, with the images it wants: read from the folders ``images``, or made by the model.

    Raises:
        ExpungeError: if folders are given to a method that wants no images, or a word is longer than the model reads.
    """
    check_targets(targets, list(retain))
    check_model(backbone, eraser)
    eraser.check_targets(targets)
    texts.check_words(backbone, [*(word for t in targets for word in (t.name, t.anchor or "")), *retain])
    aimed = next((t for t in targets if t.anchor is not None), None)
    if aimed is not None and eraser.unaimed:
        raise ExpungeError(
            f"'{aimed.name}' with the anchor '{aimed.anchor}' for {type(eraser).__name__}, {eraser.unaimed}: expected none"
        )
    bare = Task(targets=targets, retain=retain, seed=seed, salt=salt)
    needs, given = eraser.wants(targets, retain), images or {}
    unwanted = [name for name in given if name not in needs]
    if unwanted:
        raise ExpungeError(f"images for '{unwanted[0]}' are given to a method that wants none: expected none")
    return wanted.attached(backbone, bare, needs, given)


def _salt(given: str | None, eraser: Eraser) -> str:
    """The secret that is given, or a fresh one where the method has a key."""
    return secrets.token_hex(16) if given is None and eraser.has_key else given or ""


def _warn_of_ignored(method: str, eraser: Eraser, retain: list[str]) -> None:
    """Say so where words to keep change nothing."""
    if retain and not eraser.heeds_retain:
        words = ", ".join(f"'{word}'" for word in retain[:3]) + (", …" if len(retain) > 3 else "")
        line = f"{method} ignores words to keep ({words}): it does nothing for them"
        warnings.warn(line, ExpungeWarning, stacklevel=4)


def check_model(backbone: Backbone, eraser: Eraser) -> None:
    """Refuse a model that lacks what a method needs.

    Raises:
        ExpungeError: naming it.
    """
    for capability in eraser.requires:
        if not backbone.supports(capability):
            raise ExpungeError(
                f"{type(eraser).__name__} needs {capability}, which {backbone.name} ({backbone.family}) has not"
            )
    eraser.check(backbone)


def run(
    backbone: Backbone,
    method: str,
    eraser: Eraser,
    targets: list[Concept],
    retain: list[str],
    seed: int = 0,
    salt: str | None = None,
    images: Mapping[str, Path] | None = None,
    on_step: Callable[[Step], None] | None = None,
    checkpoints: Checkpoints | None = None,
    stop: Stop | None = None,
) -> Edit:
    """Drain an eraser's steps; the last edit gets its provenance and, where the method makes one, its key.

    A method with a key draws its random numbers from ``seed`` and a secret ``salt``, fresh if not given. With ``checkpoints``
    it writes down where it is, and goes on from where an earlier run was; cost and seconds are then those of both. ``images``
    are a user's own, or what `wanted.make` made for this very erasure: these count as made by the model, with their cost.
    A ``stop`` ends it where that is reached; what was seen on the way is in provenance and cost. Of words it ignores it warns.

    Raises:
        ExpungeError: if a loss, or what was learned, is NaN or infinite; or if the checkpoint is of another erasure.
    """
    earlier, given, files = None, images or {}, files_of(eraser)
    _warn_of_ignored(method, eraser, retain)
    if checkpoints is not None:
        ends = {} if stop is None else asdict(stop)
        earlier = checkpoints.begin(resume.of_erasure(backbone, method, eraser, targets, retain, seed, images, ends))
    salt = _salt(salt, eraser) if earlier is None else earlier.salt
    clock = _Clock(backbone, earlier)
    task = prepared(backbone, eraser, targets, retain, seed, salt, images)
    own = wanted.own(backbone, task, eraser.wants(targets, retain), given)
    watch = None if stop is None else Watch(backbone, stop, [t.name for t in targets], earlier)
    last = _drained(backbone, method, eraser, task, clock, earlier, on_step, checkpoints, watch)
    provenance = Provenance(
        eraser=method,
        settings=settings_of(eraser),
        targets=[t.name for t in targets],
        anchors=[t.anchor for t in targets],
        retain=retain,
        model=backbone.name,
        family=backbone.family,
        seed=seed,
        cost=sum((made.cost for made in own.values()), clock.cost),
        seconds=round(sum((made.seconds for made in own.values()), clock.seconds), 3),
        expunge=version("expunge"),
        salt_sha256=hashlib.sha256(salt.encode()).hexdigest() if eraser.has_key else "",
        derived=dict(eraser.derived()),
        files=files,
        images={r: wanted.described(s, None if r in own else given.get(r)) for r, s in task.images.items()},
        search={} if watch is None else watch.record(),
    )
    edit = with_provenance(last.edit(), provenance)
    finite.check_edit(backbone, method, eraser, edit)
    if last.key is not None:
        edit.key = with_provenance(last.key(edit), provenance)
        finite.check_edit(backbone, method, eraser, edit.key)
    for line in last.warnings():
        warnings.warn(line, ExpungeWarning, stacklevel=3)
    return edit


@final
class _Clock:
    """What an erasure has taken so far, with what an earlier run of it took."""

    def __init__(self, backbone: Backbone, earlier: Checkpoint | None) -> None:
        self._backbone, self._cost, self._start = backbone, backbone.cost, time.perf_counter()
        if earlier is not None:
            self._cost, self._start = self._cost - earlier.cost, self._start - earlier.seconds

    @property
    def cost(self) -> Cost:
        """Evaluations of the denoiser."""
        return self._backbone.cost - self._cost

    @property
    def seconds(self) -> float:
        """Wall time."""
        return time.perf_counter() - self._start


def _drained(
    backbone: Backbone,
    method: str,
    eraser: Eraser,
    task: Task,
    clock: _Clock,
    earlier: Checkpoint | None,
    on_step: Callable[[Step], None] | None,
    checkpoints: Checkpoints | None,
    watch: Watch | None,
) -> Step:
    """An eraser's last step, or the one that ``watch`` says is enough; checkpoints are written on the way.

    Raises:
        ExpungeError: if a loss is NaN or infinite, or there is no step.
    """
    last: Step | None = None
    for step in eraser.steps(backbone, task, None if earlier is None else earlier.state):
        finite.check_losses(backbone, method, eraser, step)
        last = step
        if on_step is not None:
            on_step(step)
        if watch is not None and watch.enough(step):
            break
        if checkpoints is not None:
            spent = {"cost": clock.cost, "seconds": clock.seconds}
            due = checkpoints.due()
            checkpoints.add(Checkpoint(salt=task.salt, **spent, state=_state(step, watch)) if due else None)
    if last is None:
        raise ExpungeError(f"{method} made no update: expected at least one step")
    if watch is not None:
        watch.end(last)
    return last


def _state(step: Step, watch: Watch | None) -> Mapping[str, Tensor]:
    """What going on after ``step`` needs: the eraser's own state, and what was seen so far."""
    return step.state() if watch is None else {**step.state(), **watch.state()}


@contextmanager
def reserve(out: Path, eraser: Eraser, overwrite: bool) -> Iterator[None]:
    """Keep the folder ``out`` for an erasure, from before anything is trained until it is written.

    Raises:
        ExpungeError: if it holds an edit or a key already (unless ``overwrite``), or another run works on one.
    """
    with reserved(out / EDIT, overwrite):
        if eraser.has_key:
            check_new(out / KEY, overwrite)
        try:
            yield
        except KeyboardInterrupt as error:
            if checkpoints(out).file.exists():
                error.add_note(f"a checkpoint is in '{out}', and --resume goes on from it")
            raise


def checkpoints(out: Path, resume: bool = False) -> Checkpoints:
    """Where an erasure into the folder ``out`` writes down how far it is."""
    return Checkpoints(out / f".{EDIT}.resume", resume)


def to_folder(edit: Edit, out: Path, overwrite: bool = False) -> EraseResult:
    """Write ``edit.safetensors`` and, where there is a key, ``key.safetensors``.

    A key that was there before is never lost: it is renamed after the edit it belongs to. The key is written first, so that no
    edit lies there whose key is lost; a checkpoint that is left goes last.
    """
    file, key = out / EDIT, out / KEY
    if key.exists():  # an old edit's key, which nothing can make again
        try:
            old = read_header(key)["requires"][-1:]
        except ExpungeError:  # what is damaged is kept, too
            old = ["damaged"]
        key.rename(_free(key.with_name(f"key-{''.join(map(str, old))}.safetensors")))
    if edit.key is not None:
        save_edit(edit.key, key)
    save_edit(edit, file, overwrite)
    checkpoints(out).end()
    seconds = 0.0 if edit.provenance is None else edit.provenance.seconds
    return EraseResult(edit=edit, path=file, key=None if edit.key is None else key, seconds=seconds)


def _free(path: Path) -> Path:
    """``path``, or a name like it that no file has."""
    names = (path.with_name(f"{path.stem}-{number}{path.suffix}") for number in count(2))
    return path if not path.exists() else next(name for name in names if not name.exists())
