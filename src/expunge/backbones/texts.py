"""Texts as a pipeline's tokenizers and text encoders read them: CLIP's, or T5 where that reads the tokens."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from expunge.backbones import held

if TYPE_CHECKING:
    from expunge.backbones.pipeline import PipelineBackbone


class Depth(NamedTuple):
    """How far a family reads one of its CLIP text encoders."""

    last: int
    """The layer that gives the text's vectors: on SDXL and SD3 the last but one."""
    end: int
    """The first layer of which nothing is read; none where a pooled vector follows the encoder's last."""


TEXT_GROUPS: dict[str, Callable[[str, Depth], bool]] = {
    "text-encoder": lambda n, read: True,
    "text-layers": lambda n, read: ".layers." in n,
    "text-embedding": lambda n, read: n.endswith("token_embedding.weight"),
    "text-mlp": lambda n, read: ".mlp." in n,
    "text-attn": lambda n, read: ".self_attn." in n,
    "text-last": lambda n, read: f".layers.{read.last}." in n,
    "text-mlp-last-attn": lambda n, read: (
        (".mlp." in n and f".layers.{read.end}." not in n) or f".layers.{read.last}.self_attn." in n
    ),
}
"""Parameters of CLIP text encoders, by their name and how far they are read."""
LAST_LAYER: Mapping[str, int] = {"text-last": 1, "text-mlp-last-attn": 1, "last": 1, "mlp-last-attn": 1}
"""`Backbone.redefined` of families that read no text's vectors from the last layer: groups, and few-shot's names for them."""


class ReadTwice(NamedTuple):
    """What the two CLIP text encoders of a family answer."""

    ids: Int[Tensor, "b n"]
    """The first tokenizer's."""
    first: Any
    second: Any


