"""The patches of tests/mutants fit the code; its run.py runs them."""

import pathlib
import subprocess

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PATCHES = sorted((ROOT / 'tests/mutants').glob('*.patch'))


def test_there_are_mutants():
  """At least the nine that the project began with."""
  assert len(PATCHES) >= 9


@pytest.mark.parametrize('patch', PATCHES, ids=lambda p: p.stem)
def test_a_mutant_applies_and_names_a_test(patch):
  """It changes isjax/ as it stands, and the test that must catch it exists."""
  first, *rest = patch.read_text().splitlines()
  path, _, name = first.removeprefix('# caught by: ').partition('::')
  assert f'def {name}(' in (ROOT / path).read_text()
  assert any(line.startswith('+++ b/isjax/') for line in rest)
  subprocess.run(
    ['git', 'apply', '--check', str(patch)],
    cwd=ROOT,
    check=True,
    capture_output=True,
  )
