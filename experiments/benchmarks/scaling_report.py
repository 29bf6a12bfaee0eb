"""What the scaling study found, in tables."""

from collections.abc import Sequence
import math
from typing import Any

import numpy as np

from experiments.benchmarks import (
  scaling_cases,
  scaling_plan,
  scaling_staleness,
)
from experiments.benchmarks.scaling_cases import BATCH, NUM_DRAWS, Found
from experiments.benchmarks.scaling_plan import MAX_INDEX, Kind, Run
from experiments.tables import markdown

Content = dict[str, Any]

PLANNED = (10**9, 10**10, 10**11)
RUN = Run()
RATIOS = (0.1, 1.0, 10.0)  # mean score over the initial one
MIX = 0.1  # of `isjax.memory`
_MEMORY = ('octets', 'temporary', 'peak')
EPOCHS = (0.01, 0.1, 0.3, 1, 3, 10)


def kinds(content: Content) -> dict[str, Kind]:
  """Returns what each way to draw takes per example, from the measurements.

  Bytes and seconds are those of the largest N on one device. A memory that
  rebuilds its table holds the old one meanwhile; that sum is of single parts.
  It draws by quota alone. What is sent is that of the steps on the most
  devices of one process.
  """
  most = max(
    (part for part in content['parts'] if part['processes'] == 1),
    key=lambda part: part['devices'],
  )
  largest = content['sizes'][-1]
  size, table, tree = (largest[k] for k in ('num_items', 'table', 'tree'))
  steps = largest['steps']

  def kind(law, held, peak, seconds):
    words, scalars = (
      scaling_plan.traffic(
        most['programs'][f'step, {law}, {form}']['crossings'],
        scaling_cases.gradient_octets(),
        BATCH,
      ).words
      for form in ('global', 'quota')
    )
    return Kind(
      held / size, peak / size, seconds / size, words, BATCH * scalars
    )

  fixed, memory = steps['record_weighted'], steps['memory']
  build = table['build']['median']
  own = memory['octets'] - tree['octets']  # what is remembered
  held = own + table['octets']
  rebuilding = held + 4 * size + table['temporary'] + table['octets']
  return {
    'fixed law': kind('fixed law', fixed['octets'], _peak(fixed, table), build),
    'memory, tree': kind(
      'memory', memory['octets'], 2 * memory['octets'], tree['build']['median']
    ),
    'memory, rebuilt tables': kind('memory', held, rebuilding, build)._replace(
      words=math.nan
    ),
  }


def _peak(fixed: Found, table: Found) -> int:
  """Of a start: the target law, and the build from another array."""
  law = fixed['octets'] - table['octets']
  return 2 * law + table['octets'] + table['temporary']


def plans(content: Content) -> list[dict[str, Any]]:
  """Returns a line for each N to be planned and each way to draw."""
  return [
    {'num_items': size, 'kind': name} | scaling_plan.plan(size, kind, RUN)
    for size in PLANNED
    for name, kind in kinds(content).items()
  ]


def _times(found: Found, unit: float = 1e6) -> str:
  times = (unit * found[key] for key in ('minimum', 'median'))
  return ' / '.join(f'{t:,.0f}' if t >= 100 else f'{t:.3g}' for t in times)


def _by_size(sizes: Sequence[Found]) -> str:
  header = (
    'N',
    'table: build, ms',
    'ns an item',
    f'{NUM_DRAWS} draws, us',
    'tree: build, ms',
    f'{NUM_DRAWS} draws, us',
    f'{BATCH} updates, us',
    'step: uniform, us',
    'record_weighted',
    'memory',
  )
  lines = [
    (
      f'{found["num_items"]:.0e}',
      _times(found['table']['build'], 1e3),
      f'{1e9 * found["table"]["build"]["median"] / found["num_items"]:.0f}',
      _times(found['table']['draw']),
      _times(found['tree']['build'], 1e3),
      _times(found['tree']['draw']),
      _times(found['tree']['update']),
      *(_times(step['step']) for step in found['steps'].values()),
    )
    for found in sizes
  ]
  return markdown(header, lines)


def _memory(found: Found) -> str:
  """Bytes per item of one N, the same to 1 % at all."""
  header = ('what', 'kept', 'temporary, by the compiler', 'growth')
  size, steps = found['num_items'], found['steps']
  parts = {
    'alias.build': found['table'],
    'sum_tree.build': found['tree'],
    'start of record_weighted': steps['record_weighted'],
    'start of memory': steps['memory'],
  }
  lines = []
  for name, part in parts.items():
    known = {key: part[key] for key in _MEMORY if key in part}
    if known['peak'] < known['octets']:
      del known['peak']
    cells = [f'{known[k] / size:.1f}' if k in known else '-' for k in _MEMORY]
    lines.append((name, *cells))
  return markdown(header, lines)


