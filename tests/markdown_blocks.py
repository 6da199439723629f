"""Fenced code blocks of the documentation."""

from pathlib import Path

from markdown_it import MarkdownIt


def code_blocks(page: Path) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks of a page, in order."""
    tokens = MarkdownIt().parse(page.read_text())
    return [(token.info.strip(), token.content) for token in tokens if token.type == "fence"]
