#!/usr/bin/env bash
# Sets isjax up and runs it. See `./launch.sh --help`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
  cat <<'TEXT'
usage: ./launch.sh                        the main job: configs/digits.py
       ./launch.sh CONFIG[:SCALE] [--config.field=value ...]
                                          all runs of a config, table, figures
       ./launch.sh --processes N CONFIG[:SCALE] --config.sharding.form=FORM ...
                                          the same, N processes for each run
       ./launch.sh test [PYTEST ARGUMENTS]
                                          the tests
       ./launch.sh setup                  the set-up alone
       ./launch.sh --help

The first call makes .venv (with uv where it is there, else with venv and pip)
and installs isjax and what it needs; later calls reuse it, and install again
only when setup.py or the constraints have changed.

environment: PYTHON         the interpreter to make .venv with (python3)
             ISJAX_VENV     'system' uses that interpreter and installs nothing
             ISJAX_DATA_DIR folder of NAME.npz data sets
             TFDS_DATA_DIR  folder of prepared tensorflow-datasets
TEXT
}

fail() {
  echo "error: $1" >&2
  exit 2
}

# The constraints for the interpreter $1; the newest for a newer one.
constraints_for() {
  "$1" - <<'CODE' || fail "isjax needs Python 3.11 or newer; set PYTHON."
import sys
version = sys.version_info[:2]
if version < (3, 11):
  sys.exit(1)
print('requirements/constraints-3.%d.txt' % min(version[1], 12))
CODE
}

# Fills .venv unless its stamp says that it holds just this.
install() {
  local base=$1 constraints version stamp
  constraints=$(constraints_for "$base")
  version=$("$base" --version)
  stamp="$version $(cat setup.py "$constraints" | cksum)"
  if [[ -f .venv/stamp && "$(cat .venv/stamp)" != "$version "* ]]; then
    rm -rf .venv  # of another Python
  fi
  if [[ -x .venv/bin/python && -f .venv/stamp &&
        "$(cat .venv/stamp)" == "$stamp" ]]; then
    return
  fi
  echo "setting up .venv ..." >&2
  if command -v uv >/dev/null; then
    [[ -x .venv/bin/python ]] || uv venv --quiet --python "$base" .venv
    uv pip install --quiet --python .venv/bin/python \
      --constraint "$constraints" --editable '.[test]'
  else
    [[ -x .venv/bin/python ]] || "$base" -m venv .venv
    # Errors only: --quiet twice.
    .venv/bin/python -m pip install -qq --disable-pip-version-check \
      --constraint "$constraints" --editable '.[test]'
  fi
  echo "$stamp" >.venv/stamp
}

main() {
  case "${1-}" in
    -h | --help | help) usage; return ;;
  esac
  local python=${PYTHON:-python3}
  command -v "$python" >/dev/null || fail "there is no $python; set PYTHON."
  if [[ "${ISJAX_VENV-}" != system ]]; then
    install "$python"
    python=.venv/bin/python
  fi
  case "${1-}" in
    setup) ;;
    test) shift; exec "$python" -m pytest "$@" ;;
    '') exec "$python" -m experiments.sweep configs/digits.py ;;
    --processes)
      [[ "${2-}" =~ ^[0-9]+$ && -n "${3-}" ]] ||
        fail "write --processes N CONFIG."
      exec "$python" -m experiments.gang --processes="$2" -- \
        experiments.sweep "${@:3}" ;;
    -*) exec "$python" -m experiments.sweep configs/digits.py "$@" ;;
    *) exec "$python" -m experiments.sweep "$@" ;;
  esac
}

main "$@"
