"""What to do about an error, for the person who gets the mail."""

import re

_STORE = (
    "Check that the object store answers (CXR_STORE__ENDPOINT_URL, the network, its disk). The step has used up its "
    "retries: once the store answers, clear the failed task in Airflow, and the run goes on from there."
)
_RIGHTS = (
    "The object store did not accept these credentials or rights. Check the keys (boto3's own chain, or the Airflow "
    "connection named by CXR_STORE__AWS_CONN_ID) and the bucket's policy, then clear the failed task. Waiting does not "
    "help."
)
_MEMORY = (
    "The step was stopped from outside or ran out of memory. Look whether the machine or its accelerator was full. "
    "Give the worker more memory and clear the failed task: training goes on from what was stored. Or lower the batch "
    "size: start a new run with CXR_TRAINING__BATCH_SIZE={half} (or in the form; now {now}), which trains anew."
)
_SLOW = (
    "The step took longer than its time-out. See in the log how far it came: a slow network or a busy machine is worth "
    "another try (clear the failed task); if training is too slow for this machine, lower epochs or image size."
)
_DISK = "The disk is full. Free space, e.g. by deleting the cache folder (CXR_CACHE_DIR), then clear the failed task."
_INPUT = "The message above says what was expected and what to do. Trying again without changing it cannot help."
_UNKNOWN = (
    "There is no advice for this kind of error. Read the last lines of the log. If it happens again with the same "
    "input, it is likely a fault of this program: report it with the log."
)
_NEVER = r"(?!)"
# Class names (by name, so that neither Airflow nor TensorFlow is imported), words of the message, advice; first wins.
_TABLE: tuple[tuple[set[str], str, str], ...] = (
    ({"Refused", "AirflowFailException"}, _NEVER, _INPUT),
    (
        {"MemoryError", "ResourceExhaustedError", "AirflowTaskTerminated"},
        r"out of memory|\bOOM\b|\bkilled\b|SIGKILL|zombie|heartbeat",
        _MEMORY,
    ),
    ({"AirflowTaskTimeout"}, _NEVER, _SLOW),
    (
        {"NoCredentialsError"},
        r"AccessDenied|InvalidAccessKeyId|SignatureDoesNotMatch|ExpiredToken|error occurred \(40[13]\)",
        _RIGHTS,
    ),
    (set(), r"No space left on device", _DISK),
    (
        {"BotoCoreError", "ClientError", "ConnectionError", "TimeoutError", "gaierror"},
        r"connection (refused|reset|error)|could not connect|timed out",
        _STORE,
    ),
)


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return chain


def advise(error: BaseException | str, batch_size: int) -> str:
    """Returns what to do about an error, by its kind and those of its causes; says so where nothing is known.

    Args:
        error: what was raised, or what is known about it.
        batch_size: images per step, as the settings have it now.

    Example:
        >>> advise("No space left on device", batch_size=32)[:17]
        'The disk is full.'
    """
    chain = [] if isinstance(error, str) else _causes(error)
    names = {kind.__name__ for link in chain for kind in type(link).__mro__}
    text = error if isinstance(error, str) else " ".join(str(link) for link in chain)
    matches = (advice for kinds, words, advice in _TABLE if kinds & names or re.search(words, text, re.I))
    return next(matches, _UNKNOWN).format(half=max(1, batch_size // 2), now=batch_size)
