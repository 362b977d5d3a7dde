"""Types are checked in every test: shapes where a function names some, kinds of arguments everywhere."""

import jaxtyping
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation

from expunge.core.concept import article
from expunge.core.cost import Cost
from expunge.maths.closed_form import ridge_edit


def test_a_wrong_shape_is_found():
    right = {"weights": {"w": torch.ones(5, 3)}, "keys": torch.ones(2, 3), "scales": torch.ones(2), "lamb": 0.5}
    assert ridge_edit(goals=torch.ones(2, 3), **right)["w"].shape == (5, 3)
    with pytest.raises(jaxtyping.TypeCheckError):
        ridge_edit(goals=torch.ones(1, 3), **right)


def test_a_wrong_kind_is_found_in_functions_and_dataclasses():
    with pytest.raises(BeartypeCallHintParamViolation):
        article(3)
    with pytest.raises(jaxtyping.TypeCheckError):
        Cost(forward="many", trained=0)
