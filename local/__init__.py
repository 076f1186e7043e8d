"""Everything on one machine: what `make run` and `make clean` do. The library `cxr_ml` knows nothing of it."""
