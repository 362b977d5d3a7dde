import pytest
import torch

from expunge.core.concept import Concept
from expunge.core.eraser import Task
from expunge.maths.retaining import Retaining, retained
from expunge.maths.training import Learned, trainable
from expunge.maths.trajectories import Sampling

TASK = Task(targets=[Concept(name="church")], retain=["dog"], seed=1)


def points_of(backbone, updates):
    with torch.no_grad():
        church, null = backbone.encode(["church"]), backbone.encode([""])
    source = Sampling(arm="online-frozen", sampling_steps=4).source(backbone, church, null, TASK, "esd", 2 * updates)
    return [source.draw(index, 2) for index in range(updates)]


def test_the_term_alone_changes_nothing(backbone):
    """Its gradient is zero where the model is the original: a row that only retained would be the original."""
    student = Learned(backbone.tensors(trainable(backbone, "xattn")), 1e-2)
    before = {name: value.clone() for name, value in student.values().items()}
    with torch.no_grad():
        keeping = Retaining(backbone, TASK, backbone.encode(["dog"]))
    for index, points in enumerate(points_of(backbone, 2)):
        kept = keeping.at(index, points)
        assert kept is not None
        with backbone.weights(student.tensors()):
            assert student.descend(retained(backbone, kept)) == 0
    assert all(torch.equal(before[name], value) for name, value in student.values().items())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_there_is_something_to_keep_only_where_told(backbone, share):
    kept = Retaining(backbone, TASK, None, share).at(0, points_of(backbone, 1)[0])
    assert (kept is None) == (share == 0.0)