def _title(part: Found) -> str:
  """D, and over how many processes."""
  several = part['processes'] > 1
  return f'D = {part["devices"]}' + (
    f', {part["processes"]} processes' if several else ''
  )


def sent(part: Found, name: str) -> float:
  """Returns the bytes that each of the devices sends for one call."""
  pairs = part['programs'][name]['crossings']
  return scaling_plan.around(pairs) * (1 - 1 / part['devices'])


def _work(parts: Sequence[Found]) -> str:
  header = ('us of all devices', *map(_title, parts))
  lines = [
    (name, *(_times(part['programs'][name]) for part in parts))
    for name in parts[0]['programs']
  ]
  return markdown(header, lines)


def _crossing(parts: Sequence[Found]) -> str:
  single = [part for part in parts if part['processes'] == 1]
  several = [part for part in parts if part['processes'] > 1]
  header = (
    'bytes sent by a device',
    *map(_title, single),
    *(f'{_title(part)}: loopback / reckoned, of all' for part in several),
  )
  lines = []
  for name in parts[0]['programs']:
    cells = [f'{sent(part, name):,.0f}' for part in single]
    for part in several:
      reckoned = part['devices'] * sent(part, name)
      found = part['programs'][name]['loopback']
      cells.append(f'{found:,} / {reckoned:,.0f}')
    lines.append((name, *cells))
  return markdown(header, lines)


def _amount(octets: float) -> str:
  """Bytes in the unit that leaves one to three digits before the point."""
  if math.isnan(octets):
    return '-'
  for unit in ('B', 'kB', 'MB'):
    if octets < 1000:
      return f'{octets:.3g} {unit}'
    octets /= 1000
  return f'{octets:.3g} GB'


def _plan(lines: Sequence[Found]) -> str:
  header = (
    'N',
    'draws from',
    'hosts',
    'held, a host',
    'peak, a host',
    'build, s a host',
    'draw sent globally, a step',
    'by quota',
    'gradient',
    'steps an epoch',
  )
  cells = [
    (
      f'{line["num_items"]:.0e}',
      line['kind'],
      f'{line["hosts"]}',
      *(_amount(line[key]) for key in ('held', 'peak')),
      f'{line["seconds"]:.3g}',
      *(
        _amount(line[f'sent_{key}'])
        for key in ('globally', 'by_quota', 'gradient')
      ),
      f'{line["epoch"]:.3g}',
    )
    for line in lines
  ]
  return markdown(header, cells)


def _unseen() -> str:
  header = (
    'mean score / initial',
    *(f'{epochs:g} epochs' for epochs in EPOCHS),
  )
  lines = [
    (
      f'{ratio:g}',
      *(
        _share(scaling_staleness.unseen_after(epochs, ratio, MIX))
        for epochs in EPOCHS
      ),
    )
    for ratio in RATIOS
  ]
  return markdown(header, lines)


def _share(number: float) -> str:
  return f'{number:.2g}' if number >= 1e-6 else '< 1e-6'


def _simulated(lines: Sequence[Found]) -> str:
  header = (
    'scores forget in',
    'after',
    'without a score',
    'age, over draws',
    'over examples',
    'second moment / least',
    'uniform / least',
  )
  cells = [
    (
      f'{line["forgetting_epochs"]:g} epochs',
      f'{line["epochs"]:g}',
      f'{line["unseen"]:.3f}',
      f'{line["age_over_draws"]:.2f}',
      f'{line["age_over_examples"]:.2f}',
      f'{line["variance"]:.2f}',
      f'{line["uniform"]:.2f}',
    )
    for line in lines
  ]
  return markdown(header, cells)


def _long_run() -> str:
  """Ages in epochs, by the closed form, of the simulation's law."""
  drift = scaling_staleness.SIMULATED
  law = np.float64(scaling_cases.scores(drift.num_items)) ** drift.spread
  law = (1 - MIX) * law / law.sum() + MIX / len(law)
  ages = scaling_staleness.mean_age(law, drift.batch_size)
  epoch = drift.num_items / drift.batch_size
  return '{:.2f} over draws and {:.2f} over examples'.format(
    *(age / epoch for age in ages)
  )


