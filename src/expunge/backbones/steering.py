"""Edits that are not in the weights, carried into a diffusers pipeline's own loop."""

from collections import deque
from dataclasses import replace
from typing import TYPE_CHECKING, Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from expunge.core.backbone import Conditioning
from expunge.core.edit import Guidance, GuidedStep

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone


@final
class Steering:
    """Carries guidance edits, and the gates of adapters, into a pipeline's own loop, which combines predictions by itself.

    The pipeline computes ``null + scale * (cond - null)``; handing it the guided prediction as both halves makes that the
    guided prediction, whatever the scale. Without guidance (scale 1 or less) the pipeline has one half, and only what it is
    conditioned on can be changed.
    """

    def __init__(self, backbone: "PipelineBackbone", pipe: Any) -> None:
        self.backbone, self.pipe = backbone, pipe
        self.last, self.index = -1.0, 0
        self.state: dict[str, Any] = {}
        self.halves: tuple[Conditioning, Conditioning] | None = None
        self.injected: list[Any] = []
        self.texts: deque[Tensor] = deque(maxlen=8)
        """Token ids of what the text encoder was last asked."""
        self.tokens: Tensor | None = None
        self.asking = False

    def release(self) -> None:
        """Let the layers read the text alone again, and adapters be open."""
        for handle in self.injected:
            handle.remove()
        self.injected = []
        self.backbone._gates = {}

    def read(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember the words that the text encoder reads: the pipeline hands only their vectors on."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor) and not self.asking:
            self.texts.append(ids)

    def words_of(self, embeds: Float[Tensor, "b n d"]) -> Int[Tensor, "b m"] | None:
        """Token ids of the texts that gave these vectors; None if one of them is no text's that was seen."""
        if not self.texts:
            return None
        ids = torch.cat(list(self.texts)).unique(dim=0)
        self.asking = True
        with torch.no_grad():
            known = self.backbone.encode(ids).embeds.to(embeds)
        self.asking = False
        if known.shape[1:] != embeds.shape[1:]:
            return None
        near = (embeds[:, None] - known[None]).flatten(2).norm(dim=-1) / known.flatten(1).norm(dim=-1)
        best = near.min(1)
        return ids[best.indices] if bool((best.values < 0.01).all()) else None

    def before(
        self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change what the two halves are conditioned on."""
        if self.backbone._inside:
            return None
        asked = self.backbone.asked(args, kwargs)
        t = float(asked.t.flatten()[0]) if isinstance(asked.t, Tensor) else float(asked.t)
        if t > self.last or self.index >= getattr(self.pipe, "_num_timesteps", 1):
            self.index, self.state, self.tokens = 0, {}, None  # another generation begins
        self.last = t
        rows = torch.arange(len(asked.cond.embeds), device=asked.cond.embeds.device)
        pair = self._pair(len(rows))
        null, cond = (asked.cond.rows(half) for half in rows.chunk(2)) if pair else (asked.cond, asked.cond)
        if self.index == 0:
            self.tokens = self.words_of(cond.embeds)
        halves = (replace(cond, tokens=self.tokens), null)
        self.asking = True  # texts that a guidance encodes are not the pipeline's
        try:
            for guidance in (e for e in self.backbone.edits if isinstance(e, Guidance)):
                halves = guidance.conditioning(self.backbone, *halves, self.state)
        finally:
            self.asking = False
        self.halves = halves
        both = halves[1].join(halves[0]) if pair else halves[0]
        self.release()
        self.injected = self.backbone._inject(both.prompt)
        gates = self.backbone._opened(halves[0], self.state)
        self.backbone._gates = {n: torch.cat([g, g]) if pair else g for n, g in gates.items()}
        return self.backbone.asking(args, kwargs, both)

    def _pair(self, rows: int) -> bool:
        """Whether the UNet is called on both halves of a guided pair (a call of the UNet by itself is not)."""
        return getattr(self.pipe, "_guidance_scale", 0) > 1 and rows % 2 == 0

    def after(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """Change the combined prediction, for edits that do."""
        if self.backbone._inside:
            return output
        self.release()
        if self.halves is None or output is None:  # called after a failure, too
            return output
        self.index += 1
        combining = [
            e for e in self.backbone.edits if isinstance(e, Guidance) and type(e).combine is not Guidance.combine
        ]
        x = self.backbone.asked(args, kwargs).x
        if not combining or not self._pair(len(x)):
            return output
        predicted = output[0] if isinstance(output, tuple) else output.sample
        e_null, e_cond = predicted.chunk(2)
        scale = float(self.pipe.guidance_scale)
        out = e_null + scale * (e_cond - e_null)
        for guidance in combining:
            step = GuidedStep(
                x=x.chunk(2)[1],
                t=self.last,
                index=self.index - 1,
                cond=self.halves[0],
                null=self.halves[1],
                predicted_cond=e_cond,
                predicted_null=e_null,
                scale=scale,
                state=self.state,
            )
            out = guidance.combine(self.backbone, out, step)
        return (torch.cat([out, out]),) if isinstance(output, tuple) else type(output)(sample=torch.cat([out, out]))
