#!/usr/bin/env bash
# Two files that `safetensors.torch.save_file` writes of the same tensors and the same metadata, by one process.
# An expert expects the same bytes: tensors are put in a fixed order, and a format without timestamps is chosen for that. Seen: the
# entries of the metadata are written in any order, so the files' hashes differ. Who publishes a checkpoint's sha256, or
# tells models apart by the hash of the file, takes a copy that was saved again for another model. Without metadata, or with a single
# entry, the bytes are the same. Nothing is said.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 safetensors==0.8.0 numpy==2.4.6 <<'PY'
import hashlib
from pathlib import Path

import torch
from heard import heard
from safetensors.torch import load_file, save_file

tensors = {"down.weight": torch.arange(6.0), "up.weight": torch.arange(4.0)}
metadata = {"format": "pt", "method": "esd", "target": "church", "seed": "0", "base": "sd-1.4", "licence": "openrail"}

def files(told):
    """How many different files twenty saves give."""
    hashes = set()
    for _ in range(20):
        save_file(tensors, "edit.safetensors", metadata=told)
        assert all(torch.equal(load_file("edit.safetensors")[name], tensor) for name, tensor in tensors.items())
        hashes.add(hashlib.sha256(Path("edit.safetensors").read_bytes()).hexdigest())
    return len(hashes)

with heard() as said:
    seen = {"six entries": files(metadata), "one entry": files({"format": "pt"}), "none": files(None)}
print("different files of 20 saves, with metadata of", seen)
assert seen["one entry"] == seen["none"] == 1
assert not said and seen["six entries"] > 10, "changed"
PY
