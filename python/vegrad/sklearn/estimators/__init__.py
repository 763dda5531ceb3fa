"""Estimators of scikit-learn on vegrad's core."""
