import logging

# While it is imported, Great Expectations says a hundred times at INFO what it does not register, in every task log.
logging.getLogger("great_expectations").setLevel(logging.WARNING)
