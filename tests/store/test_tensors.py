"""Tensors in files: the same content is the same file."""

import hashlib

import pytest
import torch

from expunge.store.tensors import read_tensors, save_tensors

TENSORS = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.ones(3, dtype=torch.bfloat16), "none": torch.zeros(0)}


@pytest.mark.parametrize("metadata", [{"format": "pt"}, {c: f'"{c}" \u00fc\n\u2028' * 3 for c in "fgabedch"}])
def test_the_same_content_is_the_same_file(tmp_path, metadata):
    hashes = set()
    for number in range(8):
        save_tensors(TENSORS, tmp_path / f"{number}", dict(sorted(metadata.items(), reverse=number % 2 == 1)))
        hashes.add(hashlib.sha256((tmp_path / f"{number}").read_bytes()).hexdigest())
    assert len(hashes) == 1
    read = read_tensors(tmp_path / "0")
    assert read.metadata == metadata
    assert read.tensors.keys() == TENSORS.keys()
    assert all(torch.equal(read.tensors[name], tensor) for name, tensor in TENSORS.items())
