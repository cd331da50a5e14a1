"""Tests of texts in Markdown: nothing in them has an effect."""

from jcm.runtime import markdown


def test_usual_texts_stay_as_they_are():
    for text in (
        "consistency, 2 steps",
        "fd_dinov2",
        "80.0 → 0.8",
        "a/b-c.d (e)",
        "猫",
    ):
        assert markdown.text(text) == text
        assert markdown.code(text) == f"`{text}`"


def test_markdown_and_html_have_no_effect():
    for text, expected in (
        ("<b>&", "&lt;b&gt;&amp;"),
        ("[a](b)|c", r"\[a\](b)\|c"),
        ("_a_ *b* `c`", r"\_a\_ \*b\* \`c\`"),
        ("a\n# b\x1b[31m\u202e", r"a # b\\x1b\[31m\\u202e"),
    ):
        assert markdown.text(text) == expected
    assert markdown.code("a`b``c`") == "``` a`b``c` ```"
    assert markdown.code("") == ""
    assert len(markdown.text("x" * 10_000)) < 400
    assert markdown.block("# a\n```\n<b>\x1b") == "````\n# a\n```\n<b>\\x1b\n````"
    assert len(markdown.block("x" * 10**6)) < 21_000


def test_a_cell_stays_in_its_column():
    assert markdown.table(["a|b", "c"], [("d\n|e", 1)]) == (
        "| a\\|b | c |\n|---|---|\n| d \\|e | 1 |"
    )
