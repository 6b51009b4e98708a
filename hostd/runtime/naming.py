"""Names of everything a daemon makes outside its run directory.

They carry a tag derived from the run directory: several daemons of one machine never collide, and
the next daemon of the same run directory recognises what an earlier one left behind. Interface
names have at most 15 characters.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

_BASE32 = "0123456789abcdefghjkmnpqrstvwxyz"
_SERIAL_DIGITS = 6


@dataclass(frozen=True, slots=True)
class Names:
    """The names of one run directory."""

    tag: str

    @classmethod
    def of(cls, run_dir: Path) -> Names:
        """The names that belong to a run directory (an absolute path)."""
        digest = hashlib.sha256(str(run_dir.resolve()).encode()).hexdigest()
        return cls(digest[:7])

    @property
    def bridge(self) -> str:
        """The bridge of the containers."""
        return f"hd-{self.tag}"

    @property
    def veth_prefix(self) -> str:
        """How the host's ends of veth pairs begin."""
        return f"hv{self.tag}"

    @property
    def nft_table(self) -> str:
        """The nft table, family inet."""
        return f"hostd_{self.tag}"

    @property
    def cgroup(self) -> str:
        """The directory above the containers' control groups."""
        return f"hostd-{self.tag}"

    def veth(self, serial: int) -> str:
        """The host's end of the n-th pair."""
        return self.veth_prefix + base32(serial % 32**_SERIAL_DIGITS, _SERIAL_DIGITS)

    def netns(self, serial: int) -> str:
        """The file that pins the n-th namespace."""
        return "n" + base32(serial % 32**_SERIAL_DIGITS, _SERIAL_DIGITS)


def base32(value: int, digits: int) -> str:
    """A number in lower-case Crockford base32, with leading zeros."""
    return "".join(_BASE32[(value >> (5 * n)) & 31] for n in reversed(range(digits)))
