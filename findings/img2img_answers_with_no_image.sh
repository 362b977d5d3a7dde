#!/usr/bin/env bash
# Image to image at a small strength and few steps: steps times strength below one, as where an erasure is tried from a picture at several
# strengths with a model of four or eight steps. The pipeline's help says that strength 0 gives the picture back, or nearly. An expert
# expects one denoising step, the picture as it was, or the error that the inpainting pipeline raises for the same numbers. Seen: Stable
# Diffusion's image to image answers with an empty list, without a word, so that shares of its images are of none. The one of SDXL fails on
# the reshape of an empty tensor, and that of SD3 takes one step, at every strength.
. "$(dirname "$0")/run.sh"
run torch==2.14.1 diffusers==0.42.1 transformers==5.23.0 <<'PY'
import torch
import diffusers
from tiny_sd import tiny_sd

PIPE
PY
