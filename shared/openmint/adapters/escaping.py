"""Text from outside on its way into an error or a log: control characters escaped, length bounded."""

MAX_SHOWN_CHARACTERS = 120


def shown(text: str, max_characters: int = MAX_SHOWN_CHARACTERS) -> str:
    """The text in quotes, with everything but printable ASCII escaped, and cut.

    Printable is not enough: marks that turn the direction of writing are text too, and can make one name look like
    another.
    """
    cut = text[:max_characters]
    body = "".join(c if " " <= c <= "~" and c not in "'\\" else _escaped(c) for c in cut)
    return f"'{body}…'" if len(text) > max_characters else f"'{body}'"


def _escaped(character: str) -> str:
    if character in "'\\":
        return f"\\{character}"
    if ord(character) < 128:
        return f"\\x{ord(character):02x}"
    return character.encode("ascii", "backslashreplace").decode()
