"""``python -m expunge``: the same as the ``expunge`` script."""

from expunge.cli import entry

if __name__ == "__main__":
    entry()
