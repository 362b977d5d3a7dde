"""What jobs need, imported once: by the server that workers are forked from, or before a machine of a cluster does its first.

The collector of cycles writes into every object that it looks at, and what a fork writes to is its own from then on. Frozen
objects are not looked at, and so stay shared.
"""

import contextlib
import gc
import importlib

for _name in (
    "expunge.jobs",
    "diffusers.models.autoencoders.autoencoder_kl",
    "diffusers.models.unets.unet_2d_condition",
    "diffusers.schedulers.scheduling_ddim",
    "transformers.models.clip.modeling_clip",
):
    with contextlib.suppress(ImportError):  # what is missing is imported by those that need it, who say so
        importlib.import_module(_name)
gc.collect()
gc.freeze()
