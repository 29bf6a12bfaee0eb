"""Studies: what a config computes that is no training sweep.

A config asks for one by its name, config['study'].
"""

from experiments.studies import (
  boundary,
  early_law,
  gradient_variance,
  normalisation,
  robust_gradient,
  score_quality,
  weighted_epochs,
)
from experiments.studies.study import Study, UnavailableError, run

STUDIES: dict[str, Study] = {
  'boundary': boundary.STUDY,
  'early_law': early_law.STUDY,
  'gradient_variance': gradient_variance.STUDY,
  'normalisation': normalisation.STUDY,
  'robust_gradient': robust_gradient.STUDY,
  'score_quality': score_quality.STUDY,
  'weighted_epochs': weighted_epochs.STUDY,
}

__all__ = ['STUDIES', 'Study', 'UnavailableError', 'run']
