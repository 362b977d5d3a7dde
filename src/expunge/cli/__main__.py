"""``python -m expunge.cli``."""

from expunge.cli import entry

if __name__ == "__main__":
    entry()
