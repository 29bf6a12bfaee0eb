"""Tables and figure of the study of norms."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.tables import markdown

_GLOSSARY = """\
How to read: one network per norm (seed {seed}) is trained by uniform draws, in
batches of {batch_size} from {num_examples} digits. At some steps its gradient
is estimated from batches of b independent draws in two ways: drawn by
importance (p by the logit-gradient norm in evaluation mode, {mix:g} mixed with
the uniform law) and weighted by 1 / (N p), and drawn uniformly. *Bias*: the
distance of the two expectations over the length of the second, from {draws:,}
draws each, ± standard error; what noise adds to a length is taken off. *Floor*:
where there is no bias, noise alone shows more than this in about one of 30
measurements. *Statistics*: those that the norm goes by in the pass that is
differentiated. If they are of the example, or running ones that stay as they
are, an example's loss depends on that example alone, and the gradient is the
same for any b; if they are of the batch, it is not. *Loss*: in evaluation mode.
*tau*: how far p is from uniform; 1 for not at all."""
_FULL = """\
Under batch statistics the gradient that uniform draws estimate depends on b
too. The distance of it, and of the importance-sampled one, from the gradient of
all {num_examples} examples as one batch, over the length of the latter:"""


def sections(results: list[dict[str, Any]]) -> list[str]:
  """Returns the glossary, the biases, and what they amount to."""
  config = results[0]['config']
  draws = config['num_repeats'] * config['examples_per_repeat']
  rows = _rows(results)
  parts = [
    _GLOSSARY.format(draws=draws, **config),
    _bias_table(rows),
    _verdict(rows),
  ]
  of_batch = [row for row in rows if row['batch_size'] is not None]
  if of_batch:
    parts += [_FULL.format(**config), _full_table(of_batch)]
  return parts


def _rows(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
  return [
    {'norm': result['config']['norm']} | row
    for result in results
    for row in result['rows']
  ]


def _cells(row: dict[str, Any], prefix: str = '') -> list[str]:
  """Bias and floor."""
  bias, error, floor = (
    row[prefix + name] for name in ('bias', 'standard_error', 'floor')
  )
  below = bias <= floor
  number = '< floor' if below else f'{100 * bias:.1f} ± {100 * error:.1f}'
  return [number, f'{100 * floor:.1f}']


def _bias_table(rows: list[dict[str, Any]]) -> str:
  header = 'norm', 'statistics', 'step', 'loss', 'tau', 'b', 'bias, %', 'floor'
  lines = [
    [
      row['norm'],
      row['statistics'],
      str(row['step']),
      f'{row["loss"]:.3g}',
      f'{row["tau"]:.2f}',
      str(row['batch_size'] or 'any'),
      *_cells(row),
    ]
    for row in rows
  ]
  return markdown(header, lines)


def _full_table(rows: list[dict[str, Any]]) -> str:
  header = 'step', 'b', 'uniform, %', 'floor', 'importance, %', 'floor'
  lines = [
    [
      str(row['step']),
      str(row['batch_size']),
      *_cells(row, 'uniform_from_full_'),
      *_cells(row, 'sampled_from_full_'),
    ]
    for row in rows
  ]
  return markdown(header, lines)


def _verdict(rows: list[dict[str, Any]]) -> str:
  """What a reader should take from the table."""
  trained = [
    row['bias'] for row in rows if row['batch_size'] and row['step'] > 0
  ]
  alone = [row for row in rows if row['batch_size'] is None]
  sentences = []
  if trained:
    sentences.append(
      'With batch statistics, once training has begun, the weighted gradient '
      f'is off by {min(trained):.0%} to {max(trained):.0%}, which no number of '
      'steps averages out.'
    )
  if alone:
    above = sum(row['bias'] > row['floor'] for row in alone)
    sentences.append(
      "Where a loss is its example's own, "
      f'{above} of {len(alone)} measurements are above their floors.'
    )
  return ' '.join(sentences)


def figures(results: list[dict[str, Any]]) -> dict[str, plt.Figure]:
  """Returns one figure: the bias by norm, step and batch size."""
  panels: dict[tuple[str, str], list[dict[str, Any]]] = {}
  for row in _rows(results):
    panels.setdefault((row['norm'], row['statistics']), []).append(row)
  figure, axes = plt.subplots(
    1,
    len(panels),
    figsize=(1.4 + 2.6 * len(panels), 3.8),
    sharey=True,
    squeeze=False,
    layout='constrained',
  )
  handles = {}
  for axis, (names, rows) in zip(axes[0], panels.items(), strict=True):
    _draw_biases(axis, rows)
    axis.set_title('{}\nstatistics: {}'.format(*names), fontsize=10)
    marks, labels = axis.get_legend_handles_labels()
    handles |= dict(zip(labels, marks, strict=True))
  axes[0, 0].set_ylabel("bias, % of the gradient's length")
  axes[0, 0].set_ylim(bottom=-2)  # dots at 0 are whole
  figure.legend(
    handles.values(),
    handles,
    loc='outside lower center',
    ncols=len(handles),
    frameon=False,
  )
  return {'bias': figure}


def _draw_biases(axis, rows: list[dict[str, Any]]) -> None:
  """Dots with error bars, side by side at each step, over grey floors."""
  steps = list(dict.fromkeys(row['step'] for row in rows))
  sizes = list(dict.fromkeys(row['batch_size'] for row in rows))
  colors = plt.get_cmap('viridis_r')(np.linspace(0.2, 0.9, len(sizes)))
  width = 0.84 / len(sizes)
  for i, size in enumerate(sizes):
    chosen = [row for row in rows if row['batch_size'] == size]
    bias, error, floor = (
      [100 * row[name] for row in chosen]
      for name in ('bias', 'standard_error', 'floor')
    )
    places = np.arange(len(steps)) + width * (i - (len(sizes) - 1) / 2)
    axis.bar(places, floor, min(0.9 * width, 0.3), color='0.85', label='floor')
    axis.errorbar(
      places,
      bias,
      error,
      fmt='o',
      ms=5,
      color='black' if size is None else colors[i],
      label=f'b = {size or "any"}',
    )
  axis.set_xticks(range(len(steps)), steps)
  axis.set_xlabel('training step')
  axis.grid(axis='y', alpha=0.25)
  axis.spines[['top', 'right']].set_visible(False)
