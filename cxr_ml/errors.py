"""Errors whose message a person can act on."""


class Refused(Exception):
    """Input that must not be used; trying again without changing it cannot help.

    The message says what was expected, what was received and what to do. Airflow does not retry a task that raises it.
    """
