"""What a text says, by a text classifier of transformers in a folder."""

import hashlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any, final

import torch

from expunge.core.errors import ExpungeError, ExpungeWarning, unknown
from expunge.pretrained import folders, weights

LONGEST = 512
"""Tokens that are read at most; networks that count positions from two on say 514."""


@final
class TextClassifier:
    """A network with labels for texts, such as SFW and NSFW."""

    def __init__(self, path: str) -> None:
        """Open the folder of a transformers model for text classification, with its tokenizer.

        Raises:
            ExpungeError: if it holds none, or one that has no labels to choose from.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        folder, what = Path(path), "a text classifier"
        if not (folder / "config.json").is_file():
            raise ExpungeError(f"'{path}' holds no text classifier: expected a folder with its config.json")
        self.path = path
        self._net = folders.network(AutoModelForSequenceClassification, folder, what)
        self._tokenizer: Any = folders.reader(AutoTokenizer, folder, what)
        config = self._net.config
        if config.problem_type == "regression":
            raise ExpungeError(f"'{path}' gives a number for a text: expected a classifier, which has labels")
        self.labels = [config.id2label[i] for i in range(config.num_labels)]
        self._each = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self._longest = min(
            self._tokenizer.model_max_length, getattr(config, "max_position_embeddings", LONGEST), LONGEST
        )
        self._of = cache(self._probabilities)

    @property
    def identity(self) -> str:
        """Sha256 of the folder's files."""
        told = [f"{f.name} {weights.origin(str(f))}" for f in sorted(Path(self.path).iterdir()) if f.is_file()]
        return hashlib.sha256(" ".join(told).encode()).hexdigest()

    def probability(self, text: str, label: int) -> float:
        """How sure it is of a label: its share of a softmax, or a sigmoid where a text may have none or several of them."""
        return self._of(text)[label]

    def label_id(self, label: str) -> int:
        """Index of a label, in any case.

        Raises:
            ExpungeError: if there is no such label, with those that there are.
        """
        ids = [i for i, known in enumerate(self.labels) if known.lower() == label.lower()]
        if not ids:
            raise unknown(f"label of the text classifier '{self.path}'", label, self.labels)
        return ids[0]

    @torch.no_grad()
    def _probabilities(self, text: str) -> list[float]:
        read = self._tokenizer(text, truncation=True, max_length=self._longest, return_tensors="pt")
        whole = len(self._tokenizer(text, truncation=False, verbose=False)["input_ids"])
        if whole > self._longest:
            lost = f"'{text[:40]}…' has {whole} tokens, of which the text classifier reads {self._longest}"
            warnings.warn(f"{lost}: the rest was not looked at", ExpungeWarning, stacklevel=2)
        logits = self._net(**read).logits[0].float()
        return (logits.sigmoid() if self._each else logits.softmax(-1)).tolist()
