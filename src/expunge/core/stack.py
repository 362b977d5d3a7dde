"""The edits that a model carries: an ordered stack over the base's own values of what they touch."""

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast, final

import torch
from torch import Tensor

from expunge.core.adapter import Adapter, Gate, LowRank, as_layers, low_rank
from expunge.core.attention import check_reads_text
from expunge.core.edit import Edit, Weights, fingerprint_as, fingerprints, strengths, weights_of
from expunge.core.errors import ExpungeError
from expunge.core.guidance import Guidance, attends, guidances

if TYPE_CHECKING:
    from expunge.core.backbone import Backbone

ROUNDING = 4
"""Units in the last place (of a number and the mean one) that somebody's change may leave when it is taken back again."""


@final
class Stack:
    """Edits, oldest first, and how they are written into a model and taken out of it again.

    Everything is checked before anything is written, and an edit is on the stack only after it is in the model.
    """

    def __init__(self, backbone: "Backbone") -> None:
        """An empty stack of ``backbone``, whose tensors it writes."""
        self.backbone = backbone
        self.entries: list[tuple[Edit, float]] = []
        self.base: dict[str, Tensor] = {}
        """The base's own values of the tensors that attached edits replace."""
        self.beside: dict[str, list[Any]] = {}
        """Handles of the layers that each attached adapter stands beside."""

    @property
    def edits(self) -> list[Edit]:
        """The attached edits, oldest first."""
        return [edit for edit, _ in self.entries]

    # coming and going -------------------------------------------------------------------------------------------------
    def attach(self, edit: Edit, strength: float, any_base: bool) -> None:
        """Put an edit on top; see `Backbone.attach`."""
        self._check_place(edit, any_base)
        strengths([strength], [edit])  # which refuses one that scales nothing
        self._check_names(edit)
        if attends(edit):
            check_reads_text(self.backbone)
        if isinstance(edit, Guidance):
            edit.check(self.backbone)
        self.backbone.check_carries(edit, coming=True)
        weights = weights_of(edit)
        if weights is not None:
            self._check_base(edit, weights, any_base)
        elif isinstance(edit, Adapter):
            self._check_layers(edit, any_base)
        self._change(edit, [*self.entries, (edit, strength)])

    def detach(self, edit: Edit) -> None:
        """Take an edit off, wherever it stands; see `Backbone.detach`."""
        if not any(e.id == edit.id for e in self.edits):
            raise ExpungeError(
                f"edit {edit.id} is not attached: expected one of {[e.id for e in self.edits] or 'none'}"
            )
        needing = [e.id for e in self.edits if edit.id in e.requires]
        if needing:
            raise ExpungeError(f"edit {edit.id} is needed by edit {needing[0]}: expected that one to be detached first")
        self.backbone.check_carries(edit, coming=False)
        self._change(edit, [(e, s) for e, s in self.entries if e.id != edit.id])

    def _change(self, edit: Edit, entries: list[tuple[Edit, float]]) -> None:
        """Make the model what ``entries`` say, which differ from today's by ``edit``; as it was if that fails."""
        before, weights = self.entries, weights_of(edit)
        if weights is not None:
            self._rewrite(list(weights.replaced), entries)
        self.entries = entries
        if weights is edit:
            return
        try:
            self._hook(edit)
            self.backbone.steering_changed()
        except BaseException:
            if weights is not None:
                self._rewrite(list(weights.replaced), before)
            self.entries = before
            self._hook(edit)
            self.backbone.steering_changed()
            raise

    @contextmanager
    def bare(self) -> Iterator[None]:
        """The model without its edits; see `Backbone.bare`."""
        with ExitStack() as back:
            for edit, strength in reversed(self.entries):
                self.detach(edit)
                back.callback(self.attach, edit, strength=strength, any_base=True)
            yield

    @contextmanager
    def attached(self, edits: Sequence[Edit], strength: float | Sequence[float], any_base: bool) -> Iterator[None]:
        """Edits attached inside; see `Backbone.attached`."""
        each = strengths(strength, edits)
        with ExitStack() as off:  # which takes off all that it can, whatever goes wrong with one
            for edit, one in zip(edits, each, strict=True):
                self.attach(edit, strength=one, any_base=any_base)
                off.callback(self.detach, edit)
            yield

    # making -----------------------------------------------------------------------------------------------------------
    def edit_of(self, changed: Mapping[str, Tensor]) -> Weights:
        """The edit that turns the model as it stands into one with the tensors ``changed``; see `Backbone.edit_of`."""
        base = self.originals(list(changed))
        now = {n: self.composed(n, base[n]) for n in changed}
        on_base = {
            n: changed[n].to(base[n])
            if now[n] is base[n]
            else (base[n].float() + changed[n].float() - now[n].float()).to(base[n])
            for n in changed
        }
        return Weights(on_base, base_sha256=fingerprints(base), requires=tuple(e.id for e in self.edits))

    def adapter_of(self, factors: Mapping[str, Tensor], scale: float, gate: Gate | None) -> Adapter:
        """The adapter of this base with ``factors``, on the attached edits; see `Backbone.adapter_of`."""
        base = self.originals([f"{layer}.weight" for layer in as_layers(factors)])
        requires = tuple(e.id for e in self.edits)
        return Adapter(factors, scale=scale, gate=gate, base_sha256=fingerprints(base), requires=requires)

    # tensors ----------------------------------------------------------------------------------------------------------
    def composition(
        self, edits: Sequence[Edit], strength: float | Sequence[float], any_base: bool
    ) -> dict[str, Tensor]:
        """The tensors that edits of weights would leave, one on the other, on the bare base; no part of the model is built.

        Raises:
            ExpungeError: if one is of another kind or another base, or was made on top of one that is not before it.
        """
        entries = list(zip(edits, strengths(strength, edits), strict=True))
        replaced: list[str] = []
        for number, edit in enumerate(edits):
            before = {e.id for e in edits[:number]}
            if not isinstance(edit, Weights):
                raise ExpungeError(f"edit {edit.id} is of kind {edit.kind}: expected edits of weights")
            if edit.id in before or not before.issuperset(edit.requires):
                raise ExpungeError(
                    f"edit {edit.id} stands there twice, or without those that it was made on: expected each once, in order"
                )
            self._check_names(edit)
            self._check_base(edit, edit, any_base)
            replaced += edit.replaced
        base = self.originals(list(dict.fromkeys(replaced)))
        return {name: self.composed(name, tensor, entries) for name, tensor in base.items()}

    def originals(self, names: list[str]) -> dict[str, Tensor]:
        """The base's own values of tensors."""
        fresh = [n for n in names if n not in self.base]
        read = self.backbone.stored(fresh) if fresh else {}
        return {n: self.base[n] if n in self.base else read[n] for n in names}

    def composed(self, name: str, base: Tensor, entries: list[tuple[Edit, float]] | None = None) -> Tensor:
        """A tensor as the edits (those attached, or ``entries``) leave it.

        One edit at strength 1 gives its own tensor, bit for bit; otherwise the differences to the base are added in float32.
        """
        stack = self.entries if entries is None else entries
        found = [(weights_of(e), s) for e, s in stack]
        touching = [(w.replaced[name], s) for w, s in found if w is not None and name in w.replaced]
        if not touching:
            return base
        if len(touching) == 1 and touching[0][1] == 1.0:
            return touching[0][0].to(base)
        total = base.float()
        for replaced, strength in touching:
            total = total + strength * (replaced.to(base.device).float() - base.float())
        return total.to(base.dtype)

    def _rewrite(self, names: list[str], entries: list[tuple[Edit, float]]) -> None:
        """Write what ``entries`` make of tensors, after a look at whether each still holds what was written last."""
        base = {n: t if n in self.base else t.detach().clone() for n, t in self.originals(names).items()}
        targets: dict[str, Tensor] = {}
        precisions: dict[str, torch.dtype] = {}
        for name in names:
            module, key = self.backbone.parameter(name)
            target = module._parameters[key]
            if target is None:
                raise ExpungeError(f"parameter '{name}' of {self.backbone.name} is not loaded")
            targets[name] = target
            precisions[name] = self._precision(name, target, self.composed(name, base[name]))
        written: list[str] = []
        try:
            with torch.no_grad():
                for name in names:
                    written.append(name)
                    targets[name].copy_(self.composed(name, base[name], entries).to(precisions[name]))
                self.backbone.written(names)
        except BaseException:
            with torch.no_grad():
                for name in written:
                    targets[name].copy_(self.composed(name, base[name]).to(precisions[name]))
                self.backbone.written(written)
            raise
        still = {n for e, _ in entries if (w := weights_of(e)) is not None for n in w.replaced}
        self.base = {n: t for n, t in {**self.base, **base}.items() if n in still}

    def _precision(self, name: str, held: Tensor, expected: Tensor) -> torch.dtype:
        """The precision through which ``held`` is ``expected``: a model may have been cast since, and back.

        Raises:
            ExpungeError: if it is something else, which somebody wrote since.
        """
        for dtype in dict.fromkeys((held.dtype, torch.float16, torch.bfloat16)):
            if torch.equal(held, expected.to(dtype).to(held)):
                return dtype
        if held.dtype == torch.float32:  # in a half precision a small LoRA is no larger than rounding
            size = expected.to(held.device).float().abs()
            off = (held - expected.to(held)).abs()
            if bool((off <= ROUNDING * torch.finfo(held.dtype).eps * (size + size.mean())).all()):
                return held.dtype
        raise ExpungeError(
            f"'{name}' of {self.backbone.name} was changed while edits were attached (a LoRA was fused, or weights were "
            "loaded): expected it as they left it (unfuse the LoRA first, or load the model anew)"
        )

    # adapters ---------------------------------------------------------------------------------------------------------
    def put_beside(self, layers: Mapping[str, LowRank], scale: float, gated_by: str | None) -> list[Any]:
        """Hooks that add low-rank changes; ``gated_by`` is the id of the adapter whose gate they heed."""

        def added(layer: torch.nn.Module, args: tuple[Any, ...], output: Tensor, part: LowRank) -> Tensor:
            evaluation = self.backbone.evaluation
            gate = None if gated_by is None or evaluation is None else evaluation.gates.get(gated_by)
            return output + scale * low_rank(layer, args[0], part, gate)

        hook = added if gated_by is None else torch.compiler.disable(added)  # a gate is another at every call
        handles: list[Any] = []
        for name, part in layers.items():
            layer = self.backbone.parameter(f"{name}.weight")[0]
            near = part.on(cast("Tensor", layer.weight).device)  # once, and not at every evaluation
            handles.append(layer.register_forward_hook(partial(hook, part=near)))
        self.backbone.attention.renew()
        return handles

    def _hook(self, edit: Edit) -> None:
        """Stand an adapter beside its layers, or take it away."""
        if not isinstance(edit, Adapter):
            return
        for handle in self.beside.pop(edit.id, []):
            handle.remove()
        strength = next((s for e, s in self.entries if e.id == edit.id), None)
        if strength is not None:
            gated_by = None if edit.gate is None else edit.id
            self.beside[edit.id] = self.put_beside(edit.layers, edit.scale * strength, gated_by)

    # what fits --------------------------------------------------------------------------------------------------------
    def _check_place(self, edit: Edit, any_base: bool) -> None:
        """Refuse an edit that is attached already, or without those that it was made on."""
        attached = {e.id for e in self.edits}
        if edit.id in attached:
            raise ExpungeError(f"edit {edit.id} is attached already: expected each edit once")
        missing = [r for r in edit.requires if r not in attached]
        if missing and not (any_base and isinstance(edit, Guidance) and edit.weights is None):
            raise ExpungeError(
                f"edit {edit.id} was made on top of edit {missing[0]}: expected that one to be attached first"
            )
        if isinstance(edit, Guidance) and edit.alone and any(type(e) is type(edit) for e in self.edits):
            raise ExpungeError(
                f"a {edit.fields()['eraser']} edit is attached already: expected one that names all targets"
            )
        if isinstance(edit, Guidance) and edit.takes_null:
            own = next((e for e in guidances(self.edits) if e.takes_null and type(e) is not type(edit)), None)
            if own is not None:
                raise ExpungeError(
                    f"a {own.eraser} edit has the empty prompt's place already, where a {edit.eraser} edit's text would go: "
                    "expected one of the two"
                )

    def _check_names(self, edit: Edit) -> None:
        """Refuse an edit of tensors, or beside layers, that neither the denoiser nor the text encoders have."""
        touched, what = dict[str, str](), "an edit"
        weights = weights_of(edit)
        if weights is not None:
            touched = {name: f"replaces '{name}'" for name in weights.replaced}
        elif isinstance(edit, Adapter):
            touched, what = {f"{name}.weight": f"adapts '{name}'" for name in edit.layers}, "an adapter"
        beyond = set(touched) - set(self.backbone.group("full")) if touched else set()
        foreign = min(beyond - set(self.backbone.group("text-encoder")), default=None) if beyond else None
        if foreign is not None:
            raise ExpungeError(
                f"edit {edit.id} {touched[foreign]}, which {self.backbone.name} does not have: expected {what} of its family"
            )

    def _check_base(self, edit: Edit, weights: Weights, any_base: bool) -> None:
        names, model = list(weights.replaced), self.backbone.name
        base = self.originals(names)
        for name in names:
            given, expected = tuple(weights.replaced[name].shape), tuple(base[name].shape)
            if given != expected:
                raise ExpungeError(
                    f"edit {edit.id} replaces '{name}' of shape {given}: expected {expected} for {model}"
                )
        if not any_base:
            precisions = {str(t.dtype).removeprefix("torch.") for t in weights.replaced.values()}
            named = {weights.stored_name(n): t for n, t in base.items()}
            self._check_fingerprints(edit, weights.base_sha256, named, precisions)

    def _check_fingerprints(
        self, edit: Edit, wanted: Mapping[str, str], base: dict[str, Tensor], precisions: AbstractSet[str]
    ) -> None:
        """Refuse an edit that was made for other tensors than ``base``, as they are here or read in one of ``precisions``."""
        here = {str(t.dtype).removeprefix("torch.") for t in base.values()}
        dtypes = [*here, *sorted(precisions - here)]  # most edits are known at the first
        if not any(wanted.get(dtype) == fingerprint_as(base, dtype) for dtype in dtypes if dtype in wanted):
            raise ExpungeError(
                f"edit {edit.id} was made for another base than {self.backbone.name}: expected its own (or --any-base)"
            )

    def _check_layers(self, edit: Adapter, any_base: bool) -> None:
        model = self.backbone.name
        for name, part in edit.layers.items():
            layer = self.backbone.parameter(f"{name}.weight")[0]
            out, taken, *kernel = layer._parameters["weight"].shape  # pyright: ignore[reportOptionalMemberAccess]
            rank = len(part.down)
            fitting = ((rank, taken, *kernel), (out, rank, *(1 for _ in kernel)))
            given = (tuple(part.down.shape), tuple(part.up.shape))
            if given != fitting:
                raise ExpungeError(
                    f"edit {edit.id} adapts '{name}' with shapes {given[0]} and {given[1]}: expected {fitting[0]} and "
                    f"{fitting[1]} for {model}"
                )
        if edit.base_sha256 is not None and not any_base:
            base = {edit.stored_name(n): t for n, t in self.originals([f"{n}.weight" for n in edit.layers]).items()}
            self._check_fingerprints(edit, edit.base_sha256, base, edit.base_sha256.keys())
