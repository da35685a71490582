"""A link of the repository's leads to a page of the site where there is one, else to GitHub at the one ref."""

from __future__ import annotations

import pytest

from tools.site.links import Links

LINKS = Links(
    "OWNER/NAME",
    "v1",
    {
        "lessons/02_rank.md": "chapters/02_rank.ipynb",
        "notebooks/02_rank.ipynb": "chapters/02_rank.ipynb",
        "solutions/02_rank.ipynb": "chapters/02_rank.ipynb",
        "lessons/claims.md": "claims.md",
        "assets/measurements/a.json": "measurements/a.md",
    },
    frozenset({"", "classroom", "tests"}),
)
GITHUB = "https://github.com/OWNER/NAME"


@pytest.mark.parametrize(
    ("link", "file", "page", "target"),
    [
        ("02_rank.ipynb", "solutions/01_a.ipynb", "chapters/01_a.ipynb", "02_rank.ipynb"),
        ("../notebooks/02_rank.ipynb", "solutions/01_a.ipynb", "chapters/01_a.ipynb", "02_rank.ipynb"),
        ("../lessons/claims.md#c67", "solutions/01_a.ipynb", "chapters/01_a.ipynb", "../claims.md#c67"),
        ("02_rank.md#recap", "lessons/claims.md", "claims.md", "chapters/02_rank.ipynb#recap"),
        ("../assets/measurements/a.json", "lessons/claims.md", "claims.md", "measurements/a.md"),
        ("lessons/claims.md", "ARCHITECTURE.md", "architecture.md", "claims.md"),
        # a line of a file, a file without a page, a folder, the repository itself
        ("02_rank.md?plain=1#L7", "lessons/claims.md", "claims.md", f"{GITHUB}/blob/v1/lessons/02_rank.md?plain=1#L7"),
        ("../tests/test_a.py#L117", "lessons/claims.md", "claims.md", f"{GITHUB}/blob/v1/tests/test_a.py#L117"),
        ("classroom", "README.md", "index.md", f"{GITHUB}/tree/v1/classroom"),
        ("classroom/", "README.md", "index.md", f"{GITHUB}/tree/v1/classroom"),
        ("..", "lessons/claims.md", "claims.md", f"{GITHUB}/tree/v1"),
        # what isn't the repository's
        ("#recap", "lessons/claims.md", "claims.md", "#recap"),
        ("https://arxiv.org/abs/2106.09685", "lessons/claims.md", "claims.md", "https://arxiv.org/abs/2106.09685"),
        ("mailto:a@b.c", "lessons/claims.md", "claims.md", "mailto:a@b.c"),
        ("data:image/png;base64,AA", "solutions/01_a.ipynb", "chapters/01_a.ipynb", "data:image/png;base64,AA"),
    ],
)
def test_where_a_link_leads(link, file, page, target):
    assert LINKS.target(link, file, page) == target


def test_prose_is_rewritten_and_code_is_not():
    text = (
        "See [a](02_rank.md) and [`b[0](c)`](02_rank.md#x), not `[d](02_rank.md)`.\n\n```text\n[e](02_rank.md)\n```\n\n"
        "    ~~~\n    [f](02_rank.md)\n    ~~~\n\n[g](https://en.wikipedia.org/wiki/Rank_(algebra)) ![h](images/h.svg)"
    )
    got = LINKS.rewritten(text, "lessons/claims.md", "claims.md")
    assert "[a](chapters/02_rank.ipynb) and [`b[0](c)`](chapters/02_rank.ipynb#x), not `[d](02_rank.md)`." in got
    assert "\n[e](02_rank.md)\n" in got and "\n    [f](02_rank.md)\n" in got
    assert "Rank_(algebra))" in got
    assert f"![h]({GITHUB}/blob/v1/lessons/images/h.svg)" in got


def test_the_address_that_edits_a_file():
    assert LINKS.github("lessons/02_rank.md", "edit") == f"{GITHUB}/edit/v1/lessons/02_rank.md"
