"""Style alignment: does CLIP see the artist in an image?"""

import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from typing_extensions import override

from expunge.core.catalog import Paper
from expunge.core.errors import ExpungeError
from expunge.core.metric import Measurement, Metric, average, grouped, share
from expunge.core.query import Shot
from expunge.pretrained import clip as pretrained

PHRASES = (
    ", in the style of {}",
    " in the style of {}",
    " inspired by {}'s style",
    " reminiscent of {}'s style",
    " inspired by {}",
    " in {} style",
    " with a {} touch",
    ", by {}",
    " by {}",
    ", {}",
    " {}-inspired",
    " {} inspired",
    " {}'s",
    " {}",
    "{}-inspired",
    "{} inspired",
    "{}'s",
    "{}",
)
"""The phrases of the papers' artist prompts."""


@final
@dataclass(frozen=True, kw_only=True)
class StyleAlignment(Metric):
    """Share of images that CLIP finds nearer to their prompt with the artist than to the same without (``styled_…``).

    KPOP's Table 7; methods.md C6. An image's label is its artist, whom its prompt names. Beside the share stand the mean
    CLIP scores of the three texts: ``both_…`` (the prompt), ``artist_…`` (the label) and ``content_…`` (the prompt without
    the artist); each of targets (``…_erased``) and of retained artists (``…_kept``). The paper compares their means:
    ``above_content_…`` and ``above_artist_…`` are the prompt's less the other text's, image by image.
    Deviations: the paper shows the three scores and says that CLIP can tell styles; the rule for ``styled`` is ours. On the
    testbed the towers are its own: ``…_testbed_…``.
    """

    paper: ClassVar[Paper] = Paper(
        "Hiding and Recovering Knowledge in Text-to-Image Diffusion Models", "Bui et al.", 2024, "2403.12326"
    )
    higher_is_better: ClassVar[bool] = True
    version: ClassVar[int] = 2
    headline: ClassVar[Mapping[str, Sequence[str]]] = {"any": ("styled*",)}
    model: str = "testbed"
    """Whose CLIP: `testbed`, a hub id (openai/clip-vit-base-patch32 or -large-patch14: the sources differ), or a folder."""
    phrases: tuple[str, ...] = PHRASES
    """How prompts name an artist, the first that fits; it is taken out to leave the content. A name with a colon may stand by
    what is before that."""

    def __post_init__(self) -> None:
        bad = [p for p in self.phrases if p.count("{}") != 1]
        if bad or not self.phrases:
            raise ExpungeError(f"style-alignment's phrase '{bad[0] if bad else ''}': expected one {{}} for the artist")

    @override
    def identity(self) -> str:
        return pretrained.identity(self.model)

    @override
    def measure(
        self, shots: Sequence[Shot], targets: Sequence[str], retain: Sequence[str], reference: Sequence[Shot] = ()
    ) -> list[Measurement]:
        clip = pretrained.clip(self.model)
        suffix = "_testbed" if self.model == "testbed" else ""
        labelled = [s for s in shots if s.label is not None]
        numbers: list[Measurement] = []
        for name, some in grouped(labelled, targets, retain).named(suffix).items():
            texts = {
                "both": [s.prompt for s in some],
                "artist": [str(s.label) for s in some],
                "content": [self.content(s.prompt, str(s.label)) for s in some],
            }
            scores = {text: clip.scores(some, words) for text, words in texts.items()}
            styled = [float(a > b) for a, b in zip(scores["both"], scores["content"], strict=True)]
            numbers.append(share(f"styled{name}", some, styled, instrument=clip.instrument))
            for text, s in scores.items():
                numbers.append(average(f"{text}{name}", some, s, clip.instrument, unit="100 cos"))
                if text != "both":
                    above = [whole - part for whole, part in zip(scores["both"], s, strict=True)]
                    numbers.append(average(f"above_{text}{name}", some, above, clip.instrument, unit="points"))
        return numbers

    @override
    def check(self, prompts: Sequence[tuple[str, str | None]]) -> None:
        for prompt, artist in prompts:
            if artist is not None:
                self.content(prompt, artist)

    def content(self, prompt: str, artist: str) -> str:
        """``prompt`` without the words that name ``artist``.

        Raises:
            ExpungeError: if it does not name them, or names nothing else.
        """
        names = dict.fromkeys((artist, artist.partition(":")[0]))
        for name, phrase in itertools.product(names, self.phrases):
            words = re.escape(phrase.replace("{}", name))
            rest = re.sub(rf"{words}(?!\w)", "", prompt, count=1, flags=re.IGNORECASE)
            if rest != prompt and rest.strip(" ,."):
                return rest.strip(" ,")
        raise ExpungeError(f"prompt '{prompt}': expected it to name the artist '{artist}' and something to show")
