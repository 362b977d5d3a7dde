"""Which of a repository's files hold a component's weights, and what a file is that holds none."""

import re
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from expunge.core.errors import ExpungeError, ExpungeWarning

NON_EMA = "non_ema"
"""The variant that holds a model's last step instead of the average over its steps, which is what was published."""
_VARIANTS = {
    "float32": (None, "fp16", "bf16"),
    "float16": ("fp16", None, "bf16"),
    "bfloat16": (None, "bf16", "fp16"),
}
"""Variants of a component's weights by the precision that it is opened in, the preferred one first."""
_KINDS = (
    (b"GGUF", "a GGUF file, whose weights are quantised: expected the .safetensors file that it was made of"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer in place of the weights: expected the weights (run `git lfs pull` where it was cloned)",
    ),
    (
        b"PK\x03\x04",
        "a PyTorch checkpoint (pickle, which can run code): expected .safetensors (diffusers converts it: "
        '`StableDiffusionPipeline.from_single_file(FILE).save_pretrained("folder")`)',
    ),
    (b"\x89HDF", "an HDF5 file: expected .safetensors"),
    (b"<!doctype", "a web page: expected the .safetensors file (download it again)"),
    (b"<html", "a web page: expected the .safetensors file (download it again)"),
)
"""Files of other kinds, by how they begin, and what to do about them."""
_PICKLE = b"\x80"
"""How a pickle begins that is in no archive; the first byte of a safetensors file's length is often the same."""


class Weights(NamedTuple):
    """The file of a component's weights."""

    name: str
    """Its name; of a component in several files, the name of their index."""
    variant: str | None
    """Which variant of the weights it holds."""
    beside: str = ""
    """Other weights of the same kind and variant, by their file or index, which are not read; mostly there are none."""

    @property
    def safe(self) -> bool:
        """Whether it is in safetensors, and not a pickle."""
        return ".safetensors" in self.name

    def doubts(self, part: str) -> list[str]:
        """What whoever opens a component's folder should know, each to stand after the folder's name."""
        found = []
        if self.variant == NON_EMA:
            found.append(
                f"has no weights but '{self.name}': the model is the last step of its training, not the average over the steps"
            )
        if self.beside:
            library = "transformers" if part.startswith("text_encoder") else "diffusers"
            found.append(
                f"holds weights twice, perhaps of two models: '{self.name}' is read, as {library} does, and "
                f"'{self.beside}' is not"
            )
        return found


# of a folder or a repository ------------------------------------------------------------------------------------------
def chosen(part: str, names: Collection[str], dtype: str) -> Weights | None:
    """The weights of a component, of all the file names in its folder; None if none are there that can be read.

    Safetensors come before pickles, and weights that are no average over training (``non_ema``) last of all. Where weights
    stand in one file and in several, diffusers reads the several and transformers, of text encoders, the one.
    """
    text = part.startswith("text_encoder")
    stems = {"safetensors": "model", "bin": "pytorch_model"} if text else {}
    for variants in (_VARIANTS[dtype], (NON_EMA,)):
        for ending in ("safetensors", "bin"):
            stem = stems.get(ending, "diffusion_pytorch_model")
            for variant in variants:
                dotted = f".{variant}" if variant else ""
                one, several = f"{stem}{dotted}.{ending}", f"{stem}.{ending}.index{dotted}.json"
                there = [name for name in ((one, several) if text else (several, one)) if name in names]
                if there[1:] == [several] and not any(_is_shard(n, Weights(several, variant)) for n in names):
                    there.pop()  # a save in one file leaves the index alone
                if there:
                    return Weights(there[0], variant, *there[1:])
    return None


def wanted(files: Sequence[str], dtype: str) -> list[str]:
    """The files of a hub repository that a model is opened from: settings, tokenizers, and one variant of each weights.

    Raises:
        ExpungeError: if the repository is no diffusers folder.
    """
    if "model_index.json" not in files:
        single = next((f for f in files if f.endswith((".safetensors", ".ckpt")) and "/" not in f), None)
        hint = f" (or download '{single}' and give its path)" if single else ""
        raise ExpungeError(f"no model_index.json in it: expected a diffusers folder{hint}")
    inside: dict[str, set[str]] = {}
    for file in files:
        part, _, name = file.rpartition("/")
        if part and "/" not in part and part != "safety_checker":
            inside.setdefault(part, set()).add(name)
    wanted = ["model_index.json"]
    for part, names in inside.items():
        weights = chosen(part, names, dtype)
        wanted += [f"{part}/{n}" for n in names if n.endswith((".json", ".txt", ".model")) and ".index." not in n]
        if weights is not None:
            wanted += [f"{part}/{n}" for n in names if n == weights.name or _is_shard(n, weights)]
            if weights.beside:  # which is not fetched, so nobody could see it afterwards
                for doubt in weights.doubts(part):
                    warnings.warn(f"'{part}' of the repository {doubt}", ExpungeWarning, stacklevel=2)
    return sorted(set(wanted))


def _is_shard(name: str, weights: Weights) -> bool:
    """Whether a file is one of several that hold the weights; the variant stands before or after their numbers."""
    if not weights.name.endswith(".json"):
        return False
    stem, _, ending = weights.name.split(".index")[0].rpartition(".")
    dotted = re.escape(f".{weights.variant}") if weights.variant else ""
    numbers = r"-\d+-of-\d+"
    return re.fullmatch(f"{stem}({dotted}{numbers}|{numbers}{dotted})\\.{ending}", name) is not None


# of a file ------------------------------------------------------------------------------------------------------------
def check_kind(path: Path, pickle: bool = False) -> None:
    """Refuse a file that is no safetensors file as what it is; ``pickle`` if it should be one.

    Raises:
        ExpungeError: naming what it is and what to do about it.
    """
    what = _kind(path)
    if what is not None and not (pickle and "pickle" in what):
        raise ExpungeError(f"'{path}' is {what}")


def _kind(path: Path) -> str | None:
    """What a file is, if it is of a kind that is known and not safetensors'."""
    try:
        with path.open("rb") as opened:
            head = opened.read(256)
    except OSError as error:
        return f"not to be read ({error.strerror}): expected a .safetensors file"
    if not head:
        return "empty: expected a .safetensors file"
    start = head.lstrip().lower()
    for beginning, what in _KINDS:
        if head.startswith(beginning) or start.startswith(beginning):
            return what
    if path.suffix == ".onnx":
        return "an ONNX graph: expected the .safetensors file of the model that it was made of"
    if head.startswith(_PICKLE) and head[8:9] != b"{":
        return dict(_KINDS)[b"PK\x03\x04"]
    if all(32 <= byte < 127 or byte in b"\r\n\t" for byte in head):
        return f"a text that begins '{head[:40].decode().strip()}': expected a .safetensors file"
    return None
