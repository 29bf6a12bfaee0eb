"""The runs of a sweep, grouped into rows and compared.

Training losses span orders of magnitude and one bad seed rules their mean, so
they are summarised by the geometric mean with its 95 % interval; test errors
by mean, standard deviation and the paired difference to the baseline, seed by
seed. Rates are chosen by training loss, never by test error.
"""

import pathlib
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from experiments import artifacts

UNIFORM_SAMPLERS = ('uniform', 'shuffle')


class Record(NamedTuple):
  """A finished run.

  config:  its settings.
  result:  its result.json.
  metrics: the lines of its metrics.jsonl.
  """

  config: dict[str, Any]
  result: dict[str, Any]
  metrics: list[dict[str, Any]]

  @property
  def rate(self) -> float:
    """Its learning rate."""
    return self.config['optimizer']['learning_rate']


class Interval(NamedTuple):
  """An estimate with its 95 % confidence interval (NaN at n = 1)."""

  estimate: float
  low: float
  high: float

  def within(self, template: str) -> str:
    """The estimate, and the interval in brackets."""
    text = template.format(self.estimate)
    if np.isnan(self.low):
      return text
    low, high = template.format(self.low), template.format(self.high)
    return f'{text} [{low}, {high}]'


class Row(NamedTuple):
  """All runs of one cell at one learning rate.

  cell, rate: what they share.
  records:    by seed; those that diverged are left out.
  diverged:   how many that are.
  """

  cell: str
  rate: float
  records: dict[int, Record]
  diverged: int

  def values(self, name: str) -> np.ndarray:
    """The named result of each run, f64[n], by seed."""
    return np.array(
      [self.records[seed].result[name] for seed in sorted(self.records)]
    )

  @property
  def train_loss(self) -> Interval:
    """Geometric mean."""
    return geometric_mean(self.values('train_loss'))

  @property
  def is_uniform(self) -> bool:
    """Whether its sampler uses no importance at all."""
    return self._config['sampler']['name'] in UNIFORM_SAMPLERS

  @property
  def budget(self) -> int:
    """Forward-equivalents that each of its runs may spend."""
    return self._config['budget']

  @property
  def _config(self) -> dict[str, Any]:
    return next(iter(self.records.values())).config


def read(folder: pathlib.Path) -> Record:
  """Reads a finished run back from its folder."""
  result = artifacts.read_result(folder)
  if result is None:
    raise FileNotFoundError(f'{folder} holds no finished run.')
  return Record(result['config'], result, artifacts.read_metrics(folder))


def mean(values: np.ndarray) -> Interval:
  """Returns the mean with its t interval."""
  if len(values) < 2 or np.ptp(values) == 0:
    centre = float(np.mean(values)) if len(values) else np.nan
    return Interval(centre, np.nan, np.nan)
  interval = stats.ttest_1samp(values, 0).confidence_interval(0.95)
  return Interval(float(np.mean(values)), interval.low, interval.high)


def geometric_mean(values: np.ndarray) -> Interval:
  """Returns the geometric mean, its interval that of the mean logarithm."""
  tiny = np.finfo(np.float32).tiny  # a float32 loss may be exactly 0
  return Interval(*np.exp(mean(np.log(np.maximum(values, tiny)))))


def paired(row: Row, baseline: Row, name: str) -> tuple[np.ndarray, np.ndarray]:
  """Returns the named results of both rows for the seeds they share."""
  seeds = sorted(row.records.keys() & baseline.records.keys())
  return tuple(
    np.array([r.records[seed].result[name] for seed in seeds])
    for r in (row, baseline)
  )


def rows(records: list[Record]) -> list[Row]:
  """Groups runs by cell and learning rate, in the sweep's order."""
  groups: dict[tuple[str, float], list[Record]] = {}
  for record in records:
    groups.setdefault((record.config['cell'], record.rate), []).append(record)
  result = []
  for (cell, rate), group in groups.items():
    finished = {
      r.config['seed']: r for r in group if r.result['status'] == 'finished'
    }
    diverged = sum(r.result['status'] == 'diverged' for r in group)
    result.append(Row(cell, rate, finished, diverged))
  return result


def best(table: list[Row]) -> dict[str, Row]:
  """Returns each cell's row of least training loss among its learning rates.

  A rate at which a run diverged counts only where all rates have such runs.
  """
  chosen: dict[str, Row] = {}
  for cell in dict.fromkeys(row.cell for row in table):
    candidates = [r for r in table if r.cell == cell and r.records]
    candidates = [r for r in candidates if not r.diverged] or candidates
    if candidates:
      chosen[cell] = min(candidates, key=lambda r: r.train_loss.estimate)
  return chosen


def shared_rate(table: list[Row]) -> float:
  """Returns the rate of least training loss, averaged over cells in logs."""
  rates = sorted({row.rate for row in table})

  def score(rate: float) -> float:
    here = [row for row in table if row.rate == rate]
    if any(row.diverged or not row.records for row in here):
      return np.inf
    return float(np.mean([np.log(r.train_loss.estimate) for r in here]))

  return min(rates, key=score)
