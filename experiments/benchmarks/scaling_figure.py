"""The figure of the scaling study."""

from collections.abc import Mapping, Sequence
import pathlib

import matplotlib

matplotlib.use('Agg')
import matplotlib.pyplot as plt
import numpy as np

from experiments import artifacts
from experiments.benchmarks import scaling_report, scaling_staleness
from experiments.benchmarks.scaling_report import Content

# Safe for the colour-blind (Okabe and Ito, 2008).
_COLOURS = ('#000000', '#0072B2', '#E69F00', '#D55E00', '#009E73', '#CC79A7')
_COLOURS += ('#56B4E9', '#999999')


def figure(content: Content) -> plt.Figure:
  """Draws six panels: N, memory, work, bytes, hosts, and unseen examples."""
  drawn, axes = plt.subplots(2, 3, figsize=(15.5, 9), layout='constrained')
  _time(axes[0, 0], content)
  _memory(axes[0, 1], content)
  work, crossing = axes[0, 2], axes[1, 0]
  _work(work, content)
  _bytes(crossing, content)
  _hosts(axes[1, 1], content)
  _unseen(axes[1, 2])
  for axis in axes.flat:
    axis.grid(alpha=0.25)
    axis.legend(fontsize=8, ncols=2 if axis in (work, crossing) else 1)
  return drawn


def _lines(
  axis: plt.Axes, x: Sequence[float], lines: Mapping[str, Sequence[float]]
) -> None:
  for (name, y), colour in zip(lines.items(), _COLOURS, strict=False):
    dashed = 'quota' in name
    axis.plot(
      x, y, '--s' if dashed else '-o', color=colour, label=name, markersize=5
    )


def _time(axis, content):
  sizes = content['sizes']
  parts = {
    'table: build': ('table', 'build'),
    'table: 4096 draws': ('table', 'draw'),
    'tree: build': ('tree', 'build'),
    'tree: 4096 draws': ('tree', 'draw'),
    'tree: 128 updates': ('tree', 'update'),
  }
  lines = {
    name: [found[a][b]['minimum'] for found in sizes]
    for name, (a, b) in parts.items()
  }
  for name in ('uniform', 'record_weighted', 'memory'):
    lines[f'step: {name}'] = [
      found['steps'][name]['step']['minimum'] for found in sizes
    ]
  _lines(axis, [found['num_items'] for found in sizes], lines)
  axis.set(xscale='log', yscale='log', xlabel='examples N')
  axis.set(ylabel='processor seconds', title='one device, fastest round')


def _memory(axis, content):
  sizes = content['sizes']
  lines = {
    'table': [found['table']['octets'] for found in sizes],
    'table, and to build it': [
      found['table']['octets'] + found['table']['temporary'] for found in sizes
    ],
    'tree': [found['tree']['octets'] for found in sizes],
    'state of record_weighted': [
      found['steps']['record_weighted']['octets'] for found in sizes
    ],
    'state of memory': [found['steps']['memory']['octets'] for found in sizes],
  }
  _lines(axis, [found['num_items'] for found in sizes], lines)
  axis.set(xscale='log', yscale='log', xlabel='examples N')
  axis.set(ylabel='bytes', title='one device')


def _of_devices(axis, content, value):
  single = [part for part in content['parts'] if part['processes'] == 1]
  several = [part for part in content['parts'] if part['processes'] > 1]
  names = single[0]['programs']
  devices = [part['devices'] for part in single]
  lines = {name: [value(part, name) for part in single] for name in names}
  _lines(axis, devices, lines)
  for part in several:
    values = [value(part, name) for name in names]
    axis.scatter(
      [part['devices']] * len(values), values, marker='x', c=_COLOURS, zorder=3
    )
  axis.set(xscale='log', xlabel='devices D (cross: over two processes)')
  most = max(max(line) for line in lines.values())
  axis.set_ylim(top=50 * most)  # room for the legend
  axis.set_xticks(devices, map(str, devices), minor=False)
  axis.set_xticks([], minor=True)


def _work(axis, content):
  axis.set(yscale='log', ylabel='processor seconds of all devices')
  _of_devices(axis, content, lambda part, n: part['programs'][n]['minimum'])
  axis.set(title=f'N = {content["parts"][0]["num_items"]:,}, all on one core')


def _bytes(axis, content):
  axis.set_yscale('symlog', linthresh=10)
  axis.set(ylabel='bytes sent by a device')
  _of_devices(axis, content, scaling_report.sent)
  axis.set_ylim(bottom=-1)
  axis.set(title='by the compiled program, in a ring')


def _hosts(axis, content):
  lines = {}
  for line in content['plan']:
    lines.setdefault(line['kind'], []).append(line['hosts'])
  _lines(axis, scaling_report.PLANNED, lines)
  axis.set(xscale='log', yscale='log', xlabel='examples N')
  gigabytes = scaling_report.RUN.host / 1e9
  axis.set(ylabel=f'hosts, {gigabytes:g} GB each', title='plan: arithmetic')


def _unseen(axis):
  epochs = np.geomspace(0.01, 10, 100)
  for ratio, colour in zip(scaling_report.RATIOS, _COLOURS, strict=False):
    unseen = [
      scaling_staleness.unseen_after(e, ratio, scaling_report.MIX)
      for e in epochs
    ]
    label = f'mean score / initial one = {ratio:g}'
    axis.plot(epochs, unseen, color=colour, label=label)
  axis.set(xscale='log', xlabel='epochs of draws', ylim=(0, 1))
  axis.set(ylabel='share without a score', title='memory, mix .1: closed form')


def write(content: Content, path: pathlib.Path) -> None:
  """Writes the figure as PNG, and prints where it lies."""
  drawn = figure(content)
  with artifacts.atomic_write(path, 'wb') as file:
    drawn.savefig(file, dpi=140)
  plt.close(drawn)
  print(f'figure: {path}')
