"""Which images show the very picture of an earlier one.

In: perceptual hashes of all images, pixels of the candidates. Out: for each image the one that it repeats.
Holds: the answer is that of comparing every pair, in any order of drops.
"""
