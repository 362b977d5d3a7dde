"""Heat maps of words: where in an image the model reads them, before and after an edit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor
from typing_extensions import override

from expunge.core.analysis import Analysis, Findings, Needs, Study, averaged
from expunge.core.backbone import Backbone
from expunge.core.catalog import Catalog, Paper
from expunge.core.eraser import Eraser
from expunge.core.errors import ExpungeError, check_counts, check_positive
from expunge.core.figure import Axis, Figure, Panel, Series
from expunge.core.judge import Judge
from expunge.core.metric import Measurement
from expunge.maths.attention import columns_of, recorded

FRAME = 2
"""Width of the border whose colour is taken for the background's, in pixels."""


class Seen(NamedTuple):
    """Images of one word, and where the word was read in each."""

    pixels: UInt8[Tensor, "b H W 3"]
    merged: Float[Tensor, "b h w"]
    """Mean over layers and heads."""
    heads: Float[Tensor, "b heads h w"]
    """Mean over the layers that have a head of that number."""


@final
@dataclass(frozen=True, kw_only=True)
class Daam(Analysis):
    r"""Where the model reads a word while it draws: heat maps, how dispersed they are, and how much lies on the object.

    .. math:: D_w = \frac{1}{LH} \sum_{\ell, h} \max\Big(0, \mathrm{bicubic}\big(\textstyle\frac1T \sum_t
        A^{(\ell, h)}_t[\cdot, w]\big)\Big)

    with A the attention maps of the half of a guided pair that reads the prompt, averaged over time first; a word of several
    tokens is their mean. ``entropy`` is that of the map made to sum to 1, in percent of a uniform one's; ``mass`` is its share
    on the object, to be compared with ``area``, the object's share of the image, which a uniform map would give. Each is of
    the words that are ``erased`` and of some that are ``kept``; ``change`` is edited minus original on equal seeds. KPOP's
    Fig. 2 says that the erased word's maps disperse and a retained word's do not. Where an edited image no longer shows its
    object, the mask is that of the original's image of the same seed.
    Deviations: a mean over time steps in the place of a sum (the same once normalised); maps are as large as the latents;
    entropy and mass are this project's own measures of what KPOP's figure shows by eye.
    """

    paper: ClassVar[Paper] = Paper(
        "What the DAAM: Interpreting Stable Diffusion Using Cross Attention",
        "Tang et al.",
        2022,
        "2210.04885",
        code="https://github.com/castorini/daam",
    )
    needs: ClassVar[Needs] = "model"
    count: int = 10
    """Images a word."""
    kept: int = 3
    """How many of the retained words are looked at."""
    mid: bool = False
    """Count the middle block's coarse maps in, which DAAM leaves out."""
    foreground: Literal["plain-background", "none"] = "plain-background"
    """How the object is found: as what differs from a plain background, such as the testbed's; or not at all."""
    margin: float = 40.0
    """How far from the background's colour the object begins, in any channel, of 255."""
    judge: str = "testbed"
    """Who says whether an edited image still shows its object."""

    def __post_init__(self) -> None:
        check_counts("daam", count=self.count, kept=self.kept)
        check_positive("daam", margin=self.margin)

    @override
    def images(self, targets: int, retain: int, eraser: Eraser | None) -> int:
        states = 1 if eraser is None else 2
        recovered = targets if eraser is not None and eraser.has_key else 0
        return self.count * (states * (targets + min(retain, self.kept)) + recovered)

    @override
    def findings(self, backbone: Backbone, study: Study) -> Findings:
        if self.foreground != "none" and backbone.kind != "testbed":
            raise ExpungeError(f"objects of {backbone.name} on a plain background: expected foreground none")
        words = {"erased": list(study.targets), "kept": list(study.retain)[: self.kept]}
        seen: dict[str, dict[str, Seen]] = {}
        for state, edits in study.states().items():
            wanted = words["erased"] if state == "recovered" else [*words["erased"], *words["kept"]]
            with backbone.attached(edits):
                seen[state] = {word: self._seen(backbone, study, word) for word in wanted}
        values = {"entropy": {s: {w: dispersion(m.merged) for w, m in by.items()} for s, by in seen.items()}}
        if self.foreground != "none":
            masks = self._masks(seen)
            values["mass"] = {s: {w: mass(m.merged, masks[s][w]) for w, m in seen[s].items()} for s in seen}
            values["area"] = {s: {w: masks[s][w].float().mean((1, 2)) for w in seen[s]} for s in seen}
        measurements = [
            m
            for group, chosen in words.items()
            for measure, by in values.items()
            for m in self._measured(measure, group, chosen, by)
        ]
        figures = {name: _bars(name, words, by, self.count) for name, by in values.items() if name != "area"}
        return Findings(measurements=measurements, figures={**_maps(words, seen), **figures})

    def _seen(self, backbone: Backbone, study: Study, word: str) -> Seen:
        """Images of a word by the model as it stands, and the word's heat maps."""
        columns, parts = columns_of(backbone, study.prompt(word), word), list[Seen]()
        size = tuple(backbone.noise(0).shape[2:])
        chosen = {n: a for n, a in backbone.attentions().items() if self.mid or a.block != "mid"}
        for asked in study.batches(study.queries([word], self.count)):
            with recorded(backbone, len(asked), columns) as recording:
                pixels = backbone.generate(asked).pixels
            maps = recording.maps()
            heats = [heat(maps[name].mean(-1), (size[0], size[1])) for name in chosen]
            most = max(h.shape[1] for h in heats)
            heads = torch.stack(
                [torch.stack([h[:, i] for h in heats if h.shape[1] > i]).mean(0) for i in range(most)], 1
            )
            parts.append(Seen(pixels, torch.cat(heats, 1).mean(1).cpu(), heads.cpu()))
        return Seen(*(torch.cat(part) for part in zip(*parts, strict=True)))

    def _masks(self, seen: Mapping[str, Mapping[str, Seen]]) -> dict[str, dict[str, Bool[Tensor, "b H W"]]]:
        """Where each image has its object: the image itself, or the original's of the same seed where it shows none."""
        judge: Judge = Catalog("judges").open(self.judge)
        masks: dict[str, dict[str, Tensor]] = {}
        for state, by in seen.items():
            masks[state] = {}
            for word, images in by.items():
                known = torch.tensor(judge.label_ids(word))
                shown = torch.isin(judge.scores(images.pixels).argmax(1), known)
                own, first = (object_mask(s[word].pixels, self.margin) for s in (by, seen["original"]))
                masks[state][word] = torch.where(shown[:, None, None], own, first)
        return masks

    def _measured(
        self, measure: str, group: str, words: Sequence[str], by: Mapping[str, Mapping[str, Tensor]]
    ) -> list[Measurement]:
        """Means of the edited model and its differences from the original, or the original's where there is no edit."""
        if not words:
            return []
        last = "edited" if "edited" in by else "original"
        numbers = [averaged(f"{measure}_{group}", _listed(words, by[last]), self.count)]
        if last == "edited":
            change = {w: by["edited"][w] - by["original"][w] for w in words}
            numbers.append(averaged(f"{measure}_{group}_change", _listed(words, change), self.count, "points"))
        if "recovered" in by and group == "erased":
            numbers.append(averaged(f"{measure}_{group}_recovered", _listed(words, by["recovered"]), self.count))
        return numbers


