"""The commands of `cxr-ml`, one module for each stage of the story.

In: arguments of a person or a script. Out: tables, or with --json strict JSON and nothing else on standard output.
Holds: exit status 0 done, 1 something differs, 2 refused, 3 not reachable; logic lives in the packages above.
"""
