"""A dataset becomes a trained model.

In: a dataset version, hyper-parameters, the backbone's weights. Out: `models/<model>/…`, the record last.
Holds: the same inputs give the same model; a training that was killed goes on from its last finished epoch; no image of
the test split is looked at.
"""
