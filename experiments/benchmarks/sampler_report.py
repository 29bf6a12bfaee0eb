"""What the benchmark of the sampler found, in tables."""

from collections.abc import Mapping, Sequence
import math
from typing import Any, NamedTuple

from experiments.benchmarks import rivals, timing
from experiments.benchmarks.laws import Exactness
from experiments.benchmarks.rivals import Rival
from experiments.benchmarks.timing import Row, Target, Timing
from experiments.tables import markdown

NUM_DRAWS = 4096
FEW = 128  # draws, and weights to update, of a step of training
SPREADS = (1.0, 3.0)  # of the weights' logarithms; the first is timed

Times = Mapping[type[Rival], Timing]
Bounds = Mapping[type[Rival], Mapping[int, float]]

_TABLE, _TREE = rivals.AliasTable, rivals.SumTree
# How many times the time of the table a rival takes, by N.
_DRAWS: Bounds = {
  rivals.JaxChoice: {10**5: 10, 10**6: 60, 10**7: 1000},
  rivals.TorchMultinomial: {10**5: 12, 10**6: 25, 10**7: 400},
  rivals.NumpyChoice: {10**5: 50, 10**6: 200, 10**7: 1000},
}
_EPOCHS: Bounds = {rivals.TorchSampler: {10**4: 12, 10**5: 55, 10**6: 28}}
# How many times the time of a rival the table takes to be built.
_BUILDS: Bounds = {
  rivals.ScipyUrn: {10**4: 1.5, 10**5: 1.5, 10**6: 1, 10**7: 1, 10**8: 1}
}


class Case(NamedTuple):
  """What was found with one N.

  num_items: N.
  draws:     times of NUM_DRAWS draws.
  builds:    times of what is built before the first draw.
  epochs:    times of N draws; empty where N is too large for all to wait.
  few_draws: times of FEW draws of the trees.
  updates:   times of FEW updates of the trees.
  exactness: for each of SPREADS, of those whose law is known.
  """

  num_items: int
  draws: Times
  builds: Times
  epochs: Times
  few_draws: Times
  updates: Times
  exactness: Sequence[Mapping[type[Rival], Exactness]]

  def draw_rows(self) -> dict[type[Rival], Row]:
    """Draws of each rival, over those of the table."""
    return self._over(_TABLE, self.draws, f'{NUM_DRAWS} draws', _DRAWS)

  def build_rows(self) -> dict[type[Rival], Row]:
    """The build of the table, over that of each rival."""
    return {
      kind: Row(
        f'N = {self.num_items:,}, build: {_TABLE.name} / {kind.name}',
        self.builds[_TABLE],
        time,
        self._target('<=', _BUILDS, kind),
        'a sweep over N',
      )
      for kind, time in self.builds.items()
      if kind not in rivals.OURS
    }

  def epoch_rows(self) -> dict[type[Rival], Row]:
    """Epochs of each rival, over those of the table."""
    return self._over(_TABLE, self.epochs, 'N draws', _EPOCHS)

  def tree_rows(self) -> list[Row]:
    """The other tree over ours, and a new table over an update."""
    draws = {k: t for k, t in self.draws.items() if k in rivals.TREES}
    return [
      *self._over(_TREE, self.few_draws, f'{FEW} draws').values(),
      *self._over(_TREE, draws, f'{NUM_DRAWS} draws').values(),
      *self._over(_TREE, self.updates, f'{FEW} updates').values(),
      Row(
        f'N = {self.num_items:,}: build of {_TABLE.name} / {FEW} updates of '
        f'{_TREE.name}',
        self.builds[_TABLE],
        self.updates[_TREE],
        None,
        'N',
      ),
    ]

  def rows(self) -> list[Row]:
    """All comparisons."""
    return [
      *self.draw_rows().values(),
      *self.build_rows().values(),
      *self.epoch_rows().values(),
      *self.tree_rows(),
    ]

  def calls_to_pay(self, kind: type[Rival]) -> float:
    """After how many calls for draws the table has taken less time."""

    def medians(kind):
      build = self.builds.get(kind)
      return 0.0 if build is None else build.median, self.draws[kind].median

    return break_even(medians(_TABLE), medians(kind))

  def _over(
    self, reference: type[Rival], times: Times, what: str, bounds: Bounds = {}
  ) -> dict[type[Rival], Row]:
    return {
      kind: Row(
        f'N = {self.num_items:,}, {what}: {kind.name} / {reference.name}',
        time,
        times[reference],
        self._target('>=', bounds, kind),
        kind.work,
      )
      for kind, time in times.items()
      if kind is not reference
    }

  def _target(
    self, relation: str, bounds: Bounds, kind: type[Rival]
  ) -> Target | None:
    bound = bounds.get(kind, {}).get(self.num_items)
    return None if bound is None else Target(relation, bound)


def break_even(ours: tuple[float, float], theirs: tuple[float, float]) -> float:
  """Returns after how many calls we have taken less time.

  Args:
    ours: seconds of the build, and of a call.
    theirs: the same.

  Returns:
    A whole number, 0 where we build faster; inf where a call saves nothing.
  """
  saved = theirs[1] - ours[1]
  if saved <= 0:
    return math.inf
  return max(0, math.floor((ours[0] - theirs[0]) / saved) + 1)


