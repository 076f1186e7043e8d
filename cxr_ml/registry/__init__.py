"""Evaluations become a decision, and the decision may move the champion.

In: evaluations, floors and margins. Out: `reports/<run>/decision.json`, `registry/champion.json`, `registry/history/…`.
Holds: nothing is promoted unless every check was evaluated and passed; the history only grows.
"""
