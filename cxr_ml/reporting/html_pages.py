"""Renders the templates of this package: all texts are made harmless, and links lead only where they may."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from cxr_ml.errors import Refused
from cxr_ml.reporting import formatting, narrative


def _to_plain(value: object) -> object:
    return formatting.plain(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def make_environment(
    templates: Path, html_suffix: str, finalize: Callable[[object], object] = _to_plain
) -> Environment:
    """Returns a Jinja2 environment that makes all texts harmless, with the filters of `formatting`.

    Args:
        templates: folder of the templates.
        html_suffix: ending of the templates that are HTML and therefore escaped.
        finalize: called with each value before it is printed.
    """
    environment = Environment(
        loader=FileSystemLoader(templates),
        autoescape=select_autoescape(enabled_extensions=(html_suffix,), default=False),
        undefined=StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
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
    return environment


def _to_markdown(value: object) -> object:
    return formatting.markdown(value) if isinstance(value, str) else value


@cache
def _own_environment(markdown: bool) -> Environment:
    templates = Path(__file__).with_name("templates")
    return make_environment(templates, "html.j2", _to_markdown if markdown else _to_plain)


def render_template(template: str, **values: object) -> str:
    """Returns a template of this package filled in; values in .html.j2 and .md.j2 are escaped.

    Args:
        template: file name in `templates/`.
        values: what the template names; one that is missing is an error.
    """
    return _own_environment(template.endswith(".md.j2")).get_template(template).render(**values)


def safe_link(link: str) -> str:
    """Returns `link` if it is relative or leads to http or https.

    Raises:
        Refused: another scheme, such as javascript: or data:.
    """
    if urlsplit(link).scheme not in {"", "http", "https"} or formatting.plain(link) != link:
        raise Refused(f"A link must be relative, http or https. Received: {link!r}")
    return link
