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
  name: str, split: str, *, data_dir: str | os.PathLike | None = None
) -> tuple[Batch, Metadata]:
  """Loads one split of a data set onto the default device.

  The name is looked up, in this order, among the embedded sets 'digits' and
  'synthetic', as the file NAME.npz in the data folder, as FILE/NAME, one of
  the sets of features in FILE.npz there, and as a prepared set of
  tensorflow-datasets, NAME[/CONFIG][:VERSION], in the folder TFDS_DATA_DIR
  (else ~/tensorflow_datasets). Nothing is ever downloaded.

  Args:
    name: of the data set.
    split: 'train' or 'test'.
    data_dir: the folder of .npz files; the environment variable
      ISJAX_DATA_DIR where it is None.

  Returns:
    Batch of inputs u8[N, H, W, C], or features f32[N, F], and targets i32[N],
    without record weights, and its Metadata. Scale images by
    `rescale(metadata.max_value)` inside the step; features are used as they
    are.

  Raises:
    ValueError: for a name that is nowhere, which lists the names that are, or
      a file that does not hold what it must.
    FileNotFoundError: where the data folder does not exist, or
      tensorflow-datasets knows the name but its data is not prepared.
    ImportError: where tensorflow-datasets is needed and not installed.
  """
  _validate.one_of(SPLITS, split=split)
  if name in EMBEDDED:
    return EMBEDDED[name](split)
  folder = _data_folder(data_dir)
  if folder is not None and (folder / f'{name}.npz').is_file():
    return npz.load(folder / f'{name}.npz', split)
  file, _, member = name.rpartition('/')
  if folder is not None and file and (folder / f'{file}.npz').is_file():
    return tabular.load(folder / f'{file}.npz', member, split)
  if not tfds.is_known(name):
    raise ValueError(_unknown(name, folder))
  return tfds.load(name, split)


def _data_folder(data_dir: str | os.PathLike | None) -> pathlib.Path | None:
  given = data_dir or os.environ.get('ISJAX_DATA_DIR')
  if not given:
    return None
  folder = pathlib.Path(given).expanduser()
  if not folder.is_dir():
    source = 'data_dir' if data_dir else 'ISJAX_DATA_DIR'
    raise FileNotFoundError(
      f'{source} must name a folder of .npz files; got {str(folder)!r}.'
    )
  return folder


def _unknown(name: str, folder: pathlib.Path | None) -> str:
  """Says that a name is nowhere, and which names are."""
  stems = sorted(path.stem for path in folder.glob('*.npz')) if folder else []
  library = tfds.known_names()
  close = difflib.get_close_matches(name, [*EMBEDDED, *stems, *library], n=1)
  hint = f' Did you mean {close[0]!r}?' if close else ''
  where = f'in {folder}' if folder else 'in the folder ISJAX_DATA_DIR (not set)'
  return (
    f'no data set is called {name!r}.{hint}\nThere are:\n'
    f'  embedded: {", ".join(EMBEDDED)}\n'
    f'  NAME.npz {where}: {", ".join(stems) or "none"}\n'
    f'  tensorflow-datasets: {len(library)} names, prepared in {tfds.root()}'
  )
