"""A drop of labelled X-rays becomes images and tables of measurements in the object store.

In: a folder, an archive or an S3 prefix of the inbox. Out: `images/…`, `batches/<batch>/ingested/…`.
Holds: names, headers and tables leave no trace of a patient; a drop that is taken again gives the same bytes; memory
does not grow with the drop.
"""
