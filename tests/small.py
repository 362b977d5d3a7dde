"""Settings with which every eraser of the catalog is quick on a tiny model; a new one adds a line."""

SHORT = {"iterations": 3, "batch": 2, "lr": 1e-3, "sampling": {"sampling_steps": 4}}
SETTINGS = {
    "uce": {"anchor": "cat"},
    "time": {"anchor": "cat"},
    "rece": {"epochs": 2, "anchor": "cat"},
    "debias": {"attributes": ["ink style", "tile style"], "images": 3, "steps_of_images": 2, "iterations": 2},
    "esd": SHORT,
    "kpop": {**SHORT, "prompt_lr": 0.1, "k": 3},
    "leco": SHORT,
    "spm": {**SHORT, "warmup": 0},
    "sld": {"warmup": 0},
    "few-shot": {"lr": 1e-3},
    "duo": {"iterations": 3, "batch": 2, "pairs": 3, "rank": 4},
    "ca": {"anchor": "cat", "anchor_images": 3, "iterations": 3, "batch": 2, "lr": 1e-3},
    "sdd": {**SHORT, "ema_decay": 0.5},
    "adv-unlearn": {
        **SHORT,
        "warmup": 1,
        "attack_steps": 2,
        "retain_batch": 2,
        "kept": ["cat"],
    },
    "forget-me-not": {"iterations": 3, "batch": 2, "shots": 3, "inversion": 2, "lr": 1e-3},
    "selective-amnesia": {
        **{"surrogate": "cat", "surrogate_images": 3, "replay_images": 3, "fisher_images": 2, "fisher_timesteps": 4},
        **{"iterations": 3, "batch": 2, "lr": 1e-3},
    },
    "gie": {"images": 10, "batch": 4, "updates": 20},
    "geom-erasing": {"iterations": 3, "batch": 2, "rows": 2, "columns": 2, "token_lr": 1e-2},
}
