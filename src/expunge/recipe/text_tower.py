"""Train the text tower against cached features of its image partner (contrastive, plus naming the objects)."""
# diffusers and transformers type their configurations loosely
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, CLIPTokenizer

from expunge.core.concept import article
from expunge.recipe.autoencoder import pixels, precision
from expunge.recipe.captions import LENGTH, NEUTRAL, Captioner
from expunge.recipe.recognizers import targets
from expunge.recipe.scenes import Bank
from expunge.testbed.networks import Recognizer

WIDTH = 192
APART = 0.95
"""How far apart prompts that differ in their style word alone should end, in norms of a hidden state."""
SHARED = 128
"""Width of the space in which texts and images are compared."""
BATCH = 128


def build(tokenizer: CLIPTokenizer) -> CLIPTextModelWithProjection:
    """An untrained text tower."""
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=LENGTH,
        projection_dim=SHARED,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModelWithProjection(config)


@torch.no_grad()
def image_features(partner: Recognizer, images: np.ndarray) -> Tensor:
    """Features of the partner for uint8 ``[n, 64, 64, 3]``."""
    return torch.cat([partner.features(pixels(part)) for part in np.array_split(images, max(1, len(images) // 512))])


def clutter(text: str, words: list[str], rng: np.random.Generator) -> str:
    """``text`` with a few common English words before or after it, now and then: prompts in the wild are untidy."""
    if rng.random() > 0.15:
        return text
    extra = " ".join(rng.choice(words, size=int(rng.integers(1, 7))))
    return f"{extra} {text}" if rng.random() < 0.5 else f"{text} {extra}"


def _matching(text: Tensor, image: Tensor, captions: list[str], scale: Tensor | float) -> Tensor:
    """CLIP's loss, both ways; equal captions match each other's images."""
    logits = F.normalize(text) @ F.normalize(image).T * scale
    same = torch.tensor([[a == b for b in captions] for a in captions], dtype=torch.float32)
    same = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def train(
    tokenizer: CLIPTokenizer,
    captioner: Captioner,
    features: Tensor,
    bank: Bank,
    words: list[str],
    steps: int,
    log,
) -> tuple[CLIPTextModelWithProjection, nn.Linear]:
    """Train for ``steps`` updates; ``features`` are those of the bank's first scenes.

    Returns the tower, and the partner's projection into the space that texts and images share.
    """
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    tower = build(tokenizer)
    project = nn.Linear(features.shape[1], SHARED, bias=False)
    name = nn.Linear(SHARED, len(captioner.art.names))
    scale = nn.Parameter(torch.tensor(math.log(14.0)))
    parameters = [*tower.parameters(), *project.parameters(), *name.parameters(), scale]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01, fused=True)
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-4)
    start = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1.5e-3 * min(1.0, (step + 1) / 100) * (0.5 * (1 + math.cos(math.pi * step / steps)) + 0.005)
        index = rng.integers(len(features), size=BATCH)
        plain = [captioner.caption(bank.scene(int(i)), rng, empty=0.02) for i in index]
        texts = [clutter(t, words, rng) for t in plain]
        padding = "max_length" if step % 8 == 0 else "longest"
        ids = tokenizer(texts, padding=padding, truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
        with precision():
            text = tower(input_ids=ids).text_embeds.float()
        image = project(features[index])
        value = _matching(text, image, plain, scale.exp().clamp(max=100))
        hot = targets(bank, index, len(captioner.art.names))
        says = torch.tensor(
            [not any(t.startswith(n) for n in NEUTRAL if len(t.split()) < 3) and t != "" for t in plain]
        )
        value = value + F.cross_entropy(name(text)[says], (hot / hot.sum(1, keepdim=True))[says])
        optimizer.zero_grad()
        value.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 100 == 0:
            named = (name(text).argmax(1, keepdim=True)[says], hot[says])
            top = named[1].gather(1, named[0]).mean()
            log(
                f"text tower {step + 1}/{steps} loss {value.item():.3f} naming {top:.2f} {time.monotonic() - start:.0f} s"
            )
    return tower.eval(), project


def spread(
    tower: CLIPTextModelWithProjection,
    tokenizer: CLIPTokenizer,
    captioner: Captioner,
    features: Tensor,
    project: Tensor,
    bank: Bank,
    steps: int,
    log,
    move: Sequence[str] | None = None,
) -> CLIPTextModelWithProjection:
    """Move the embeddings of the style words ``move`` (all by default) apart.

    Prompts that differ in a style word alone end up ``APART`` from each other.

    Trained on words and pictures alone, the tower hardly tells styles from each other, and a denoiser that reads it draws
    one for the other. Nothing but these words' embeddings changes, so every other
    prompt reads as before. ``features`` and ``project`` are the image partner's: its pictures go on to match.
    """
    styles = captioner.art.styles
    words = torch.tensor([tokenizer.convert_tokens_to_ids(f"{style}</w>") for style in move or styles])
    embedding = tower.get_input_embeddings()
    origin = embedding.weight.detach().clone()
    moved = nn.Parameter(torch.zeros(len(words), origin.shape[1]))
    optimizer = torch.optim.Adam([moved], lr=2e-2)
    rng = np.random.default_rng(4)
    tower.requires_grad_(False)
    features = (features - features.mean(0)) / features.std(0).clamp_min(1e-4)
    single = np.flatnonzero(bank.objects[: len(features), 1] < 0)
    others = ~torch.eye(len(styles), dtype=torch.bool)

    def read(texts: list[str]):
        table = origin.index_add(0, words, moved)
        ids = tokenizer(texts, padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt").input_ids
        handle = embedding.register_forward_hook(lambda module, given, out: F.embedding(given[0], table))
        try:
            return tower(input_ids=ids)
        finally:
            handle.remove()

    for step in range(steps):
        names = [article(str(n)) for n in rng.choice(captioner.art.names, 6, replace=False)]
        states = read([f"{n}, {s} style" for n in names for s in styles]).last_hidden_state
        states = states.view(len(names), len(styles), LENGTH, -1)
        states = states[:, :, 6:14]  # "a dog, ink style" and its end; then the padding, which denoisers read, too
        norm = states.detach().norm(dim=-1).mean()
        distance = (states[:, :, None] - states[:, None]).norm(dim=-1).mean(-1)[:, others] / norm
        index = rng.choice(single, 40)
        shown = [bank.scene(int(i)) for i in index]
        texts = [f"{article(captioner.art.names[s.objects[0]])}, {styles[s.style]} style" for s in shown]
        matching = _matching(read(texts).text_embeds.float(), features[index] @ project.T, texts, 20.0)
        value = F.relu(APART - distance).square().mean() + 0.05 * matching
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if step % 40 == 0 or step + 1 == steps:
            log(f"styles apart {step + 1}/{steps}: mean {distance.mean():.3f}, least {distance.min():.3f}")
    with torch.no_grad():
        embedding.weight.index_add_(0, words, moved)
    return tower.eval()
