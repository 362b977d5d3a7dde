#!/usr/bin/env bash
# fsspec's pipe_file has a mode "create", which refuses a file that exists. On local folders, which include mounted network ones,
# it asks whether the file exists and then writes it: of several that create a name at a time, several succeed, and the last
# one's bytes stay. open(path, "xb") of the same file system refuses all but one.
# Expected: one creates each name. Seen: several, by pipe_file.
. "$(dirname "$0")/run.sh"
run fsspec==2026.9.0 <<'PY'
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor

import fsspec

MANY, NAMES = 6, 2000
files, ready = fsspec.filesystem("file"), threading.Barrier(MANY)


def by_pipe(path):
    files.pipe_file(path, b"mine", mode="create")


def by_open(path):
    with files.open(path, "xb") as opened:
        opened.write(b"mine")


def winners(create):
    folder = tempfile.mkdtemp(dir=".")

    def tries(_):
        won = []
        for name in range(NAMES):
            ready.wait()
            try:
                create(f"{folder}/{name}")
                won.append(name)
            except FileExistsError:
                pass
        return won

    with ThreadPoolExecutor(MANY) as pool:
        return sum(map(len, pool.map(tries, range(MANY))))


piped, opened = winners(by_pipe), winners(by_open)
print(f"{MANY} threads create {NAMES} names: {piped} succeed by pipe_file, {opened} by open")
assert opened == NAMES
assert piped > NAMES, "changed"
PY
