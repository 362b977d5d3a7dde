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
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in old:  # neither a view nor in place
                self._allocated(tensor.untyped_storage())
        return result

    def _allocated(self, storage: Any) -> None:
        address = storage._cdata
        if address in self._held:
            return
        self._held[address] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._freed, address).atexit = False

    def _freed(self, address: int) -> None:
        self._now -= self._held.pop(address, 0)
