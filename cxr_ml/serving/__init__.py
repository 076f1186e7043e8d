"""The champion, or another model, predicts files.

In: image files or bytes. Out: a row each, with probabilities or the reasons for which it is not answered.
Holds: what ingest and the suites would refuse is refused here, too.
"""