def heat(maps: Float[Tensor, "b heads places"], size: tuple[int, int]) -> Float[Tensor, "b heads h w"]:
    """One layer's maps, enlarged to ``size``.

    Raises:
        ExpungeError: if their places are not those of a coarser grid of the same shape.
    """
    factor = round((size[0] * size[1] / maps.shape[-1]) ** 0.5)
    coarse = (-(-size[0] // factor), -(-size[1] // factor))
    if coarse[0] * coarse[1] != maps.shape[-1]:
        raise ExpungeError(f"an attention map of {maps.shape[-1]} places: expected a coarser grid than {size}")
    return torch.nn.functional.interpolate(maps.unflatten(-1, coarse), size, mode="bicubic").clamp(min=0)


def dispersion(maps: Float[Tensor, "b h w"]) -> Float[Tensor, "b"]:
    """Entropy of each map, made to sum to 1, as a share of a uniform one's: 0 is a single place, 1 is everywhere alike."""
    flat = maps.flatten(1).double()
    shares = flat / flat.sum(1, keepdim=True)
    return (torch.special.entr(shares).sum(1) / torch.tensor(float(flat.shape[1])).log()).float()


def mass(maps: Float[Tensor, "b h w"], mask: Bool[Tensor, "b H W"]) -> Float[Tensor, "b"]:
    """Share of each map that lies on ``mask``, a place of the map counting as far as the mask covers it."""
    cover = torch.nn.functional.interpolate(mask[:, None].float(), tuple(maps.shape[1:]), mode="area")[:, 0]
    return (maps * cover).sum((1, 2)) / maps.sum((1, 2))


def object_mask(pixels: UInt8[Tensor, "b H W 3"], margin: float) -> Bool[Tensor, "b H W"]:
    """What differs from a plain background, whose colour is the median of the image's border, by more than ``margin``."""
    rim = torch.ones(pixels.shape[1:3], dtype=torch.bool)
    rim[FRAME:-FRAME, FRAME:-FRAME] = False
    background = pixels[:, rim].float().median(1).values
    return (pixels.float() - background[:, None, None]).abs().amax(-1) > margin


def _listed(words: Sequence[str], by: Mapping[str, Tensor]) -> list[tuple[str, float]]:
    return [(word, value) for word in words for value in by[word].tolist()]


def _bars(
    measure: str, words: Mapping[str, Sequence[str]], by: Mapping[str, Mapping[str, Tensor]], count: int
) -> Figure:
    """A measure by state, of erased and of retained words."""
    series: list[Series] = []
    for group, chosen in words.items():
        states = [s for s in by if chosen and all(w in by[s] for w in chosen)]
        ends = [averaged(measure, _listed(chosen, by[s]), count).interval for s in states]
        if ends:
            value, low, high = zip(*ends, strict=True)
            series.append(Series(name=group, x=states, y=value, low=low, high=high))
    label = {"entropy": "entropy of the heat map, % of a uniform one's", "mass": "heat on the object, %"}[measure]
    note = (
        f"{count} images a word on equal seeds; 95 % intervals. KPOP's Fig. 2 says: erased words disperse, others stay."
    )
    return Figure(title=f"DAAM: {label.split(',')[0]}", note=note, kind="bars", y=Axis(label), series=series)


def _maps(words: Mapping[str, Sequence[str]], seen: Mapping[str, Mapping[str, Seen]]) -> dict[str, Figure]:
    """The first seed's heat maps of the first word of each group, and the erased word's by head."""
    merged: list[Panel] = []
    heads: list[Panel] = []
    for group, chosen in words.items():
        for state, by in seen.items():
            if chosen and chosen[0] in by:
                one = by[chosen[0]]
                image = one.pixels[0].tolist()
                merged.append(Panel(title=f"{chosen[0]}, {state}", values=_scaled(one.merged[0]), image=image))
                for number, values in enumerate(one.heads[0]) if group == "erased" else ():
                    title = f"{chosen[0]}, {state}, head {number}"
                    heads.append(Panel(title=title, values=_scaled(values), image=image))
    note = (
        "Each map runs from its least (0) to its greatest value (1), over the image that was drawn meanwhile; one seed."
    )
    return {
        "heat": Figure(title="DAAM: where a word is read", note=note, kind="heatmaps", panels=merged),
        "heads": Figure(title="DAAM: where each head reads the erased word", note=note, kind="heatmaps", panels=heads),
    }


def _scaled(values: Float[Tensor, "h w"]) -> list[list[float]]:
    """From 0 to 1."""
    low, high = values.min(), values.max()
    shown = ((values - low) / (high - low).clamp(min=1e-12)).tolist()
    return [[round(v, 3) for v in row] for row in shown]
