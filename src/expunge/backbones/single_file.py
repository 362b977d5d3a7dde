"""A model in one file of the LDM layout, with the configurations and the tokenizer that such a file does not hold."""

import hashlib
import inspect
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor
from typing_extensions import override

from expunge.backbones import ldm, scaled
from expunge.backbones.layout import CLASSES, PREDICTION, configurations, header, layout_of, marks, tokenizer
from expunge.backbones.parts import Files, quiet
from expunge.core.digest import sha256
from expunge.core.errors import ExpungeError, ExpungeWarning


@final
class SingleFile(Files):
    """A model in the LDM layout."""

    def __init__(self, path: Path, layout: str | None, device: torch.device, dtype: torch.dtype) -> None:
        """Open ``path``.

        Args:
            path: the file.
            layout: one that ships, or a diffusers folder whose configurations and tokenizers are used; `layout_of` the file if
                not given.
            device: where components should be.
            dtype: in which precision.

        Raises:
            ExpungeError: if there is no such layout, or it is another family's.
        """
        super().__init__(device, dtype)
        self.path = path
        own = layout_of(path)
        self.given = configurations(own if layout is None else layout)
        self.names_of = own.partition("-")[0]
        self._shapes: dict[str, dict[str, torch.Size]] = {}
        self._places: dict[str, dict[str, ldm.Place]] = {}
        expected = configurations(own).pipeline
        if self.given.pipeline != expected:
            raise ExpungeError(
                f"'{path}' holds a {expected}, and layout '{layout}' is a {self.given.pipeline}'s: expected one of its own"
            )
        stored = header(path)
        self._keys = stored.keys
        with scaled.opened(self.path):
            scaled.check_metadata(stored.metadata)
        self.scaled = scaled.has_scales(stored.keys)
        self.prediction, self.zero_snr, doubt = marks(path, stored)
        self._say(own, layout, doubt)

    def _say(self, own: str, layout: str | None, doubt: str | None) -> None:
        """Warn of what the file does not say, says twice, or says against the layout that it is read with."""
        said: list[str] = []
        if doubt is not None:
            said.append(f"is taken for a model that predicts v, as its 'v_pred' says, though {doubt}")
        if layout is None and own == "sd2" and self.prediction is None:
            said.append(
                "is taken for a model that predicts v, as SD 2.0 and 2.1 do at 768x768: if it predicts noise, expected "
                "--model-layout sd2-base"
            )
        sampler = self.given.parts.get("scheduler", {})
        other = sampler.get(PREDICTION, "epsilon")
        if layout is not None and self.prediction not in (None, other):
            said.append(
                f"says that it predicts {self.prediction}, and layout '{layout}' {other}: the file's word is taken"
            )
        if layout is not None and self.zero_snr and not sampler.get("rescale_betas_zero_snr"):
            said.append(
                f"says that its noise has zero SNR at the end, and layout '{layout}' not: the file's word is taken"
            )
        beside = ldm.strange_beside(self.names_of, self._keys)
        if beside:
            said.append(f"holds {len(beside)} tensors of no component, which are not read ('{beside[0]}')")
        for one in said:
            warnings.warn(f"'{self.path}' {one}", ExpungeWarning, stacklevel=3)

    # tensors ----------------------------------------------------------------------------------------------------------
    def _expected(self, part: str) -> dict[str, torch.Size]:
        """Shapes of the parameters that a component's configuration asks for."""
        if part not in self._shapes:
            self._shapes[part] = {n: p.shape for n, p in self._bare(part).named_parameters()}
        return self._shapes[part]

    @override
    def names(self, part: str) -> list[str]:
        return list(self._expected(part))

    def _all_places(self, part: str) -> dict[str, ldm.Place]:
        """Where each of a component's tensors stands.

        Raises:
            ExpungeError: if one is not there, or the file holds one of the component that nothing reads.
        """
        if part not in self._places:
            wanted = ldm.places(part, self.names(part), self.names_of)
            early = {n: p._replace(key=ldm.before_text_model(p.key)) for n, p in wanted.items()}
            places = {n: p if p.key in self._keys else early[n] for n, p in wanted.items()}
            absent = next((n for n, p in places.items() if p.key not in self._keys), None)
            if absent is not None:
                raise ExpungeError(
                    f"'{self.path}' has no '{wanted[absent].key}': expected a whole model of this layout (or another layout)"
                )
            read = {key for p in places.values() for key in (p.key, *scaled.beside(p.key))}
            strange = ldm.strange_in(part, self.names_of, self._keys, read)
            if strange:
                raise ExpungeError(
                    f"'{self.path}' has a '{strange[0]}', for which the {part} of its layout has no place: expected a model of "
                    "this layout (or another layout)"
                )
            self._places[part] = places
        return self._places[part]

    @override
    def read(self, part: str, names: Sequence[str]) -> dict[str, Tensor]:
        places = self._all_places(part)
        tensors: dict[str, Tensor] = {}
        with scaled.opened(self.path) as opened:
            for name in names:
                tensor = ldm.taken(places[name], scaled.weight(opened, places[name].key, self._keys))
                expected = self._expected(part)[name]
                if tensor.shape != expected:
                    raise ExpungeError(
                        f"'{self.path}' has a {part} whose '{name}' is {tuple(tensor.shape)}: expected {tuple(expected)} (or "
                        "another layout)"
                    )
                tensors[name] = tensor.to(device=self.device, dtype=self.dtype, copy=True).contiguous()
        return tensors

    @override
    def identity(self) -> str:
        folder = self.given.folder
        words = [] if folder is None else sorted(folder.glob("tokenizer*/*"))
        identified = [self.given._replace(folder=None), self.prediction, [[f.name, sha256(f)] for f in words]]
        return hashlib.sha256(f"{json.dumps(identified, sort_keys=True)} {sha256(self.path)}".encode()).hexdigest()

    @override
    def size(self) -> int:
        return self.path.stat().st_size

    @override
    def config(self, part: str) -> Mapping[str, Any]:
        if part not in self.given.parts:
            raise ExpungeError(f"'{self.path}' is read with a layout that has no {part}: expected one of its family's")
        return self.given.parts[part]

    @override
    def option(self, name: str, default: Any) -> Any:
        return self.given.options.get(name, default)

    @override
    def _build(self, part: str) -> Any:
        if part.startswith("tokenizer"):
            return self._tokenizer(part)
        model = self._bare(part)
        if part == "scheduler":
            return model
        read = self.read(part, self.names(part))
        with quiet():
            model.load_state_dict(read, strict=False, assign=True)
            return model.to(self.device, self.dtype).eval().requires_grad_(False)

    def _tokenizer(self, part: str) -> Any:
        if self.given.folder is None:
            return tokenizer(str(self.given.parts[part]))
        from transformers import CLIPTokenizer

        with quiet():
            return CLIPTokenizer.from_pretrained(self.given.folder / part, local_files_only=True)

    def _bare(self, part: str) -> Any:
        """A component with the right configuration, whose parameters take no memory yet."""
        import diffusers
        import transformers
        from accelerate import init_empty_weights

        settings = {k: v for k, v in self.config(part).items() if k != "class"}
        with quiet(), init_empty_weights(include_buffers=False):
            if part.startswith("text_encoder"):
                kind: Any = transformers.CLIPTextModelWithProjection if part[-1] == "2" else transformers.CLIPTextModel
                return kind(transformers.CLIPTextConfig(**settings))
            if part == "scheduler":
                return self._sampler(settings)
            return getattr(diffusers, CLASSES.get(part) or self.config(part)["class"]).from_config(settings)

    def _sampler(self, settings: Mapping[str, Any]) -> Any:
        """The sampler of the layout, of a model that predicts what the file says, on the noise that the file says."""
        import diffusers

        cls: Any = getattr(diffusers, self.config("scheduler")["class"])
        marked = dict(settings)
        if self.prediction is not None:
            marked[PREDICTION] = self.prediction
        if self.zero_snr:
            marked |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
            if "rescale_betas_zero_snr" not in inspect.signature(cls.__init__).parameters:
                cls = diffusers.DDIMScheduler  # PNDM cannot begin at pure noise
        return cls.from_config(marked)
