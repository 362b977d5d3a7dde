"""A method of your own: one frozen dataclass. Announce it as an entry point in the group `expunge.erasers` to use it by name.

This one replaces a word's vectors by another word's, and checks that it keeps what every method promises.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from torch import Tensor

from expunge import Concept
from expunge.backbones import load
from expunge.core.backbone import Backbone
from expunge.core.catalog import Paper
from expunge.core.eraser import Eraser, Step, Task
from expunge.core.knowledge import Kind
from expunge.testing import check_eraser


@final
@dataclass(frozen=True, kw_only=True)
class Synonym(Eraser):
    """Give the last token of each target the input vector of another word's.

    Deviations: none known.
    """

    paper: ClassVar[Paper] = Paper("An example", "nobody", 2026, "")
    ignores_retain: ClassVar[bool] = True
    knows: ClassVar[Mapping[str, Kind]] = {"word": "anchor"}
    tuning: ClassVar[Sequence[str]] = ()
    word: str = "picture"
    """What targets are taken for."""

    def steps(self, backbone: Backbone, task: Task, resume: Mapping[str, Tensor] | None = None) -> Iterable[Step]:
        (name,) = backbone.group("text-embedding")
        table = backbone.tensors([name])[name].clone()
        other = self._last(backbone, self.word)
        for target in task.targets:
            table[self._last(backbone, target.name)] = table[other]
        yield Step(index=0, edit=lambda: backbone.edit_of({name: table}))

    @staticmethod
    def _last(backbone: Backbone, word: str) -> int:
        ids = backbone.tokenize([word])
        return int(ids[0, int(backbone.end(ids)[0]) - 1])


if __name__ == "__main__":
    testbed = load("testbed")
    edit = check_eraser(Synonym(), testbed, Task(targets=[Concept(name="church")], retain=["dog"]))
    print(f"every promise kept; edit {edit.id} replaces {', '.join(edit.tensors())}")