_HEADER = (
  'rival',
  f'us for {NUM_DRAWS} draws, min',
  'median',
  'times isjax, of minima',
  'of medians',
  'target',
  'met',
  'build, ms',
  'calls until isjax pays',
  'total variation',
  'never drawable',
  'work of b draws',
)


def _cells(kind: type[Rival], case: Case) -> list[str]:
  """One row of the table of draws; dashes for a rival that is not there."""
  if kind not in case.draws:
    reason = kind.refusal(case.num_items, NUM_DRAWS) or 'not installed'
    return [f'{kind.name}: {reason}', *['-'] * (len(_HEADER) - 2), kind.work]
  compared = ['1', '1', '-', '-']
  if kind is not _TABLE:
    row = case.draw_rows()[kind]
    target = '-' if row.target is None else str(row.target)
    compared = [*map(_plain, row.ratios), target, row.verdict]
  build = case.builds.get(kind)
  return [
    kind.name,
    f'{1e6 * case.draws[kind].minimum:,.1f}',
    f'{1e6 * case.draws[kind].median:,.1f}',
    *compared,
    '-' if build is None else f'{1e3 * build.median:,.2f}',
    '-' if kind in rivals.OURS else _plain(case.calls_to_pay(kind)),
    *_exactness_cells(kind, case, 0),
    kind.work,
  ]


def _plain(number: float) -> str:
  """Three digits or more, without an exponent."""
  if math.isinf(number):
    return 'never'
  return f'{number:,.0f}' if number >= 100 else f'{number:.3g}'


def _exactness_cells(kind: type[Rival], case: Case, spread: int) -> list[str]:
  """Total variation, and how many items are never drawable."""
  found = case.exactness[spread].get(kind)
  if found is None:
    return ['-', '-']
  never = found.never_drawable
  share = f' ({100 * never / case.num_items:.2g} %)' if never else ''
  return [f'{found.total_variation:.1e}', f'{never:,}{share}']


def _heavier(cases: Sequence[Case]) -> str:
  """The table of the laws under heavier weights."""
  kinds = dict.fromkeys(kind for case in cases for kind in case.exactness[1])
  lines = [
    [kind.name, *('; '.join(_exactness_cells(kind, c, 1)) for c in cases)]
    for kind in kinds
  ]
  return markdown(['rival', *(f'N = {c.num_items:,}' for c in cases)], lines)


def document(cases: Sequence[Case], checks: Mapping[type[Rival], float]) -> str:
  """Returns the result as Markdown.

  Args:
    cases: one for each N.
    checks: p of the test that each rival has passed.
  """
  parts = [
    '# Draws from a fixed law',
    'Run: `python -m experiments.benchmarks.sampler`',
    f'Weights: exp of normal numbers of spread {SPREADS[0]:g}, float32. Calls '
    'follow each other, and each draws with new random numbers. A rival with a '
    'time under "build" keeps what it built; the others begin anew in each '
    'call. After so many calls isjax, its build included, has taken less '
    'time. Total variation: between the law that the draws really follow, '
    'random numbers of the computer included, and the weights in float64; of '
    f'{_TREE.name} it is the law as published, in float32. Never drawable: '
    'items with a weight that no random number leads to. A dash: not done, or '
    'not known, as from tables that cannot be read.',
    '![Seconds and total variation against N](sampler.png)',
  ]
  for case in cases:
    kinds = [k for k in rivals.CONTENDERS if k in (*case.draws, *rivals.PEERS)]
    lines = [_cells(kind, case) for kind in kinds]
    parts += [f'## N = {case.num_items:,}', markdown(_HEADER, lines)]
  passed = '; '.join(f'{kind.name} {p:.2g}' for kind, p in checks.items())
  parts += [
    '## Builds',
    timing.table([r for case in cases for r in case.build_rows().values()]),
    '## Epochs',
    'N draws by one call, which the sampler of torch hands out one by one.',
    timing.table([r for case in cases for r in case.epoch_rows().values()]),
    '## Trees of sums',
    'Draws and updates of weights that change, in place.',
    timing.table([row for case in cases for row in case.tree_rows()]),
    '## Laws under heavier weights',
    f'Exp of normal numbers of spread {SPREADS[1]:g}: total variation; items '
    'never drawable.',
    _heavier(cases),
    '## Checks',
    'Before it was timed, each drew a few items by their weights, with these '
    f'p of chi-square: {passed}.',
  ]
  return '\n\n'.join(parts)


def content(cases: Sequence[Case]) -> dict[str, Any]:
  """Returns the result for programs; seconds."""
  return {
    'rows': [row.record() for case in cases for row in case.rows()],
    'exactness': [
      {'num_items': case.num_items, 'spread': spread, 'rival': kind.name}
      | found._asdict()
      for case in cases
      for spread, known in zip(SPREADS, case.exactness, strict=True)
      for kind, found in known.items()
    ],
  }
