#!/usr/bin/env bash
# A picture for image to image or inpainting may be a PIL image, an array or a tensor, and `VaeImageProcessor` resizes it to what the model takes,
# "with the filter `resample`", lanczos. An expert expects the three to arrive alike, and the filter that was set to be used. Seen: arrays and
# tensors are resized by nearest neighbour, whatever `resample` says, and nothing is said. The astronaut of scikit-image, made 64 pixels wide, is
# 0.14 (of 2) from itself as a PIL image; 508 pixels wide, it loses four rows and columns, since image to image takes multiples of 8.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 scikit-image==0.26.0 pillow==12.3.0 numpy==2.4.6 <<'PY'
import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from heard import heard
from PIL import Image
from skimage import data

astronaut = data.astronaut()
for words, pixels, size in (("512 to 64", astronaut, 64), ("508 to 504", astronaut[:508, :508], None)):
    array = pixels.astype(np.float32) / 255
    tensor = torch.from_numpy(array).permute(2, 0, 1)[None]
    given = {"PIL image": Image.fromarray(pixels), "array": array, "tensor": tensor}
    for filter in ("lanczos", "bilinear"):
        with heard() as said:
            processor = VaeImageProcessor(vae_scale_factor=8, resample=filter)
            arrived = {name: processor.preprocess(picture, height=size, width=size) for name, picture in given.items()}
        apart = {name: round(float((x - arrived["PIL image"]).abs().mean()), 2) for name, x in arrived.items()}
        nearest = torch.nn.functional.interpolate(tensor, size=arrived["tensor"].shape[-2:], mode="nearest") * 2 - 1
        print(f"{words}, {filter}: mean distance from the PIL image {apart}")
        assert torch.equal(arrived["array"], nearest) and torch.equal(arrived["tensor"], nearest), "changed"
        assert apart["tensor"] >= 0.02 and not said, "changed"
PY
