"""Times in words."""


def duration(seconds: float | int) -> str:
    """A time in words: ``7.8 s``, ``2 min 5 s``, ``1 h 20 min``."""
    if seconds < 59.95:
        return f"{max(0.0, seconds):.1f} s"
    minutes, left = divmod(round(seconds), 60)
    return f"{minutes} min {left} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
