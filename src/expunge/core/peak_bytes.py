"""The most memory that tensors took at one time."""

import weakref
from typing import Any, final

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from typing_extensions import override


@final
class PeakBytes(TorchDispatchMode):
    """The most bytes that tensors made inside this context held at one time, on all devices together.

    What was there before does not count, nor does the scratch memory of a single operation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        """Bytes, so far."""
        self._held: dict[int, int] = {}
        self._now = 0

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        old = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in old:  # neither a view nor in place
                self._made(tensor.untyped_storage())
        return found

    def _made(self, storage: Any) -> None:
        place = storage._cdata
        if place in self._held:
            return
        self._held[place] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, place).atexit = False

    def _freed(self, place: int) -> None:
        self._now -= self._held.pop(place, 0)
