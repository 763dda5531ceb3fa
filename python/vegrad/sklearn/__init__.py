"""vegrad for scikit-learn: diagnosis and cure of its perceptrons, and such on vegrad's core."""

try:
    import sklearn  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('vegrad.sklearn needs scikit-learn: pip install "vegrad[sklearn]"') from error

from vegrad.sklearn.diagnosis import diagnose
from vegrad.sklearn.estimators.mlp import MLPClassifier, MLPRegressor
from vegrad.sklearn.treatment import EstimatorCure, cure

__all__ = ["EstimatorCure", "MLPClassifier", "MLPRegressor", "cure", "diagnose"]
