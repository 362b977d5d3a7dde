"""What a command's own process does to begin soon; a program that calls `main` itself is left alone."""

import gc

_own = False


def own_process() -> None:
    """Say that this process is the command's alone, so that it may import less than others would want."""
    global _own  # noqa: PLW0603  (a process is one thing)
    _own = True
    gc.set_threshold(100_000)  # imports make a million objects that stay; what does not is found a little later


def import_model_classes() -> None:
    """Import what models need of diffusers and transformers, without what they import for nothing, where that is allowed."""
    if not _own:
        return
    from expunge.backbones import lean

    lean.import_model_classes()
