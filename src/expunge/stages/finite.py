"""Numbers that are none: NaN and infinity are stopped where they come up, in a line that says what to lower.

(An edit of NaN removes its concept, and everything else: an image of NaN is black, and a judge sees no church in it.)
"""

import math
from collections.abc import Sequence
from dataclasses import asdict

from expunge.core.backbone import Backbone
from expunge.core.edit import Edit, not_finite
from expunge.core.eraser import Eraser, Step
from expunge.core.errors import ExpungeError
from expunge.core.query import Images, Query


def check_model(backbone: Backbone) -> None:
    """Refuse a model whose own weights hold NaN or an infinity: asked once something went wrong, since it reads them all.

    Raises:
        ExpungeError: naming the tensor.
    """
    for group in ("full", "text-encoder"):
        for name in backbone.group(group):
            if not_finite(backbone.tensors([name])) is not None:
                raise ExpungeError(f"{backbone.name} holds NaN or infinity in '{name}': expected finite weights")


def check_losses(backbone: Backbone, method: str, eraser: Eraser, step: Step) -> None:
    """Stop an erasure whose numbers have left all bounds.

    Raises:
        ExpungeError: naming the update, the loss and what to lower.
    """
    for name, loss in step.losses.items():
        if not math.isfinite(loss):
            check_model(backbone)
            raise ExpungeError(f"{method} has the loss '{name}' {loss} at update {step.index}: {_lower(eraser)}")


def check_edit(backbone: Backbone, method: str, eraser: Eraser, edit: Edit) -> None:
    """Refuse what was learned, if it is not finite.

    Raises:
        ExpungeError: naming the tensor and what to lower.
    """
    name = not_finite(edit.tensors())
    if name is not None:
        check_model(backbone)
        raise ExpungeError(f"{method} made NaN or infinity of '{name}': {_lower(eraser)}")


def check_images(backbone: Backbone, edits: Sequence[Edit], queries: Sequence[Query], images: Images) -> None:
    """Refuse latents that are not finite, which would be written as black images.

    Raises:
        ExpungeError: naming a prompt, and the model's or an edit's tensor that is to blame, if there is one.
    """
    bad = (~images.latents.isfinite()).flatten(1).any(1)
    if not bad.any():
        return
    query = queries[int(bad.nonzero()[0])]
    with backbone.bare():
        check_model(backbone)
    raise ExpungeError(
        f"'{query.prompt}' with seed {query.seed} and guidance {query.guidance} gives NaN or infinity: expected "
        + ("weaker edits, " if edits else "")
        + "a lower guidance, or a precision with more range (dtype float32)"
    )


def _lower(eraser: Eraser) -> str:
    """What to lower: the learning rates of a method that has some."""
    settings = asdict(eraser)  # pyright: ignore[reportArgumentType]
    rates = [f"{name} {value}" for name, value in settings.items() if name == "lr" or name.endswith("_lr")]
    if not rates:
        return "expected finite numbers, so other settings or float32"
    return f"expected finite numbers, so less than {' and '.join(rates)}"
