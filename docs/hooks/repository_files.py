"""MkDocs hook: links from a page to files outside docs/ work on GitHub as they are, and on the site through copies.

The site has each linked file at the same path below `repository/`. Source files become pages with highlighted code.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
COPIES = "repository"
# In the navigation, without a link from a page.
PROJECT_PAGES = ("CONTRIBUTING.md", "CHANGELOG.md")
HIGHLIGHTED = {".py": "python", ".yaml": "yaml", ".cff": "yaml"}
# The target of a relative Markdown link, up to its fragment.
TARGET = re.compile(r"(?<=\]\()[^)\s:#]+")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every file of the repository that a page links, and those that the added pages link."""
    pages = [file for file in files.documentation_pages() if file.inclusion.is_included()]
    pages += [_add(files, config, name) for name in PROJECT_PAGES]
    for page in pages:
        for path in _linked_paths(page.content_string, _repository_path(page.src_uri)):
            if not path.startswith("docs/") and files.get_file_from_path(_site_path(path)) is None:
                file = _add(files, config, path)
                if path.endswith(".md"):
                    pages.append(file)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links at the copies."""
    folder = posixpath.dirname(page.file.src_uri)
    source = _repository_path(page.file.src_uri)

    def rewrite(match: re.Match[str]) -> str:
        path = _resolve(source, match[0])
        return posixpath.relpath(_site_path(path), folder) if (ROOT / path).is_file() else match[0]

    return TARGET.sub(rewrite, markdown)


def _add(files: Files, config: MkDocsConfig, path: str) -> File:
    language = HIGHLIGHTED.get(Path(path).suffix)
    if language is None:
        file = File.generated(config, _site_path(path), abs_src_path=str(ROOT / path))
    else:
        content = f"---\nhide: [toc]\n---\n\n# {path}\n\n````{language}\n{(ROOT / path).read_text()}````\n"
        file = File.generated(config, _site_path(path), content=content)
    files.append(file)
    return file


def _linked_paths(markdown: str, source: str) -> Iterator[str]:
    """Paths in the repository that exist and that the page at path `source` links."""
    for target in TARGET.findall(markdown):
        path = _resolve(source, target)
        if (ROOT / path).is_file():
            yield path


def _resolve(source: str, target: str) -> str:
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), target))


def _site_path(path: str) -> str:
    """Where MkDocs finds the file that lies at `path` in the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{COPIES}/{path}.md" if Path(path).suffix in HIGHLIGHTED else f"{COPIES}/{path}"


def _repository_path(site_path: str) -> str:
    copies = f"{COPIES}/"
    return site_path.removeprefix(copies) if site_path.startswith(copies) else f"docs/{site_path}"
