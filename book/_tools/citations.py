"""Citations as the book prints them ("Karras et al., 2022"), and the references."""

import re
from pathlib import Path
from typing import Any

from pybtex.database import parse_file


class Citations:
    """The entries of `references.bib`."""

    def __init__(self, path: Path):
        self.entries = parse_file(str(path)).entries

    def parts(self, key: str) -> tuple[str, str]:
        """The authors, shortened, and the year."""
        entry = self._entry(key)
        names = [_plain(" ".join(p.last_names)) for p in entry.persons["author"]]
        if len(names) > 2:
            names = [f"{names[0]} et al."]
        return " and ".join(names), entry.fields["year"]

    def short(self, key: str, separator: str) -> str:
        return separator.join(self.parts(key))

    def full(self, key: str) -> str:
        """One line of the list of references."""
        entry = self._entry(key)
        authors = ", ".join(_name(person) for person in entry.persons["author"])
        fields = entry.fields
        venue = fields.get("booktitle") or fields.get("journal") or fields.get("school")
        line = f"{authors} ({fields['year']}). *{_plain(fields['title'])}*."
        line += f" {_plain(venue)}." if venue else ""
        return f"{line} {_link(entry)}".strip()

    def _entry(self, key: str) -> Any:
        if key not in self.entries:
            raise ValueError(f"no reference {key!r} in references.bib")
        return self.entries[key]


def _name(person: Any) -> str:
    initials = "".join(f" {name[0]}." for name in person.first_names + person.middle_names)
    return f"{_plain(' '.join(person.last_names))}{initials}"


def _link(entry: Any) -> str:
    if "eprint" in entry.fields:
        number = entry.fields["eprint"]
        return f"[arXiv:{number}](https://arxiv.org/abs/{number})"
    if "doi" in entry.fields:
        return f"[doi:{entry.fields['doi']}](https://doi.org/{entry.fields['doi']})"
    return f"<{entry.fields['url']}>" if "url" in entry.fields else ""


def _plain(text: str) -> str:
    """Without the braces that keep capitals in BibTeX."""
    return re.sub(r"[{}]", "", text)
