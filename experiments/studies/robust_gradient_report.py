"""Tables and figures of the study of robust gradients."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np

from experiments.tables import markdown

UNIFORM = 'uniform'
TILTED = 'tilted logit-gradient norm'
OPTIMAL = 'tilted gradient norm'
# What the laws other than the uniform one are proportional to, in order.
SCORES = 'loss', 'logit-gradient norm', 'gradient norm', TILTED, OPTIMAL
# The laws of the figures; exact norms would hardly be told from their bounds.
_COLORS = {
  UNIFORM: '0.35',
  'loss': '#d95f02',
  'logit-gradient norm': '#7570b3',
  TILTED: '#e7298a',
}

_GLOSSARY = """\
How to read: ABSGD descends F = λ log mean exp(l/λ). Its step is the mean over
{batch_size} draws of a law q of exp(l/λ) / (N q u) times the gradient of the
loss l, where u is the mean of exp(l/λ). At some steps of the plain training of
one network (seed {seed}) the parameters are held fixed, and the step is
compared with the exact gradient of F. *γ*: share of the batch in the moving
average u; 1 is the softmax over the batch. *Exact u*: the limit of small γ,
unbiased, its variance a sum over all examples. For other γ noise and bias come
from {num_chains} chains of {num_batches} batches by the transforms themselves,
after u has settled (± standard error of the chains). *Noise*: trace of the
step's covariance; relative to that of uniform draws with the same γ. *Bias*:
length of the expected error in percent of the gradient of F. *Unweighted u*:
importance weights in the gradient alone, not in u. *Tilted*: multiplied by
exp(l/λ); the tilted gradient norm is the best law where u is known. *Mixed*:
{mix:.0%} of the draws are uniform. The gradient norm takes a backward pass
per example, the other scores take a forward pass. rows.csv has every law at
every λ."""


def sections(results: list[dict[str, Any]]) -> list[str]:
  """Returns the glossary, and for each training set its tables in words."""
  parts = [_GLOSSARY.format(**results[0]['config'])]
  for result in results:
    parts += [
      f'## {result["config"]["data"]}',
      _origin(result),
      _noise_table(result),
      _bias_table(result),
      _verdict(result),
    ]
  return parts


def _distinct(result: dict[str, Any], field: str) -> list[Any]:
  return list(dict.fromkeys(row[field] for row in result['rows']))


def _select(result: dict[str, Any], **fields: Any) -> list[dict[str, Any]]:
  """The rows that have these values."""
  return [
    row for row in result['rows'] if all(row[k] == v for k, v in fields.items())
  ]


def _laws(result: dict[str, Any]) -> list[tuple[str, float]]:
  return list(dict.fromkeys((r['law'], r['mix']) for r in result['rows']))


def _shown(result: dict[str, Any]) -> list[tuple[str, float]]:
  return [(law, mix) for law, mix in _laws(result) if law in _COLORS]


def _name(law: str, mix: float) -> str:
  return f'{law}, mixed' if mix else law


def _sharpest(result: dict[str, Any]) -> float:
  """The least positive temperature, or the first."""
  temperatures = _distinct(result, 'temperature')
  return min((t for t in temperatures if t > 0), default=temperatures[0])


def _origin(result: dict[str, Any]) -> str:
  losses = ', '.join(
    f'{_select(result, step=step)[0]["loss"]:.3f}'
    for step in _distinct(result, 'step')
  )
  steps = ', '.join(map(str, _distinct(result, 'step')))
  return (
    f'N = {result["num_examples"]}; mean loss {losses} at the training steps '
    f'{steps}.'
  )


def _noise_table(result: dict[str, Any]) -> str:
  """With the exact u: one line per law, one column per temperature."""
  temperatures = _distinct(result, 'temperature')
  steps = ' / '.join(map(str, _distinct(result, 'step')))
  header = ['q proportional to', *(f'λ = {t:g}' for t in temperatures)]
  lines = []
  for law, mix in _laws(result):
    cells = []
    for temperature in temperatures:
      rows = _select(
        result, law=law, mix=mix, temperature=temperature, gamma=0.0
      )
      cells.append(' / '.join(f'{row["relative_noise"]:.2g}' for row in rows))
    lines.append([_name(law, mix), *cells])
  return (
    f'Noise with the exact u, uniform = 1, at the training steps {steps}:\n\n'
    f'{markdown(header, lines)}'
  )


def _bias_table(result: dict[str, Any]) -> str:
  """With the moving u, at the sharpest temperature."""
  temperature = _sharpest(result)
  moving = [gamma for gamma in _distinct(result, 'gamma') if gamma]
  header = [
    'step',
    'q proportional to',
    *(f'bias %, γ = {gamma:g}' for gamma in moving),
    *(f'noise, γ = {gamma:g}' for gamma in moving),
    f'unweighted u: bias %, γ = {moving[-1]:g}',
    'the same, exact',
  ]
  lines = []
  for step in _distinct(result, 'step'):
    for law, mix in _shown(result):
      exact, *rows = _select(
        result, step=step, law=law, mix=mix, temperature=temperature
      )
      lines.append(
        [
          str(step),
          _name(law, mix),
          *(_percent(row, 'bias') for row in rows),
          *(_noise(row) for row in rows),
          _percent(rows[-1], 'wrong_bias'),
          f'{100 * exact["wrong_bias"]:.1f}',
        ]
      )
  return (
    f'Bias and relative noise with the moving u, λ = {temperature:g}:\n\n'
    f'{markdown(header, lines)}'
  )


def _percent(row: dict[str, Any], field: str) -> str:
  return f'{100 * row[field]:.1f} ± {100 * row[f"{field}_error"]:.1f}'


def _noise(row: dict[str, Any]) -> str:
  error = row['relative_noise'] * row['noise_error'] / row['noise']
  return f'{row["relative_noise"]:.2g} ± {error:.1g}'


def _verdict(result: dict[str, Any]) -> str:
  """What a reader should take from the tables."""
  temperature = _sharpest(result)
  mix = result['config']['mix']
  plain = _over_steps(result, UNIFORM, 0.0)
  tilted = _over_steps(result, TILTED, mix)
  wrong = [
    row['wrong_bias']
    for row in _select(result, law=TILTED, mix=mix, gamma=0.0)
    if row['temperature'] == temperature
  ]
  return (
    f'At λ = {temperature:g} the bias of uniform draws is, step after step, '
    f'{plain}; that of the mixed {TILTED} is {tilted}. Left out of u, its '
    'importance weights change the length of the step by '
    f'{", ".join(f"{100 * bias:.0f} %" for bias in wrong)}.'
  )


def _over_steps(result: dict[str, Any], law: str, mix: float) -> str:
  parts = []
  for gamma in _distinct(result, 'gamma'):
    if not gamma:
      continue
    rows = _select(
      result, law=law, mix=mix, gamma=gamma, temperature=_sharpest(result)
    )
    biases = ', '.join(f'{_percent(row, "bias")} %' for row in rows)
    parts.append(f'{biases} with γ = {gamma:g}')
  return '; '.join(parts)


def figures(results: list[dict[str, Any]]) -> dict[str, plt.Figure]:
  """Returns two figures: noise by law over λ, and bias over γ."""
  return {'noise': _noise_figure(results), 'bias': _bias_figure(results)}


def _noise_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """A row per training set, a column per step of training; exact u."""
  steps = _distinct(results[0], 'step')
  figure, axes = _grid(results, steps)
  for row, result in zip(axes, results, strict=True):
    for axis, step in zip(row, steps, strict=True):
      for law, mix in _shown(result):
        points = _select(result, step=step, law=law, mix=mix, gamma=0.0)
        points.sort(key=lambda point: 1 / point['temperature'])
        axis.plot(
          [1 / point['temperature'] for point in points],
          [point['relative_noise'] for point in points],
          **_style(law, mix),
        )
      axis.set_yscale('log')
    row[0].set_ylabel('noise, uniform = 1')
  temperatures = _distinct(results[0], 'temperature')
  for axis in axes[-1]:
    axis.set_xticks(
      [1 / t for t in temperatures], [f'{t:g}' for t in temperatures]
    )
    axis.set_xlabel('temperature λ, placed by 1/λ')
  _legend(figure, axes[0, 0])
  return figure


def _bias_figure(results: list[dict[str, Any]]) -> plt.Figure:
  """A row per training set, a column per step; at the sharpest λ."""
  steps = _distinct(results[0], 'step')
  figure, axes = _grid(results, steps)
  for row, result in zip(axes, results, strict=True):
    temperature = _sharpest(result)
    for axis, step in zip(row, steps, strict=True):
      for law, mix in _shown(result):
        _, *points = _select(
          result, step=step, law=law, mix=mix, temperature=temperature
        )
        _draw_bias(axis, points, 'bias', _style(law, mix))
        if mix and law == TILTED:
          style = _style(law, mix) | {
            'color': 'k',
            'label': f'{_name(law, mix)}, unweighted u',
          }
          _draw_bias(axis, points, 'wrong_bias', style)
      axis.set_xscale('log')
      axis.set_ylim(-4, 119)
    row[0].set_ylabel(f'bias at λ = {temperature:g}, %')
  for axis in axes[-1]:
    axis.set_xlabel('γ, share of the batch in u')
  _legend(figure, axes[0, 0])
  return figure


def _draw_bias(axis, points, field: str, style: dict[str, Any]) -> None:
  axis.errorbar(
    [point['gamma'] for point in points],
    [100 * point[field] for point in points],
    yerr=[100 * point[f'{field}_error'] for point in points],
    capsize=2,
    **style,
  )


def _style(law: str, mix: float) -> dict[str, Any]:
  """A law as it is has a dotted line; but the uniform one has no other."""
  solid = mix or law == UNIFORM
  return {
    'color': _COLORS[law],
    'ls': '-' if solid else ':',
    'marker': 'o' if solid else 's',
    'ms': 4,
    'label': _name(law, mix),
  }


def _grid(
  results: list[dict[str, Any]], steps: list[int]
) -> tuple[plt.Figure, np.ndarray]:
  """An axis per training set and step of training, with its title."""
  figure, axes = plt.subplots(
    len(results),
    len(steps),
    figsize=(1 + 3.7 * len(steps), 1.2 + 2.9 * len(results)),
    sharex=True,
    sharey='row',
    squeeze=False,
    layout='constrained',
  )
  for row, result in zip(axes, results, strict=True):
    for axis, step in zip(row, steps, strict=True):
      axis.set_title(
        f'{result["config"]["data"]}, training step {step}', fontsize=10
      )
      axis.grid(alpha=0.25)
      axis.spines[['top', 'right']].set_visible(False)
  return figure, axes


def _legend(figure: plt.Figure, axis) -> None:
  figure.legend(
    *axis.get_legend_handles_labels(),
    loc='outside upper center',
    ncols=4,
    frameon=False,
    fontsize=9,
  )
