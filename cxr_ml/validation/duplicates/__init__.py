"""Images that show the same picture as an earlier one.

In: perceptual hashes of all images, pixels of the candidates. Out: for each image the earlier one that it repeats.
Holds: every pair is compared by its hashes; a copy is taken for one only after its pixels were compared.
"""
