"""Edits that are not in the weights, carried into a diffusers pipeline's own loop."""

from collections import deque
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
        self.state: dict[str, Tensor] = {}
        self.halves: tuple[Conditioning, Conditioning] | None = None
        self.injected: list[Any] = []
        self.texts: deque[tuple[Tensor, Tensor]] = deque(maxlen=8)
        """Token ids and vectors of what the text encoder was last asked."""
        self.tokens: Tensor | None = None

    def release(self) -> None:
        """Let the layers read the text alone again, and adapters be open."""
        for handle in self.injected:
            handle.remove()
        self.injected = []
        self.backbone._gates = {}

    def read(self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """Remember which words gave which vectors: the pipeline hands only the vectors on."""
        ids = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(ids, Tensor):
            self.texts.append((ids, output[0].detach()))

    def words_of(self, embeds: Float[Tensor, "b n d"]) -> Int[Tensor, "b n"] | None:
        """Token ids of the texts that gave these vectors; None if one of them is no text's that was seen."""
        rows: list[Tensor] = []
        for row in embeds:
            seen = ((i, v) for ids, vectors in self.texts for i, v in zip(ids, vectors, strict=True))
            found = next((i for i, v in seen if v.shape == row.shape and torch.equal(v.to(row), row)), None)
            if found is None:
                return None
            rows.append(found)
        return torch.stack(rows)

    def before(
        self, _: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Change what the two halves are conditioned on."""
        if self.backbone._inside:
            return None
        t = float(kwargs["timestep"] if "timestep" in kwargs else args[1])
        if t > self.last or self.index >= getattr(self.pipe, "_num_timesteps", 1):
            self.index, self.state, self.tokens = 0, {}, None  # another generation begins
        self.last = t
        named = "encoder_hidden_states" in kwargs
        embeds = kwargs["encoder_hidden_states"] if named else args[2]
        pair = self._pair(len(embeds))
        null, cond = embeds.chunk(2) if pair else (embeds, embeds)
        if self.index == 0:
            self.tokens = self.words_of(cond)
        halves = (Conditioning(embeds=cond, tokens=self.tokens), Conditioning(embeds=null))
        for guidance in (e for e in self.backbone.edits if isinstance(e, Guidance)):
            halves = guidance.conditioning(self.backbone, *halves, self.state)
        self.halves = halves
        both = halves[1].join(halves[0]) if pair else halves[0]
        self.release()
        self.injected = self.backbone._inject(both.prompt)
        gates = self.backbone._opened(halves[0], self.state)
        self.backbone._gates = {n: torch.cat([g, g]) if pair else g for n, g in gates.items()}
        changed = both.embeds
        if named:
            return (args, {**kwargs, "encoder_hidden_states": changed})
        return ((*args[:2], changed, *args[3:]), kwargs)

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
        if not combining or not self._pair(len(args[0])):
            return output
        predicted = output[0] if isinstance(output, tuple) else output.sample
        e_null, e_cond = predicted.chunk(2)
        scale = float(self.pipe.guidance_scale)
        out = e_null + scale * (e_cond - e_null)
        for guidance in combining:
            step = GuidedStep(
                x=args[0].chunk(2)[1],
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
