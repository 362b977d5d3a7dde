"""What the commands that make images share: generate and recover."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.cli.options import Model, Sampling, Words
from expunge.cli.reporting import Reporting
from expunge.core.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone
    from expunge.core.edit import Edit
    from expunge.core.query import Query


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptFile:
    """A prompt file of a paper: one image a row, at the row's own seed."""

    prompts: Path | None = None
    """A CSV with the columns prompt, evaluation_seed (or sd_seed), and perhaps class or artist, which become labels; or a .txt
    of one prompt a line."""
    label: str | None = None
    """What every row of the CSV asks for, in the place of its class or artist: nudity for I2P."""
    row_guidance: bool = False
    """Take guidance from the CSV's rows (evaluation_guidance or sd_guidance_scale), not one scale for all."""
    column: Words = ()
    """What a column of the CSV is: prompt=NAME, label=NAME, seed=NAME or guidance=NAME; repeat for several. A label column of 0
    and 1 labels the rows with a 1 by its name, or by --label."""
    seed_from: int | None = None
    """Seed of the first row, for a file without seeds; each further row has the next one."""

    def queries(self, guidance: float, steps: int) -> "list[Query]":
        """A query for each row; none without a file."""
        from expunge.store import read_prompts

        if self.prompts is None:
            if self != PromptFile():
                raise ExpungeError(
                    "--label or --row-guidance without --prompts: expected a CSV of prompts, as for --column and --seed-from"
                )
            return []
        columns: dict[str, str] = {}
        for given in self.column:
            role, equals, name = given.partition("=")
            if not (equals and name.strip()) or role in columns:
                raise ExpungeError(f"--column '{given}': expected ROLE=NAME, as in prompt=text, once for each role")
            columns[role] = name
        return read_prompts(
            self.prompts, guidance, steps, self.label, self.row_guidance, columns=columns, seed_from=self.seed_from
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class NewImages:
    """Where images go, and what makes them."""

    out: Path
    """Folder for the images."""
    overwrite: bool = False
    """Replace an existing folder."""
    resume: bool = False
    """Go on with the batches of images that a killed or interrupted run of the same command left, if there are any."""
    sampling: Sampling = dataclasses.field(default_factory=Sampling)
    model: Model = dataclasses.field(default_factory=Model)
    reporting: Reporting = dataclasses.field(default_factory=Reporting)

    def make(
        self, backbone: "Backbone", edits: "Sequence[Edit]", queries: "Sequence[Query]", title: str, **how: Any
    ) -> None:
        """Generate into the folder, with a progress bar; ``how`` goes to the stage."""
        from expunge.stages import generate as stage

        with self.reporting.progress(title, len(queries), "images") as advance:
            how |= {"batch": self.sampling.batch, "overwrite": self.overwrite, "resume": self.resume}
            stage.to_folder(backbone, edits, queries, self.out, on_batch=advance, **how)
        content = {"folder": str(self.out), "images": len(queries)}
        self.reporting.result(content, f"{self.out}: {len(queries)} images")
