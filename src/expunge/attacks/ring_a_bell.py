"""Ring-A-Bell: a prompt of other tokens that the text encoder reads as the target's prompt and more of the concept."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, final

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from expunge.core.attack import Attack, Provocation
from expunge.core.catalog import Paper
from expunge.core.concept import OBJECT_TEMPLATES, Concept, phrases
from expunge.core.eraser import Task
from expunge.core.errors import ExpungeError, check_counts
from expunge.core.knowledge import Kind, Knowledge
from expunge.core.query import Query
from expunge.core.victim import Access, GrayBox
from expunge.maths import genetic

BAR = " | "
"""Stands in a pair between the text with the concept and that without."""


@final
@dataclass(frozen=True, kw_only=True)
class RingABell(Attack[GrayBox]):
    r"""Search tokens whose text is encoded as the prompt's encoding, moved along the concept's direction.

    .. math:: \hat c = \frac1N \sum_i \big( \tau(P_i^{c}) - \tau(P_i^{\neg c}) \big), \qquad
              \min_{\hat P} \big\| \tau(\hat P) - (\tau(P) + \eta \hat c) \big\|^2

    Tsai et al. 2023 (2310.12008); methods.md B2. The norm is a sum over all positions. A genetic search: each generation the
    better half goes on, is crossed, and mutates with its children. The denoiser is not asked. Tokens become text, and that text
    is tokenized again wherever it is read: so it is the text that is scored, as it will be read, and not the tokens that it was
    spelled from. Tokens that are no printable text of their own (marks, parts of a character) are not used.
    ``search="random"`` is the control: as many texts, and the best of them, each drawn for itself.
    Deviations: pairs are made of phrases around the concept's name, where none are given (the authors' are a language model's);
    children above the population's size are not kept, so that ``population * generations`` texts are the most that are scored;
    the best text of all generations is taken, not that of the last; scored texts are those that will be read (the authors score
    the tokens). The text encoder is the victim's own, with whatever an edit changed in it; a pooled vector is left out.
    """

    paper: ClassVar[Paper] = Paper(
        "Ring-A-Bell! How Reliable are Concept Removal Methods for Diffusion Models?",
        "Tsai et al.",
        2023,
        "2310.12008",
        "https://github.com/chiayi-hsu/Ring-A-Bell",
    )
    access: ClassVar[Access] = "text encoder"
    shares: ClassVar[bool] = False
    per_prompt: ClassVar[bool] = True
    spends: ClassVar[str] = "generations"
    returns: ClassVar[str] = "with words searched by its text encoder in {generations} generations"
    knows: ClassVar[Mapping[str, Kind]] = {"templates": "phrases", "neutral": "words", "pairs": "words"}
    tuning: ClassVar[Sequence[str]] = ("eta", "k", "population", "generations", "mutation", "crossover", "search")
    templates: tuple[str, ...] = OBJECT_TEMPLATES
    """Phrases that pairs are made of: each with the concept's name, and with ``neutral``."""
    neutral: str = "thing"
    """What stands in the name's place in the text without the concept."""
    pairs: tuple[str, ...] = ()
    """Pairs of your own instead, each ``WITH THE CONCEPT | WITHOUT IT``; for a single target."""
    eta: float = 3.0
    """How far the encoding is moved along the direction: 3 for nudity, 5 to 5.5 for violence in the authors' files; 0 is a
    control that only rewrites the prompt."""
    k: int = 16
    """Tokens that are searched: 16, 38 or 77 in the paper, whose 77 are the two marks and 75 between them."""
    population: int = 200
    """Texts in a generation."""
    generations: int = 3000
    """Generations."""
    mutation: float = 0.25
    """Share of a generation that gets a new token at one place."""
    crossover: float = 0.5
    """Share of the better half that gets two children."""
    search: Literal["genetic", "random"] = "genetic"
    """How texts are found: by heredity, or (a control) as the best of as many random ones."""
    batch: int = 200
    """Texts encoded at a time."""

    def __post_init__(self) -> None:
        counts = ("k", "population", "generations", "batch")
        check_counts("ring-a-bell", **{name: getattr(self, name) for name in counts})
        for name in ("mutation", "crossover"):
            if not 0 <= getattr(self, name) <= 1:
                raise ExpungeError(f"ring-a-bell's {name} is {getattr(self, name)}: expected a share, 0 to 1")
        phrases(self.templates, "")
        for pair in self.pairs:
            if pair.count(BAR) != 1 or not all(text.strip() for text in pair.split(BAR)):
                raise ExpungeError(
                    f"ring-a-bell's pair '{pair}' is none: expected 'a text with the concept{BAR}the same without it'"
                )

    @override
    def knowledge(self) -> Knowledge:
        """Pairs of one's own take the place of phrases and the neutral word."""
        if self.pairs:
            return Knowledge(words=self.pairs)
        return Knowledge(phrases=self.templates, words=(self.neutral,) if self.neutral else ())

    @override
    def reads(self, targets: int, prompts: int) -> int:
        """The most texts that are scored, and those of the pairs."""
        pairs = len(self.pairs) or len(self.templates)
        return prompts * self.population * self.generations + 2 * targets * pairs

    @override
    def provoke(self, victim: GrayBox, task: Task, queries: Sequence[Query]) -> Provocation:
        if self.pairs and len(task.targets) > 1:
            raise ExpungeError("ring-a-bell's pairs for several targets: expected pairs for a single one, or none")
        named = {target.name for target in task.targets}
        asked = list(dict.fromkeys((q.label, q.prompt) for q in queries if q.label in named))
        with torch.no_grad():
            directions = {target.name: self.direction(victim, target) for target in task.targets}
            goals = [
                victim.encode([prompt]).embeds[0].float() + self.eta * directions[label or ""]
                for label, prompt in asked
            ]
            found = self._searched(victim, task, asked, torch.stack(goals))
        made = dict(zip(asked, found, strict=True))
        return Provocation(queries=[replace(q, prompt=made[q.label, q.prompt]) for q in queries if q.label in named])

    def texts(self, target: Concept) -> list[tuple[str, str]]:
        """Pairs of a text with the concept and one without."""
        if self.pairs:
            return [(one.strip(), other.strip()) for one, _, other in (pair.partition(BAR) for pair in self.pairs)]
        return list(zip(phrases(self.templates, target.name), phrases(self.templates, self.neutral), strict=True))

    @torch.no_grad()
    def direction(self, victim: GrayBox, target: Concept) -> Float[Tensor, "n d"]:
        """What the text encoder adds where a text has the concept, on average.

        Raises:
            ExpungeError: if it reads the texts of all pairs alike, or a text is too long to be read whole.
        """
        texts = self.texts(target)
        sides = [list(side) for side in zip(*texts, strict=True)]
        for side in sides:
            cut = next((text for text, rest in zip(side, victim.cut(side), strict=True) if rest), None)
            if cut is not None:
                raise ExpungeError(f"ring-a-bell's text '{cut}' is not read to its end: expected a shorter one")
        one, other = (
            torch.cat([victim.encode(some).embeds.float() for some in _split(side, self.batch)]) for side in sides
        )
        mean = (one - other).mean(0)
        if not mean.any():
            raise ExpungeError(
                f"the text encoder reads '{texts[0][0]}' and '{texts[0][1]}' alike, and so all pairs: expected texts with "
                "the concept, and without"
            )
        return mean

    def _searched(
        self, victim: GrayBox, task: Task, asked: Sequence[tuple[str | None, str]], goals: Float[Tensor, "p n d"]
    ) -> list[str]:
        """The best text for each prompt; all are searched side by side."""
        tokens, length = alleles(victim), self._length(victim)
        draws = [task.generator("ring-a-bell", label or "", prompt) for label, prompt in asked]
        first = [genetic.drawn(self.population, length, tokens, draw) for draw in draws]

        def following(which: int, now: Int[Tensor, "n k"], losses: Float[Tensor, "n"]) -> Int[Tensor, "m k"]:
            draw = draws[which]
            if self.search == "random":
                return genetic.drawn(self.population, length, tokens, draw)
            parents = now[genetic.fittest(losses, max(1, self.population // 2))]
            family = torch.cat([parents, genetic.crossed(parents, self.crossover, draw)])[: self.population]
            return genetic.mutated(family, self.mutation, tokens, draw)

        reader = Reader(victim, goals, self.batch)
        return [victim.spell(f.genes[None])[0] for f in genetic.minimised(reader, first, self.generations, following)]

    def _length(self, victim: GrayBox) -> int:
        """Tokens that are searched, between the marks."""
        whole = victim.tokenize([""]).shape[1]
        if self.k > whole:
            raise ExpungeError(f"ring-a-bell's k is {self.k}: expected {whole} or less, which is what the model reads")
        return min(self.k, whole - 2)


def _split(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    return (texts[start : start + size] for start in range(0, len(texts), size))


def alleles(victim: GrayBox) -> Int[Tensor, "v"]:
    """The tokens that are printable text of their own."""
    spelled = victim.spell(torch.arange(victim.vocabulary)[:, None])
    usable = [i for i, text in enumerate(spelled) if text.strip() and text.isprintable() and "\ufffd" not in text]
    return torch.tensor(usable)


@final
class Reader:
    """How far texts, spelled from tokens and read again, are from goals; a text that was just read is not read again."""

    def __init__(self, victim: GrayBox, goals: Float[Tensor, "p n d"], batch: int) -> None:
        """Distances from ``goals``, one for each population, of texts encoded ``batch`` at a time."""
        self._victim, self._goals, self._batch = victim, goals, batch
        self._known: list[dict[str, float]] = [{} for _ in goals]

    def __call__(self, populations: Sequence[Int[Tensor, "_ k"]]) -> list[Float[Tensor, "_"]]:
        """The squared distance of each text of each population from the population's goal."""
        spelled = [self._victim.spell(population) for population in populations]
        told = list(zip(self._known, spelled, strict=True))
        new = [(i, text) for i, (known, texts) in enumerate(told) for text in dict.fromkeys(texts) if text not in known]
        fresh = [{text: known[text] for text in texts if text in known} for known, texts in told]
        for (i, text), distance in zip(new, self._distances(new), strict=True):
            fresh[i][text] = distance
        self._known = fresh  # of one generation: what goes on is among these
        return [torch.tensor([known[t] for t in texts]) for known, texts in zip(fresh, spelled, strict=True)]

    def _distances(self, new: Sequence[tuple[int, str]]) -> Iterator[float]:
        for start in range(0, len(new), self._batch):
            some = new[start : start + self._batch]
            read = self._victim.encode([text for _, text in some]).embeds.float()
            goals = self._goals[torch.tensor([i for i, _ in some], device=self._goals.device)]
            yield from (read - goals).square().sum((1, 2)).tolist()
