"""The benchmark of drift: what it measures, on trees small enough to check."""

import functools
import importlib.util
import json
import sys

import numpy as np
import pytest

from experiments.benchmarks import drift, laws, timing


def skip_without_flashbax():
  if importlib.util.find_spec('flashbax') is None:
    pytest.skip('flashbax is not installed')


def test_the_largest_difference_by_hand():
  """A parent of 5 over children 4 and none; the others are right."""
  levels = [np.array(level, np.float32) for level in ([1, 2, 4], [3, 5], [8])]
  assert drift.largest_difference(levels, 2) == pytest.approx(1 / 5)


def test_empty_nodes_do_not_differ():
  """Sums of nothing are 0; what is left above them is all wrong."""
  levels = [np.zeros(16), np.zeros(1)]
  assert drift.largest_difference(levels, 16) == 0
  assert drift.largest_difference([levels[0], np.ones(1)], 16) == 1


def test_an_epoch_updates_every_score_and_none_twice_in_a_batch():
  """The last batch is filled up with scores of the first."""
  scores, order = drift.epoch(np.random.default_rng(0), 1000, 1e-4, 0.1)
  assert order.shape == (8, drift.BATCH)
  assert set(order.ravel()) == set(range(1000))
  assert all(len(set(batch)) == drift.BATCH for batch in order)
  assert 0.05 < np.mean(scores == 0) < 0.15
  assert np.median(scores[scores > 0]) == pytest.approx(1e-4, rel=0.2)


def test_the_tree_of_this_project_keeps_its_law(monkeypatch):
  """After every fall: sums to rounding, and no draw that leads nowhere."""
  monkeypatch.setattr(drift, 'DRAWS', 10_000)
  for state in drift.follow(drift.ISJAX, 300, epochs=3):
    assert state.difference < 2**-22
    assert abs(state.root) < 1e-6
    assert state.padding == state.empty == state.never_drawable == 0
    assert state.total_variation < 1e-6


def test_what_is_read_from_the_rival(monkeypatch):
  """Of integers it makes no error; one score that is wrong shows in all."""
  skip_without_flashbax()
  monkeypatch.setattr(drift, 'DRAWS', 10_000)
  tree = drift.flashbax()
  scores = np.array([1, 2, 0, 4, 1], np.float32)
  state = tree.build(scores)
  assert drift.compare(tree, state, scores) == (0, 0, 0, 0, 0, 0)
  nodes = state.nodes.at[-2].set(8.0)  # a leaf that does not exist
  nodes = nodes.at[0].add(8.0).at[2].add(8.0).at[6].add(8.0)
  found = drift.compare(tree, state.replace(nodes=nodes), scores)
  assert found.difference == 0
  assert found.root == found.total_variation * 2 == 1
  assert found.padding == pytest.approx(0.5, abs=4 * 0.5 / 100)


def test_a_run_in_small(monkeypatch, tmp_path, capsys):
  """Every tree and fall has its line, every comparison its times."""
  skip_without_flashbax()
  enumerate_few = functools.partial(laws.by_enumeration, bits=10)
  monkeypatch.setattr(laws, 'by_enumeration', enumerate_few)
  monkeypatch.setattr(timing, 'RESULTS', tmp_path)
  monkeypatch.setattr(timing, 'pin', lambda core: None)
  for name, value in {
    'NUM_SCORES': 300,
    'EPOCHS': 1,
    'DRAWS': 1000,
    'TIMED_SIZES': (300,),
    'PER_CALL': (1, 2),
  }.items():
    monkeypatch.setattr(drift, name, value)
  drift.main(['--rounds=1'])
  content = json.loads((tmp_path / 'drift.json').read_text())
  assert len(content['states']) == 3 * len(drift.FALLS)
  assert len(content['rows']) == 3
  assert capsys.readouterr().out == (tmp_path / 'drift.md').read_text() + '\n'


def test_without_flashbax_the_benchmark_fails_before_it_measures(
  monkeypatch, capsys
):
  """A rival that is not there is an error with status 1."""

  def must_not_run(*args):
    raise AssertionError('it went on without flashbax')

  monkeypatch.setitem(sys.modules, 'flashbax', None)
  monkeypatch.setattr(timing, 'pin', must_not_run)
  with pytest.raises(SystemExit, match=r"error: .*flashbax.*'isjax\[bench\]'"):
    drift.main([])
  assert capsys.readouterr().out == ''
