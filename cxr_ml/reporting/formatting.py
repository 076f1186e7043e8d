"""Figures and names as people read them. NaN is always `not evaluated`, never 0."""

import math
import re
import unicodedata

from cxr_ml.records import Check, StepProgress

NOT_EVALUATED = "not evaluated"
_STAGES = {
    "inputs": "decoding",
    "features": "features of the frozen backbone",
    "head": "training the head",
    "fine_tune": "fine-tuning",
}


def plain(text: str, limit: int | None = None) -> str:
    """`text` on one line without control, format or surrogate characters, cut to `limit` characters.

    Names come from folders and archives: a newline would forge a header, U+202E would reverse what follows it, and a
    lone surrogate cannot be encoded.
    """
    if not text.isprintable():
        kept = (" " if unicodedata.category(c)[0] == "C" or c in "\u2028\u2029" else c for c in text)
        text = " ".join("".join(kept).split(" "))
    return text if limit is None or len(text) <= limit else text[: limit - 1].rstrip() + "…"


_MARKUP = re.compile(r"[\\`*_\[\]<>&|#~@!$]|:(?=//)|(?<=www)\.|^[-+=](?!\d)", re.IGNORECASE)


def markdown(text: str) -> str:
    """`text` on one line, such that Markdown shows it as it is: as no link, picture, HTML, list or cell of a table.

    CommonMark 0.31, section 2.4: a backslash before ASCII punctuation makes it plain. A bare address, of which GitHub
    makes a link, is none with one in it.
    """
    escaped = _MARKUP.sub(r"\\\g<0>", plain(text).strip())
    return re.sub(r"^(\d+)([.)])(?=\s|$)", r"\1\\\2", escaped)


def _rounded(value: float, digits: int, floor: float | None) -> str:
    while floor is not None and value < floor <= round(value, digits) and digits < 6:
        digits += 1
    return f"{value:.{digits}f}"


def percent(share: float | None, floor: float | None = None) -> str:
    """A share (0–1) such as `98.7 %`, with more digits where rounding would hide that it is below `floor`."""
    if share is None or not math.isfinite(share):
        return NOT_EVALUATED
    return _rounded(share * 100, 1, None if floor is None else floor * 100) + " %"


def score(value: float | None, floor: float | None = None) -> str:
    """A score (0–1) such as `0.91`, with more digits where rounding would hide that it is below `floor`."""
    return NOT_EVALUATED if value is None or not math.isfinite(value) else _rounded(value, 2, floor)


def span(interval: tuple[float, float] | None, percent: bool = True) -> str:
    """An interval such as `94.1 – 99.2 %` or `0.94 – 0.98`; "" where there is none."""
    if interval is None:
        return ""
    low, high = interval
    return f"{100 * low:.1f} – {100 * high:.1f} %" if percent else f"{low:.3f} – {high:.3f}"


def signed(value: float) -> str:
    """A difference such as `+0.021` or `−0.004`."""
    return NOT_EVALUATED if not math.isfinite(value) else f"{value:+.3f}".replace("-", "−")


def limit_percent(share: float) -> str:
    """A floor (0–1) such as `95 %`."""
    return f"{share * 100:.6g} %"


def observed(value: float | None) -> str:
    """The observed value of a check: whole numbers as such, others with four decimals."""
    if value is None or not math.isfinite(value):
        return NOT_EVALUATED
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.4f}"


def check_threshold(check: Check) -> str:
    """The number that a check compares with, such as `0.95` or `30 images`."""
    if check.limit is None:
        return check.expected
    if check.kind == "champion_score":
        return f"{check.limit:.3f}"
    return f"{check.limit:g}{' images' if check.kind == 'images' else ''}"


def check_limit(check: Check) -> str:
    """What a check expects, such as `≥ 0.95`, `≥ 30 images` or `the recorded files`."""
    threshold = check_threshold(check)
    return f"{check.operator} {threshold}" if check.operator else threshold


def duration(seconds: float) -> str:
    """Wall time such as `48 s`, `12 min 5 s` or `2 h 3 min`."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if whole < 10 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def about(seconds: float) -> str:
    """Wall time that is still passing, or estimated: as `duration`, without tenths."""
    return f"{math.ceil(seconds)} s" if seconds < 10 else duration(seconds)


def progress(told: StepProgress) -> str:
    """How far a step has come, such as `fine-tuning, epoch 3 of 8, validation macro F1 0.912, at most 48 s left`."""
    epochs, parts = told.unit == "epochs", [_STAGES.get(told.stage, told.stage)]
    if epochs and told.within:
        parts += [f"epoch {told.done + 1} of {told.total}", "step {:,} of {:,}".format(*told.within)]
    elif epochs:
        parts.append(f"epoch {told.done} of {told.total}")
    elif told.unit:
        parts.append(f"{told.done:,}{f' of {told.total:,}' if told.total else ''} {told.unit}")
    if told.val_macro_f1 is not None:
        parts.append(f"{'last ' if told.within else ''}validation macro F1 {told.val_macro_f1:.3f}")
    if told.seconds_left is not None and told.done < told.total:
        parts.append(f"{'at most' if epochs else 'about'} {about(told.seconds_left)} left")
    return ", ".join(filter(None, parts))