@final
class Texts:
    """The tokenizers and text encoders of a backbone, by its components."""

    def __init__(self, backbone: "PipelineBackbone") -> None:
        """Texts of ``backbone``, whose components are built when they are first used."""
        self.backbone = backbone
        self.asking = False
        """Whether the text encoders are asked by us: not by a user's pipeline."""
        self.clip_skip: int | None = None
        """Last layers of the text encoders that are left out, as a call asked for; negative prompts are read by all."""

    # tokens -----------------------------------------------------------------------------------------------------------
    @property
    def towers(self) -> tuple[str, ...]:
        """The text encoders that read the tokens of `Backbone.tokenize`."""
        backbone = self.backbone
        return backbone.clip_towers if backbone.reader in backbone.clip_towers else (backbone.reader,)

    def tokenizer(self, tower: str = "") -> Any:
        """The tokenizer of a text encoder; of the one that reads `Backbone.tokenize`'s tokens if not given."""
        return self.backbone.component((tower or self.backbone.reader).replace("text_encoder", "tokenizer"))

    def ids(self, prompts: Sequence[str], tower: str = "") -> Int[Tensor, "b n"]:
        """Token ids as a text encoder reads them; see `tokenizer` for which."""
        tokenizer = self.tokenizer(tower)
        length = self._length(tokenizer, tower or self.backbone.reader)
        encoded = tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt"
        )
        return encoded.input_ids.to(self.backbone.device)

    def _length(self, tokenizer: Any, tower: str) -> int:
        """Tokens that a text encoder reads."""
        places = getattr(self.backbone.component(tower).config, "max_position_embeddings", None)
        return min(tokenizer.model_max_length, self.backbone.prompt_length if places is None else places)

    def cut(self, prompts: Sequence[str]) -> list[str]:
        """What is not read of each prompt; see `Backbone.cut`."""
        tokenizer = self.tokenizer()
        length = self._length(tokenizer, self.backbone.reader)
        whole = tokenizer(list(prompts), truncation=False, verbose=False).input_ids if prompts else []
        return ["" if len(row) <= length else tokenizer.decode(row[length - 1 : -1]) for row in whole]

    def end(self, ids: Int[Tensor, "b n"]) -> Int[Tensor, "b"]:
        """Position of each prompt's end token."""
        return (ids == self.tokenizer().eos_token_id).int().argmax(-1)

    def spell(self, ids: Int[Tensor, "b n"]) -> list[str]:
        """The text of each row of ids; see `Backbone.spell`."""
        texts = self.tokenizer().batch_decode(ids.tolist(), skip_special_tokens=True)
        return [text.strip() for text in texts]

    def spellable(self) -> Int[Tensor, "v"]:
        """The tokens that every tokenizer reads again as themselves; see `Backbone.spellable`."""
        tokenizers = [self.tokenizer(tower) for tower in self.towers]
        if any(tokenizer is None for tokenizer in tokenizers):
            return torch.zeros(0, dtype=torch.long, device=self.backbone.device)
        ids = torch.arange(min(self.table(tower).num_embeddings for tower in self.towers))
        words = self.spell(ids[:, None])
        again = [tokenizer(words, add_special_tokens=False).input_ids for tokenizer in tokenizers]
        kept = [i for i, *read in zip(ids.tolist(), *again, strict=True) if all(one == [i] for one in read)]
        return torch.tensor(kept, dtype=torch.long, device=self.backbone.device)

    def embed(self, ids: Tensor) -> Float[Tensor, "b n d"]:
        """Token embeddings, those of all towers side by side; see `Backbone.embed`."""
        tables = [self.table(tower) for tower in self.towers]
        soft = ids.is_floating_point()
        return torch.cat([ids.to(t.weight.dtype) @ t.weight if soft else t(ids) for t in tables], -1)

    def table(self, tower: str) -> Any:
        """The token embeddings of a text encoder."""
        return self.backbone.component(tower).get_input_embeddings()

    # reading ----------------------------------------------------------------------------------------------------------
    def read(
        self,
        tower: str,
        ids: Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None,
        at: Bool[Tensor, "b n"] | None,
    ) -> Any:
        """What a text encoder answers, with all its hidden states; ``embeddings`` take the place of the ids' own."""
        model = self.backbone.component(tower)
        handle = None
        if embeddings is not None:

            def exchanged(_: Any, args: Any, own: Tensor) -> Tensor:
                return embeddings if at is None else torch.where(at[..., None], embeddings.to(own), own)

            handle = _entrance(model).register_forward_hook(exchanged)
        before, self.asking = self.asking, True
        try:
            with held.eager(model):
                return model(input_ids=ids, output_hidden_states=True)
        finally:
            self.asking = before
            if handle is not None:
                handle.remove()

    def read_twice(
        self,
        prompts: Sequence[str] | Int[Tensor, "b n"],
        embeddings: Float[Tensor, "b n d"] | None,
        at: Bool[Tensor, "b n"] | None,
    ) -> ReadTwice:
        """The first tokenizer's ids, and what both text encoders answer, of a family that has two.

        The second tokenizer pads with a word of its own, which it reads as padding in a text, too; ids that are given instead
        of prompts are the first one's, and only padded otherwise. So are ``embeddings``, past the end of their text.
        """
        if isinstance(prompts, Tensor):
            ids = prompts
            second = torch.where(self._past(ids), self.backbone.component("tokenizer_2").pad_token_id, ids)
        else:
            ids, second = self.ids(prompts), self.ids(prompts, "text_encoder_2")
        one, two = None, None
        if embeddings is not None:
            width = self.table("text_encoder").weight.shape[1]
            one, two = embeddings.split([width, embeddings.shape[-1] - width], -1)
            padding = self.table("text_encoder_2")(second)
            two = torch.where(self._past(ids)[..., None], padding.to(two), two)
        first = self.read("text_encoder", ids, one, at)
        return ReadTwice(ids, first, self.read("text_encoder_2", second, two, at))

    def _past(self, ids: Int[Tensor, "b n"]) -> Bool[Tensor, "b n"]:
        """What stands after the end of each text."""
        return torch.arange(ids.shape[1], device=ids.device)[None] > self.end(ids)[:, None]

    @contextmanager
    def skipping(self, layers: int | None) -> Iterator[None]:
        """Read texts without the last ``layers`` of the text encoders, as ``clip_skip`` of the pipelines does."""
        self.clip_skip = layers
        try:
            yield
        finally:
            self.clip_skip = None

    # anatomy ----------------------------------------------------------------------------------------------------------
    def group(self, name: str) -> list[str]:
        """Names of the parameters in a group of the text encoders, one of `TEXT_GROUPS`.

        The last layer is the last that a text's vectors come through. What only a pooled vector follows is no part of it.
        """
        names: list[str] = []
        for tower in self.backbone.clip_towers:
            model = self.backbone.component(tower)
            layers = model.config.num_hidden_layers
            last = layers + self.backbone.text_state
            pooled = hasattr(model, "text_projection")  # which the last layer's answer goes through
            read = Depth(last, layers if pooled else last + 1)
            names += [f"{tower}.{n}" for n in held.parameters(model) if TEXT_GROUPS[name](n, read)]
        return names


def _entrance(model: Any) -> torch.nn.Module:
    """The module of token embeddings that a text encoder calls: T5's has a second one with the same tensor, uncalled."""
    return getattr(getattr(model, "encoder", None), "embed_tokens", None) or model.get_input_embeddings()


def known_ids(ids: Int[Tensor, "b n"], embeddings: Tensor | None, at: Tensor | None) -> Int[Tensor, "b n"] | None:
    """Token ids where they say what was read: all, those that were not exchanged (-1 for the others), or none."""
    if embeddings is None:
        return ids
    return None if at is None else ids.masked_fill(at, -1)