def document(content: Content) -> str:
  """Returns the result as Markdown."""
  sizes, parts = content['sizes'], content['parts']
  left_out = '; '.join(f'{n}: {why}' for n, why in content['left_out'].items())
  shared = parts[0]['num_items']
  return '\n\n'.join(
    [
      '# Scaling: N, devices, hosts',
      'Run: `python -m experiments.benchmarks.scaling`',
      '![Time, memory, work and bytes; hosts; examples without a '
      'score](scaling.png)',
      '## N on one device',
      'Lognormal weights, float32. A step is that of an MLP '
      f'{scaling_cases.WIDTH}-{scaling_cases.HIDDEN[0]}-'
      f'{scaling_cases.NUM_CLASSES} on b = {BATCH}, dispatched one by one; '
      f'example i has row i modulo {scaling_cases.ROWS}, so that rows take the '
      f'same memory at each N. Left out: {left_out or "nothing"}.',
      _by_size(sizes),
      f'Bytes per item at N = {sizes[-1]["num_items"]:.0e}; what is kept and '
      'what the compiler reserves is nearly the same at every N. Growth: of '
      'the process at its largest during the call, over what it had before, '
      'result included; a dash where that is less than is kept, for the '
      'process had memory left of earlier calls, and other growth may lack as '
      'much. The start makes a sampler and its first training state, whose '
      'arrays are then copied.',
      _memory(sizes[-1]),
      '## Devices',
      f'N = {shared:,}. All devices share one core, so these are the total '
      'work of all of them, in all processes, and no speed-up: what stays the '
      'same from left to right would be divided by D on D cores. A draw is of '
      f'{NUM_DRAWS}, a step of b = {BATCH}. Two processes on one core take '
      'turns to wait for each other, which counts as work where it is done '
      'by polling.',
      _work(parts),
      'Bytes by the compiled program, in a ring: 2 S (D - 1) / D for an '
      'all-reduce of S bytes, S (D - 1) / D for a reduce-scatter or an '
      'all-gather. The gradient has '
      f'{scaling_cases.gradient_octets():,} bytes, a row '
      f'{4 * scaling_cases.WIDTH + 4}. With two processes, which send by gloo, '
      'also the bytes that the loopback carried during the call (the median; '
      'headers of packets, and whatever else used it, included), beside those '
      'reckoned for all devices: what it carried more was not looked into: '
      'gloo need not go around a ring.',
      _crossing(parts),
      '## A plan for 1e9 to 1e11 examples',
      'Arithmetic from the tables above; nothing of it was run. '
      f"{RUN.host / 1e9:g} GB of each host (half of 64 GB) are the sampler's, "
      f'a host is one device, b = {RUN.batch_size} over all of them, a row is '
      f'{RUN.row} bytes and the gradient {RUN.gradient / 1e6:g} MB. '
      'Rows are read from files. Hosts: as many as hold the peak while a table '
      'is made, and have 2^30 examples or less. The peak is a sum of parts: '
      'of a fixed law, the target law twice, the table, and what its build '
      'takes; of a tree, the state twice, for a training state starts as a '
      'copy; of rebuilt tables, the old one, the new one, the law and what the '
      'build takes. What a host sends in a step '
      'for a global draw has the rows drawn in it; by quota they stay.',
      _plan(content['plan']),
      f'What stands in the way today: an index is an i32, so {MAX_INDEX:,} '
      'examples have one, and a tree drawn globally has 2^30 leaves; beyond '
      'that an example would have to be named by its host and its place there, '
      'as draws by quota do within a host. Record weights and laws are given '
      'whole, and are checked on every process: 4 bytes or more per example of '
      'all hosts, so fixed laws end where one host cannot hold that. The '
      'memory by quota without record weights starts on each host by itself.',
      '## How old scores are',
      'In the long run the score that a draw goes by is N / b steps old on '
      'average, one epoch of draws, whatever the law; the score of an example, '
      'up to 1 / mix epochs. Until then, the share of examples that never had '
      f'one, in closed form (mix {MIX:g}), by the mean score over the initial '
      'one:',
      _unseen(),
      'So a run of less than an epoch draws almost blindly: where N is '
      'much larger than steps times b, a memory of single scores has nothing '
      'to remember, and a pool (`presample`) or a fixed law has to do it.',
      'A memory of 4096 scores whose logarithms drift, normal with standard '
      'deviation 1, forgetting all but 1/e in so many epochs; b = 64, ages in '
      f'epochs. By the closed form, scores that stay end at {_long_run()}. '
      'Second moment: of the estimate of the mean score, over the least that a '
      'law has, beside that of uniform draws on the same scores. Where it is '
      'the larger of the two, what is remembered is too old to draw by.',
      _simulated(content['simulated']),
    ]
  )
