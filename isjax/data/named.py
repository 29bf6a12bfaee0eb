"""Finds a data set by its name: embedded, NAME.npz or tensorflow-datasets."""

import difflib
import os
import pathlib

from isjax import _validate
from isjax.data import digits, npz, synthetic, tabular, tfds
from isjax.data.metadata import SPLITS, Metadata
from isjax.types import Batch

# Sources that need no file of the user's: name -> (split) -> (Batch, Metadata).
EMBEDDED = {'digits': digits.load, 'synthetic': synthetic.load}


def load(
  name: str,
  split: str,
  *,
  data_dir: str | os.PathLike | None = None,
  record_weights: str | None = None,
  max_length: int = 512,
) -> tuple[Batch, Metadata]:
  """Loads one split of a data set onto the default device.

  The name is looked up, in this order, among the embedded sets 'digits' and
  'synthetic', as the file NAME.npz in the data folder, as FILE/NAME, one of
  the sets of features in FILE.npz there, and as a prepared set of
  tensorflow-datasets, NAME[/CONFIG][:VERSION], in the folder TFDS_DATA_DIR
  (else ~/tensorflow_datasets). Nothing is ever downloaded; for that there is
  `python -m isjax.data.prepare NAME`.

  Args:
    name: of the data set.
    split: 'train' or 'test'.
    data_dir: the folder of .npz files; the environment variable
      ISJAX_DATA_DIR where it is None.
    record_weights: the column W that the examples are weighted by, numbers
      >= 0: the arrays W_train and W_test of NAME.npz, NAME_W of FILE.npz, or a
      feature of a prepared set. None where all examples count the same.
    max_length: T, the number of bytes that a text is cut to or filled up to.

  Returns:
    Batch of inputs, of targets i32[N] and of record weights f32[N] where there
    are any, and its Metadata. Inputs are images u8[N, H, W, C], to be scaled
    by `rescale(metadata.max_value)` inside the step; features f32[N, F], see
    `standardise`; or texts u8[N, T], the bytes of their UTF-8, filled up with
    zeros: `inputs > 0` masks what is text.

  Raises:
    ValueError: for a name that is nowhere, which lists the names that are, or
      a file that does not hold what it must.
    FileNotFoundError: where the data folder does not exist, or
      tensorflow-datasets knows the name but its data is not prepared.
    ImportError: where tensorflow-datasets is needed and not installed.
  """
  _validate.one_of(SPLITS, split=split)
  _validate.positive_integers(max_length=max_length)
  if name in EMBEDDED:
    if record_weights is not None:
      raise ValueError(
        f'{name!r} has no column of record weights; got '
        f'record_weights={record_weights!r}. Make them by '
        '`isjax.data.record_weights`.'
      )
    return EMBEDDED[name](split)
  folder = npz.data_folder(data_dir)
  if folder is not None and (folder / f'{name}.npz').is_file():
    return npz.load(folder / f'{name}.npz', split, record_weights)
  file, _, member = name.rpartition('/')
  if folder is not None and file and (folder / f'{file}.npz').is_file():
    return tabular.load(folder / f'{file}.npz', member, split, record_weights)
  if not tfds.is_known(name):
    raise ValueError(_unknown(name, folder))
  return tfds.load(
    name, split, record_weights=record_weights, max_length=max_length
  )


def _unknown(name: str, folder: pathlib.Path | None) -> str:
  """Says that a name is nowhere, and which names are."""
  stems = sorted(path.stem for path in folder.glob('*.npz')) if folder else []
  library = tfds.known_names()
  close = difflib.get_close_matches(name, [*EMBEDDED, *stems, *library], n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  where = f'in {folder}' if folder else 'in the folder ISJAX_DATA_DIR (not set)'
  return (
    f'no data set is called {name!r}.{hint} There are: '
    f'embedded: {", ".join(EMBEDDED)}; '
    f'NAME.npz {where}: {", ".join(stems) or "none"}; '
    f'tensorflow-datasets: {len(library)} names, prepared in {tfds.root()}.'
  )
