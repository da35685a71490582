"""Where a link of the repository leads on the site: to a page, if the file has become one, else to GitHub.

Attributes:
    LINK: The end of a link or a picture in Markdown, its target in a group.
    CODE: Code in Markdown, in a fence or in a line: what looks like a link in there is none.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

LINK = re.compile(r"\]\(([^()\s]+(?:\([^()\s]*\)[^()\s]*)*)\)")
CODE = re.compile(r"^( *)(`{3,}|~{3,}).*?^\1\2`* *$|(?<!`)(`+)(?!`).+?(?<!`)\3(?!`)", re.M | re.S)


@dataclass(frozen=True)
class Links:
    """The pages of the site and the repository behind them.

    repository: "OWNER/NAME" on GitHub. ref: the branch or tag that readers get. pages: the source of a page in the
    site's tree, such as "chapters/05_data.ipynb", by each file of the repository that leads there. folders: the
    repository's folders, which GitHub shows at another address than files.
    """

    repository: str
    ref: str
    pages: Mapping[str, str]
    folders: frozenset[str] = field(default_factory=frozenset)

    def github(self, path: str, what: str = "") -> str:
        """The address of a file or a folder at GitHub. what: "edit" for the page that edits it."""
        kind = what or ("tree" if path in self.folders else "blob")
        return f"https://github.com/{self.repository}/{kind}/{self.ref}/{path}".rstrip("/")

    def target(self, link: str, file: str, page: str) -> str:
        """What stands on the site in the place of a link.

        Args:
            link: its target as the file has it.
            file: the file of the repository that it stands in.
            page: the source of the page that the file's text goes to.
        """
        if re.match(r"[a-z][a-z0-9+.-]*:|#|//", link):
            return link
        path, anchor = (re.split(r"(?=[?#])", link, maxsplit=1) + [""])[:2]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), path))
        to = self.pages.get(path)
        if to is None or anchor.startswith("?"):  # ?plain=1#L7 is a line of the file itself
            return self.github("" if path == "." else path) + anchor
        return posixpath.relpath(to, posixpath.dirname(page) or ".") + anchor

    def rewritten(self, markdown: str, file: str, page: str) -> str:
        """Markdown of a file as the page has it: each of its links leads on. Code stays as it is."""
        code = [found.span() for found in CODE.finditer(markdown)]

        def led_on(found: re.Match[str]) -> str:
            if any(start <= found.start() < end for start, end in code):
                return found[0]
            return f"]({self.target(found[1], file, page)})"

        return LINK.sub(led_on, markdown)
