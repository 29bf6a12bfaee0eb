"""Packaging of isjax; tool settings live in pyproject.toml."""

import pathlib
import re

import setuptools

ROOT = pathlib.Path(__file__).resolve().parent
VERSION = re.search(
  r"^__version__ = '(.+)'$", (ROOT / 'isjax/__init__.py').read_text(), re.M
).group(1)

setuptools.setup(
  name='isjax',
  version=VERSION,
  description='Importance sampling for training deep networks, in JAX',
  long_description=(ROOT / 'README.md').read_text(),
  long_description_content_type='text/markdown',
  author='The isjax authors',
  license='Apache-2.0',
  packages=setuptools.find_namespace_packages(include=['isjax', 'isjax.*']),
  package_data={'isjax': ['py.typed']},
  python_requires='>=3.11',
  install_requires=[
    'jax>=0.10.0',
    # flax.nnx of 0.12.8 needs a name that jax 0.11.1 removed.
    'flax>=0.12.8; python_version < "3.12"',
    'flax>=0.12.9; python_version >= "3.12"',
    'optax>=0.2.8',
    'numpy>=2.0',
    'ml-collections>=1.0.0',
    'tensorflow-datasets>=4.9.9',
    # tensorflow-datasets decodes images with pillow and prepares data with
    # importlib_resources; it declares neither.
    'pillow>=10.0',
    'importlib_resources>=6.0; python_version < "3.12"',
    'scikit-learn>=1.5',  # ships the digits
    'scipy>=1.13',  # statistics of the tables
    'absl-py>=2.1',
    'markdown-it-py>=2.2',
    'orbax-checkpoint>=0.12.8',
    'matplotlib>=3.9',
    'rich>=13.7',
  ],
  extras_require={
    'test': [
      'hypothesis>=6.100',
      'pytest>=8.2',
      'pytest-xdist>=3.6',
      'ruff>=0.15',
      'tensorboardX>=2.6.2',
    ],
    'bench': [
      'absgd>=0.0.1',
      'flashbax>=0.1.3',
      'grain>=0.2.18',
      'opacus>=1.5.2',
      'torch>=2.6',
      'torchdata>=0.11.0',
      'vose>=0.2.5',
    ],
    'cuda13': ['jax[cuda13]>=0.10.0'],
    'tpu': ['jax[tpu]>=0.10.0'],
    'prepare': ['tensorflow-cpu>=2.18'],
    'tensorboard': ['tensorboardX>=2.6.2'],
  },
  classifiers=[
    'Development Status :: 4 - Beta',
    'Intended Audience :: Science/Research',
    'License :: OSI Approved :: Apache Software License',
    'Programming Language :: Python :: 3.11',
    'Programming Language :: Python :: 3.12',
    'Topic :: Scientific/Engineering :: Artificial Intelligence',
    'Typing :: Typed',
  ],
)
