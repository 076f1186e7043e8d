"""Templates of this package filled in: all texts made harmless, links only such as can do no harm."""

import math
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cxr_ml.errors import Refused
from cxr_ml.reporting import formatting, narrative

_BEGIN, _END = "<!-- warning -->", "<!-- end of warning -->"
_WARNING_PLACE = Markup(_BEGIN + _END)


def _clean(value: object) -> object:
    return formatting.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def environment(templates: Path, escaped: str) -> Environment:
    """Jinja2 that makes all texts harmless, with the filters of `words`.

    Args:
        templates: their folder.
        escaped: the ending of the templates that are HTML.
    """
    found = Environment(
        loader=FileSystemLoader(templates),
        autoescape=select_autoescape(enabled_extensions=(escaped,), default=False),
        undefined=StrictUndefined,
        finalize=_clean,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.filters |= {
        "percent": formatting.percent,
        "score": formatting.score,
        "observed": formatting.observed,
        "duration": formatting.duration,
        "plain": formatting.plain,
        "span": formatting.span,
        "signed": formatting.signed,
        "factor": math.exp,
        "link": safe_link,
        "complaint": narrative.complaint,
        "check_limit": formatting.check_limit,
    }
    return found


def _markdown(value: object) -> object:
    return formatting.markdown(value) if isinstance(value, str) else value


def page(template: str, **values: Any) -> str:  # noqa: ANN401 - a template takes anything
    """A template of this package filled in; names ending in .html.j2 or .md.j2 are escaped, all texts made harmless."""
    found = environment(Path(__file__).with_name("templates"), "html.j2")
    values["warning_place"] = _WARNING_PLACE
    if template.endswith(".md.j2"):
        found = found.overlay(finalize=_markdown)
    return found.get_template(template).render(**values)


def safe_link(link: str) -> str:
    """`link` when it is relative or goes to http or https.

    Raises:
        Refused: another scheme, such as javascript: or data:.
    """
    if urlsplit(link).scheme not in {"", "http", "https"} or formatting.plain(link) != link:
        raise Refused(f"A link must be relative, http or https. Received: {link!r}")
    return link


def warned(html: str, warning: str) -> str:
    """A page with this warning on its first screen, instead of the one that it had; "" takes it away.

    A page without a place for warnings, as those of earlier versions are, stays as it is.
    """
    before, begin, rest = html.partition(_BEGIN)
    _, end, after = rest.partition(_END)
    if not end:
        return html
    shown = Markup('<p class="warning"><strong>Warning:</strong> {}</p>').format(formatting.plain(warning))
    return before + begin + (str(shown) if warning else "") + end + after
