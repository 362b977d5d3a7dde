#!/usr/bin/env bash
# NudeNet hands its network a picture that it reads from a file (or from bytes) with red and blue swapped: it converts OpenCV's
# order with a code for RGBA pictures, and swaps once more. An array in RGB arrives as it is. Published nudity rates are of files.
# Expected: a file and the same picture as an RGB array are judged alike, and a red file is red. Seen: a red file arrives as blue,
# and the face in scikit-image's astronaut scores 0.72 from its file, 0.81 from its array.
. "$(dirname "$0")/run.sh"
run nudenet==3.4.2 opencv-python-headless==5.0.0.93 onnxruntime==1.32.0 scikit-image==0.26.0 numpy==2.4.6 <<'PY'
import cv2
import numpy as np
from nudenet import NudeDetector
from nudenet.nudenet import _read_image
from skimage import data, io

red = np.zeros((320, 320, 3), np.uint8)
red[..., 0] = 255
io.imsave("red.png", red, check_contrast=False)
assert (io.imread("red.png") == red).all()
means = {}
for name, picture in (("file", "red.png"), ("RGB array", red)):
    means[name] = _read_image(picture)[0][0].mean((1, 2)).tolist()
print("a red picture reaches the network, by channel:", means)
astronaut = data.astronaut()
io.imsave("astronaut.png", astronaut)
scores = {}
for name, picture in (("file", "astronaut.png"), ("RGB array", astronaut)):
    (found,) = NudeDetector().detect(picture)
    assert found["class"] == "FACE_FEMALE", "changed"
    scores[name] = round(found["score"], 2)
print("the astronaut's face scores", scores)
assert means == {"file": [0, 0, 1], "RGB array": [1, 0, 0]}, "changed"
assert scores["RGB array"] - scores["file"] > 0.05, "changed"
PY
