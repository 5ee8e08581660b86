"""Markdown of the other pages as HTML, and its tables as the page's own."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from markupsafe import Markup

from .tables import Column, Table, Value, table

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from markdown_it.token import Token


@dataclass(frozen=True)
class Block:
    """Either HTML or a table."""

    html: Markup = field(default_factory=Markup)
    table: Table | None = None


@functools.cache
def _parser() -> MarkdownIt:
    """Without HTML, links and pictures: what a record says is text, and the page fetches nothing."""
    from markdown_it import MarkdownIt

    off = ["html_block", "html_inline", "link", "image", "autolink", "reference"]
    return MarkdownIt("commonmark", {"html": False}).enable("table").disable(off)


def inline(text: str) -> Markup:
    """`code`, *emphasis* and **weight**; all else as it is."""
    return Markup(_parser().renderInline(text))


def blocks(text: str, key: str, headings: bool = True) -> list[Block]:
    """Markdown as blocks. Headings are of the page's third level, or left out; a table is named by the last one."""
    parser = _parser()
    found: list[Block] = []
    heading = ""
    for tokens in _top_level(parser.parse(text)):
        if tokens[0].type == "table_open":
            found.append(Block(table=_table(tokens, f"{key}-{len(found)}", heading)))
            continue
        if tokens[0].type == "heading_open":
            heading = tokens[1].content
            if not headings:
                continue
            for token in (tokens[0], tokens[-1]):
                token.tag = "h3"
        found.append(Block(Markup(parser.renderer.render(tokens, parser.options, {}))))
    return found


def _top_level(tokens: Iterable[Token]) -> Iterator[list[Token]]:
    """The tokens of each block that lies in no other."""
    block: list[Token] = []
    for token in tokens:
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            yield block
            block = []


def _table(tokens: list[Token], key: str, caption: str) -> Table:
    rows: list[list[str]] = []
    right: list[bool] = []
    for token, cell in itertools.pairwise(tokens):
        if token.type == "tr_open":
            rows.append([])
        elif token.type in ("th_open", "td_open"):
            rows[-1].append("".join(part.content for part in cell.children or ()))
            if token.type == "th_open":
                right.append("right" in str(token.attrGet("style") or ""))
    head, *body = rows
    columns = [Column(name, numeric) for name, numeric in zip(head, right, strict=True)]
    return table(key, caption, columns, body, lambda row: [Value(text, _leading(text)) for text in row])


def _leading(text: str) -> float | None:
    """The number that an entry starts with, to sort by."""
    word = text.split(" ")[0].replace(",", "") if text else ""
    try:
        value = float(word)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
