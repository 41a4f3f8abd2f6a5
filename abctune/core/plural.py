"""Counts of things as messages print them."""


def counted(count: int, noun: str) -> str:
    """`1 row`, `2,000 rows`: for nouns whose plural ends in s."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
