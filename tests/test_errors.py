"""What is said of errors."""

from mtl.errors import one_line


def test_another_library_s_words_in_one_line() -> None:
    assert one_line(ValueError("unknown \x00,\n expected\u2028 one\u200b")) == "unknown \\x00, expected one\\u200b"
    assert one_line(ValueError("x" * 200)) == "x" * 200
    assert one_line(ValueError("x" * 201)) == "x" * 197 + "..."
    assert one_line(KeyError()) == "KeyError"
