"""Which images show the very picture of an earlier one.

In: perceptual hashes of all images, pixels of the candidates. Out: for each image the earlier one that it repeats.
Holds: every pair is compared by its hashes; what counts as a copy was confirmed on pixels.
"""
