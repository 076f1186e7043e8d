"""A model and the images of a dataset become an evaluation, the champion's beside it on the same images.

In: `models/<model>/model.keras`, a dataset version. Out: `evaluation.json`, predictions, heat maps.
Holds: figures are at the model's operating point; what could not be measured is NaN or None, never a pass.
"""
