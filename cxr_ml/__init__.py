"""Retraining of a chest X-ray classifier: data → model → release. Knows nothing of Airflow."""

__version__ = "0.1.0"
