"""The verdicts of all batches become a version of the dataset, split by patient.

In: committed batches and rulings. Out: `datasets/<n>/manifest.parquet`, `dataset.json`.
Holds: a patient, or a group of copies, lies wholly in train, validation or test, and never moves.
"""
