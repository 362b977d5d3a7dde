# Sourced by the scripts beside it: `run PACKAGE==VERSION … <<'PY'` runs a program with exactly these packages.
# PYTHON names an interpreter that has them already; otherwise they are installed into a temporary folder.
set -euo pipefail
run() {
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  cat > "$folder/program.py"
  cp "$(dirname "${BASH_SOURCE[0]}")"/*.py "$folder"
  if [ -z "${PYTHON:-}" ]; then
    python3 -m venv "$folder/venv"
    "$folder/venv/bin/pip" install -q --disable-pip-version-check "$@"
    PYTHON=$folder/venv/bin/python
  fi
  "$PYTHON" - "$@" <<'PY'
import sys
from importlib.metadata import version
for pin in sys.argv[1:]:
    name, _, wanted = pin.partition("==")
    if version(name) != wanted:
        sys.exit(f"{name} {version(name)}: expected {wanted}")
print("with", " ".join(sys.argv[1:]))
PY
  cd "$folder"
  OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 "$PYTHON" -W ignore program.py
}
