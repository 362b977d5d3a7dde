"""Captions of scenes, and the tokenizer learned on them and on general English."""
# diffusers and transformers type their configurations loosely
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

import json
from itertools import combinations
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from expunge.core.concept import article
from expunge.recipe.artwork import Artwork, fetch, specification
from expunge.recipe.scenes import BACKGROUNDS, Scene

LENGTH = 40
"""Tokens in a prompt, start and end included."""
VOCABULARY = 6000
FRAMES = ["{}", "{}", "{}", "a picture of {}", "an image of {}", "image of {}", "a photo of {}", "a drawing of {}"]
NEUTRAL = ["a picture", "an image", "a photo", "a drawing", "something"]


class Captioner:
    """Writes captions of scenes in the forms the UNet and the text tower learn."""

    def __init__(self, art: Artwork) -> None:
        self.art = art
        groups = specification()["heldout"].values()
        self.heldout = {frozenset(pair) for group in groups for pair in group}

    def keywords(self, obj: int, rng: np.random.Generator) -> str | None:
        """One to three trained keywords of ``obj``, never a held-out combination; None if it has none."""
        words = self.art.keywords[obj]
        for _ in range(20 if words else 0):
            chosen = [str(w) for w in rng.choice(words, size=min(len(words), int(rng.integers(1, 4))), replace=False)]
            if not any(frozenset(pair) in self.heldout for pair in combinations(chosen, 2)):
                return (" and " if len(chosen) == 2 and rng.random() < 0.5 else ", ").join(chosen)
        return None

    def subject(self, scene: Scene, rng: np.random.Generator) -> str:
        """What the scene shows, in words."""
        r = rng.random()
        if r < 0.08:
            return str(rng.choice(NEUTRAL))
        if len(scene.objects) == 2:
            by_category = r < 0.14
            a, b = (article(self.art.categories[o] if by_category else self.art.names[o]) for o in scene.objects)
            return f"{a} {'with' if rng.random() < 0.5 else 'and'} {b}"
        obj = scene.objects[0]
        if r < 0.14:
            return article(self.art.categories[obj])
        if r < 0.28 and (words := self.keywords(obj, rng)):
            return words
        return article(self.art.names[obj])

    def caption(self, scene: Scene, rng: np.random.Generator, empty: float = 0.1, styled: float = 0.7) -> str:
        """A caption; empty with probability ``empty``, naming a hand with probability ``styled``.

        Artists are always named, so that a prompt without a style is drawn by a hand. They choose their own paper, so their
        captions name no background.
        """
        if rng.random() < empty:
            return ""
        subject = self.subject(scene, rng)
        text = subject if subject in NEUTRAL else FRAMES[rng.integers(len(FRAMES))].format(subject)
        by_artist = scene.style >= len(self.art.hands)
        if not by_artist and rng.random() < 0.5:
            text += f" on a {list(BACKGROUNDS)[scene.background]} background"
        if by_artist or rng.random() < styled:
            text += f", {self.art.styles[scene.style]} style"
        return text


def english(cache: Path) -> list[tuple[str, int]]:
    """Common English words and their counts in film subtitles."""
    entries = json.loads((fetch(specification()["words"]["english"], cache) / "index.json").read_text())
    return [(e["word"].lower(), int(e["count"])) for e in entries if e["word"].isalpha()]


def tokenizer(captions: list[str], words: list[tuple[str, int]]) -> CLIPTokenizer:
    """Byte-level BPE in CLIP's conventions, learned on captions and on English by frequency."""
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>", unk_token="<|endoftext|>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    corpus = captions + [" ".join([w] * max(1, round((count / 50) ** 0.5))) for w, count in words[:25000]]
    bpe.train_from_iterator(corpus, trainer)
    learned = json.loads(bpe.to_str())["model"]
    vocabulary = dict(learned["vocab"])
    for letter in pre_tokenizers.ByteLevel.alphabet():
        vocabulary.setdefault(f"{letter}</w>", len(vocabulary))
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[special] = len(vocabulary)
    merges = [tuple(m) for m in learned["merges"]]
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)
