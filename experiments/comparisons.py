"""The runs of a sweep, grouped into rows and compared.

Training losses span orders of magnitude and one bad seed rules their mean, so
they are summarised by the geometric mean with its 95 % interval; test errors
by mean, standard deviation and the paired difference to the baseline, seed by
seed. Rates are chosen by training loss, never by test error.
"""

from collections.abc import Sequence
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


class Metric(NamedTuple):
  """A result of a run, and how tables show it.

  label:     of its column.
  sentence:  its name at the beginning of a sentence.
  factor:    from the result to what is shown, such as 100 for per cent.
  is_ratio:  whether it spans orders of magnitude: then its mean is geometric,
             and two cells are compared by a ratio.
  direction: 1 where more is better, -1 where less is.
  """

  label: str
  sentence: str
  factor: float = 1.0
  is_ratio: bool = False
  direction: int = -1


# Those of a run that has a TARGET are added by `add_target`.
METRICS = {
  'train_loss': Metric('train loss', 'The training loss', is_ratio=True),
  'test_loss': Metric('test loss', 'The test loss', is_ratio=True),
  'train_balanced_error': Metric(
    'balanced train error %', 'The balanced training error', 100.0
  ),
  'test_error': Metric('test error %', 'The test error', 100.0),
  'test_balanced_error': Metric(
    'balanced test error %', 'The balanced test error', 100.0
  ),
  'test_average_precision': Metric(
    'average precision %', 'The average precision', 100.0, direction=1
  ),
  'cost_to_target': Metric(
    'cost to target', 'The cost to the target', is_ratio=True
  ),
  'steps_to_target': Metric(
    'steps to target', 'The number of steps to the target', is_ratio=True
  ),
  'seconds_to_target': Metric(
    'seconds to target', 'The time to the target', is_ratio=True
  ),
}


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

  def summary(self, name: str) -> str:
    """Geometric mean and interval of a metric, or mean and deviation."""
    metric = METRICS[name]
    values = metric.factor * self.values(name)
    if metric.is_ratio:
      return geometric_mean(values).within('{:.3g}')
    text = f'{values.mean():.2f}'
    if len(values) == 1:
      return text
    return f'{text} ({np.std(values, ddof=1):.2f})'

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


class Comparison(NamedTuple):
  """Two rows by one metric, over the seeds that both have.

  difference: of the metric as shown; of its logarithm where it is a ratio.
  p_value:    of the paired t test of a difference of 0; NaN for one pair.
  num_pairs:  n.
  metric:     that was compared.
  """

  difference: Interval
  p_value: float
  num_pairs: int
  metric: Metric

  @property
  def is_better(self) -> bool:
    """Whether the whole interval is on the better side."""
    return min(self.metric.direction * np.array(self.difference[1:])) > 0

  @property
  def is_worse(self) -> bool:
    """Whether the whole interval is on the worse side."""
    return max(self.metric.direction * np.array(self.difference[1:])) < 0

  @property
  def text(self) -> str:
    """The difference, or the ratio, with interval and p-value."""
    if self.metric.is_ratio:
      text = 'x ' + Interval(*np.exp(self.difference)).within('{:.3g}')
    else:
      text = self.difference.within('{:+.2f}')
    return text if np.isnan(self.p_value) else f'{text}, p {self.p_value:.2g}'

  @property
  def phrase(self) -> str:
    """The same between the names of two cells."""
    if self.metric.is_ratio:
      ratio = Interval(*np.exp(self.difference)).within('{:.3g}')
      return f'is {ratio} times'
    return f'differs by {self.difference.within("{:+.2f}")} points from'


def compare(row: Row, baseline: Row, name: str) -> Comparison:
  """Compares two rows by a metric, seed by seed."""
  metric = METRICS[name]
  ours, theirs = (
    metric.factor * values for values in paired(row, baseline, name)
  )
  if metric.is_ratio:
    tiny = np.finfo(np.float32).tiny  # a float32 loss may be exactly 0
    ours, theirs = np.log(np.maximum([ours, theirs], tiny))
  difference = ours - theirs
  p_value = np.nan
  if len(difference) > 1 and np.ptp(difference) > 0:
    p_value = float(stats.ttest_1samp(difference, 0).pvalue)
  return Comparison(mean(difference), p_value, len(difference), metric)


def add_target(table: list[Row], baseline: Row, name: str) -> list[Row]:
  """Adds to each run what it took to get where the baseline's run ended.

  The target of a seed is the metric at the end of the baseline's run of that
  seed. `cost_to_target`, `steps_to_target` and `seconds_to_target` are those of
  the first evaluation that is at least as good; a run that has none gets its
  whole cost, number of steps and time, and `reached_target` False.

  Args:
    table: of all cells; runs of seeds that the baseline lacks are left out.
    baseline: the row whose ends are the targets.
    name: of METRICS, one that is evaluated on the way.
  """
  return [
    row._replace(
      records={
        seed: _with_target(record, baseline.records[seed].result[name], name)
        for seed, record in row.records.items()
        if seed in baseline.records
      }
    )
    for row in table
  ]


def _with_target(record: Record, target: float, name: str) -> Record:
  direction = METRICS[name].direction
  reached = [
    line
    for line in record.metrics
    if line.get(name) is not None
    and direction * line[name] >= direction * target
  ]
  first = reached[0] if reached else record.metrics[-1]
  result = {
    'cost_to_target': max(first['cost'], 1),
    'steps_to_target': max(first['step'], 1),
    'seconds_to_target': first['seconds'],
    'reached_target': bool(reached),
  }
  return record._replace(result=record.result | result)


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


def groups(table: Sequence[Row]) -> dict[str, list[Row]]:
  """Returns the rows by what stands before ': ' in the names of their cells.

  Cells are compared within their group, such as one data set: 'digits: uniform'
  is the baseline of 'digits: loss'. Names without ': ' make the group ''.
  """
  result: dict[str, list[Row]] = {}
  for row in table:
    result.setdefault(row.cell.rpartition(': ')[0], []).append(row)
  return result


def in_group(group: str, cell: str) -> str:
  """Returns the full name of a cell of the group."""
  return f'{group}: {cell}' if group else cell


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
  rates = sorted({row.rate for row in table if not np.isnan(row.rate)})

  def score(rate: float) -> float:
    here = [row for row in table if row.rate == rate]
    if any(row.diverged or not row.records for row in here):
      return np.inf
    return float(np.mean([np.log(r.train_loss.estimate) for r in here]))

  return min(rates, key=score)
