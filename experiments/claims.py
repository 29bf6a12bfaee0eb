"""What a paper claims, and what the runs of a sweep say to it.

A config's CLAIMS are tuples (claim, cell, other, metric): the claim holds where
the metric of the first cell is better than that of the other one at the level
of 95 %, seed by seed, and does not where it is worse; else it is undecided.
"""

from types import ModuleType
from typing import NamedTuple

from experiments.comparisons import METRICS, Row, compare, in_group
from experiments.settings import choose


class Claim(NamedTuple):
  """That a cell is better than another one by a metric.

  text:   the claim, a sentence without its full stop.
  cell:   that should be better.
  other:  the control.
  metric: of comparisons.METRICS.
  """

  text: str
  cell: str
  other: str
  metric: str


def of(module: ModuleType) -> list[Claim]:
  """Returns the claims of a config file.

  Raises:
    SettingsError: for a metric that there is not.
  """
  claims = [Claim(*claim) for claim in getattr(module, 'CLAIMS', ())]
  for claim in claims:
    choose(METRICS, claim.metric, 'CLAIMS: metric')
  return claims


def judge(claim: Claim, rows: dict[str, Row], group: str = '') -> str:
  """Returns a line of Markdown: the claim, whether it holds, and by how much.

  Args:
    claim: about two cells of the group.
    rows: by cell; of each the one that counts.
    group: as `comparisons.groups` has it.
  """
  place = f' ({group})' if group else ''
  cell, other = (in_group(group, name) for name in (claim.cell, claim.other))
  if cell not in rows or other not in rows:
    return f'- Not run{place}: {claim.text}.'
  metric = METRICS[claim.metric]
  compared = compare(rows[cell], rows[other], claim.metric)
  if compared.is_better:
    answer = 'Holds'
  elif compared.is_worse:
    answer = 'Does not hold'
  else:
    answer = 'Undecided'
  return (
    f'- {answer}{place}: {claim.text}. {metric.sentence} of "{claim.cell}" '
    f'{compared.phrase} that of "{claim.other}" (n = {compared.num_pairs}).'
  )
