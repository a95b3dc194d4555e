"""Jinja for chat templates, with the functions that transformers provides, in a sandbox."""

from __future__ import annotations

import json
from contextvars import ContextVar
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

# Two characters that are written before and after each {% generation %} block, or nothing.
generation_marks: ContextVar[str] = ContextVar("generation_marks", default="")


class _Generation(Extension):
    """``{% generation %} ... {% endgeneration %}``: marks what an assistant wrote."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)
    used = False

    def parse(self, parser: Parser) -> nodes.Node:
        self.used = True
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(line)

    def _marked(self, caller: Any) -> str:
        marks = generation_marks.get()
        return f"{marks[:1]}{caller()}{marks[1:]}"


def compile_template(source: str) -> Template:
    """Compile a chat template.

    Raises:
        jinja2.TemplateSyntaxError: `source` is not valid Jinja.
    """
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment.from_string(source)


def marks_answers(template: Template) -> bool:
    """Whether a template has ``{% generation %}`` blocks."""
    extension = template.environment.extensions[_Generation.identifier]
    return isinstance(extension, _Generation) and extension.used


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """``tojson`` as in transformers; that of Jinja escapes HTML and sorts keys."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _refuse(message: Any) -> NoReturn:
    """``raise_exception`` of templates."""
    raise TemplateError(str(message))
