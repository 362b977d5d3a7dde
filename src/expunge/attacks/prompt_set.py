"""Prompt sets: adversarial prompts that others found and published, as they stand in a file of the user's."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, final

from typing_extensions import override

from expunge.core import registry
from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Paper
from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, ExpungeWarning, check_counts
from expunge.core.knowledge import Kind
from expunge.core.query import Query
from expunge.core.victim import Access, BlackBox

NAME = "prompt-set"
_ANY = Query(prompt="", seed=0, guidance=1.0, steps=1)
"""Stands for a query where it only matters which rows a file has."""


@final
@dataclass(frozen=True, kw_only=True)
class PromptSet(Attack[BlackBox]):
    """Ask with the prompts of a published file, row by row; what they were found against need not be what is attacked.

    Files of P4D, Ring-A-Bell, UnlearnDiffAtk and MMA-Diffusion are read in their own columns: see `store.read_prompts`. The
    prompts are those of ``adv_prompt`` or ``sensitive prompt`` where a file has one of these, or else of ``prompt``. Seeds and
    scales are the rows', where the file has such columns; otherwise seeds run on from that of the first query for the target,
    and the scale is that query's. Its steps are all rows'. A file's labels tell targets apart; where they name none of them,
    every row asks for the one target, with a warning.
    Nothing is searched and nothing is drawn, so other attacks' budgets are no measure of this one.
    Deviations: evaluations of the sets without seeds give every row the same one (42); here each row has its own.
    """

    paper: ClassVar[Paper] = Paper("Published sets of prompts: docs/attacks.md names them", "several", 2024, "")
    access: ClassVar[Access] = "queries"
    shares: ClassVar[bool] = False
    draws: ClassVar[bool] = False
    keeps_seeds: ClassVar[bool] = False
    own_prompts: ClassVar[bool] = True
    files: ClassVar[Sequence[str]] = ("attack_set",)
    knows: ClassVar[Mapping[str, Kind]] = {"attack_set": "words"}
    tuning: ClassVar[Sequence[str]] = ("column", "images", "row_guidance")
    attack_set: str = ""
    """The file: a CSV or TSV of one prompt a row, or a .txt of one a line; your own, as none is in this package."""
    column: tuple[str, ...] = ()
    """What a column is, where its name does not tell: prompt=NAME, label=NAME, seed=NAME or guidance=NAME."""
    images: int = 1
    """Images of each row; the first has its seed, each further one the next."""
    row_guidance: bool = True
    """Take the scale of guidance from the rows, where the file has a column of them; otherwise one scale for all."""

    def __post_init__(self) -> None:
        check_counts(NAME, images=self.images)
        for given in self.column:
            role, equals, name = given.partition("=")
            if not (role and equals and name.strip()) or len(self._columns) < len(self.column):
                raise ExpungeError(
                    f"{NAME}'s column '{given}': expected ROLE=NAME, as in prompt=text, once for each role"
                )

    @property
    def _columns(self) -> dict[str, str]:
        """Names of columns by what they are."""
        return {role: name for role, _, name in (given.partition("=") for given in self.column)}

    @override
    def check(self, targets: Sequence[Concept]) -> None:
        with warnings.catch_warnings():  # which are told once, where the file is used
            warnings.simplefilter("ignore", ExpungeWarning)
            self._rows(targets, _ANY)

    @override
    def asks(self, targets: Sequence[Concept], queries: int) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExpungeWarning)
            return self.images * len(self._rows(targets, _ANY))

    @override
    def provoke(self, victim: BlackBox, task: Task, queries: Sequence[Query]) -> Provocation:
        names = {target.name for target in task.targets}
        like = next(query for query in queries if query.label in names)
        rows = self._rows(task.targets, like)
        return Provocation(queries=[replace(row, seed=row.seed + i) for row in rows for i in range(self.images)])

    def _rows(self, targets: Sequence[Concept], like: Query) -> list[Query]:
        """A query for each row that asks for a target; what a file does not say of one is as in ``like``."""
        if not self.attack_set:
            raise ExpungeError(f"{NAME} without an attack_set: expected a file of prompts (--attack-set FILE)")
        columns = self._columns
        read: list[Query] = registry.prompt_reader()(
            Path(self.attack_set),
            like.guidance,
            like.steps,
            row_guidance=self.row_guidance,
            columns=columns,
            seed_from=like.seed,
            attack_set=True,
        )
        rows = [replace(row, true_cfg=like.true_cfg) for row in read]
        called = {target.name.casefold(): target.name for target in targets}
        named = [(row, called.get((row.label or "").casefold())) for row in rows]
        mine = [replace(row, label=name) for row, name in named if name is not None]
        if mine:
            self._check_found(called.values(), rows, mine)
            return mine
        said = ", ".join(f"'{label}'" for label in list(dict.fromkeys(row.label for row in rows if row.label))[:4])
        asked = " or ".join(f"'{name}'" for name in called.values())
        if "label" in columns or len(called) > 1:
            raise ExpungeError(
                f"no row of '{self.attack_set}' is labelled {asked} (but {said or 'nothing'}): expected a single target that "
                "all rows ask for, or --column label=NAME with its name"
            )
        if said:
            warnings.warn(
                f"'{self.attack_set}' has rows labelled {said}, and none {asked}: every row is taken to ask for {asked}",
                ExpungeWarning,
                stacklevel=2,
            )
        return [replace(row, label=targets[0].name) for row in rows]

    def _check_found(self, names: Iterable[str], rows: Sequence[Query], mine: Sequence[Query]) -> None:
        """Refuse a file that has rows for some targets and not for others, and say of how many of its rows are asked."""
        found = {row.label or "" for row in mine}
        lacking = next((name for name in names if name not in found), None)
        if lacking is not None:
            raise ExpungeError(f"no row of '{self.attack_set}' is labelled '{lacking}': expected one for each target")
        if len(mine) < len(rows):
            warnings.warn(
                f"{len(mine)} of {len(rows)} rows of '{self.attack_set}' are labelled {' or '.join(map(repr, sorted(found)))}: "
                "the others are left out",
                ExpungeWarning,
                stacklevel=3,
            )
