"""Runs every mutant and tells whether a test caught it.

Usage: python tests/mutants/run.py [NAME ...]

A mutant is a patch NAME.patch of this folder that plants one bug; its first
line names the test that must fail under it. Each is applied to a copy of the
working tree. Exits with 1 where a mutant survives, or a test fails without it.
"""

import pathlib
import shutil
import subprocess
import sys
import tempfile

FOLDER = pathlib.Path(__file__).resolve().parent
ROOT = FOLDER.parent.parent
_COPIED = ('isjax', 'experiments', 'configs', 'tests', 'pyproject.toml')


def caught_by(patch: pathlib.Path) -> str:
  """Returns the test that the patch says must fail."""
  first = patch.read_text().splitlines()[0]
  return first.removeprefix('# caught by: ')


def _passes(tree: pathlib.Path, test: str) -> bool:
  command = [sys.executable, '-m', 'pytest', '-x', '-n0', test]
  outcome = subprocess.run(command, cwd=tree, capture_output=True, text=True)
  if outcome.returncode not in (0, 1):
    raise SystemExit(f'{test} could not be run:\n{outcome.stdout}')
  return outcome.returncode == 0


def survives(patch: pathlib.Path) -> bool:
  """Whether the patch's test passes although the patch is applied."""
  with tempfile.TemporaryDirectory() as folder:
    tree = pathlib.Path(folder)
    for name in _COPIED:
      source = ROOT / name
      copy = shutil.copytree if source.is_dir() else shutil.copy
      copy(source, tree / name)
    test = caught_by(patch)
    if not _passes(tree, test):
      raise SystemExit(f'{test} fails without any mutant')
    subprocess.run(['git', 'apply', str(patch)], cwd=tree, check=True)
    return _passes(tree, test)


def main(names: list[str]) -> int:
  """Runs the named mutants, or all; returns the exit status."""
  patches = [FOLDER / f'{name}.patch' for name in names]
  status = 0
  for patch in patches or sorted(FOLDER.glob('*.patch')):
    survived = survives(patch)
    status |= survived
    word = 'SURVIVED' if survived else 'caught by'
    print(f'{patch.stem}: {word} {caught_by(patch)}', flush=True)
  return status


if __name__ == '__main__':
  sys.exit(main(sys.argv[1:]))
