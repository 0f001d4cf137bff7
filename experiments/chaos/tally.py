"""What a kind of chaos came to: how often it was tried, and how each try ended."""

import dataclasses
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

FINE, REFUSED, FAULT, DIFFERENT = "fine", "refused", "fault", "silently different"


@dataclasses.dataclass
class Tally:
    """One row of the table.

    Args:
      what: was tried.
      ends: of every try: one of the words above, and what tells it from others.
    """

    what: str
    ends: list[tuple[str, str]] = dataclasses.field(default_factory=list)

    def count(self, end: str) -> int:
        return sum(one == end for one, _ in self.ends)

    def bad(self) -> Iterator[str]:
        """Faults and silent differences, in words."""
        yield from (f"{self.what}: {end}: {why}" for end, why in self.ends if end in (FAULT, DIFFERENT))

    def attempt(self, name: str, do: Callable[[], Any], expected: Any, *, names: str) -> None:
        """Counts what `do` comes to: `expected` is fine, a ValueError or OSError that says `names` is refused.

        Args:
          name: of this try.
        """
        try:
            result = do()
        except (ValueError, OSError) as error:
            said = names in str(error)
            self.ends.append((REFUSED if said else FAULT, f"{name}: {type(error).__name__}: {str(error)[:300]}"))
        except Exception as error:
            self.ends.append((FAULT, f"{name}: {type(error).__name__}: {str(error)[:300]}"))
        else:
            same = result == expected
            self.ends.append((FINE if same else DIFFERENT, f"{name}: {result}" if not same else name))


def damage_a_file(folder: Path, draw: random.Random) -> str:
    """Flips a bit of a file below the folder, cuts it, empties it or deletes it; returns which, and how."""
    path = draw.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    data, name = path.read_bytes(), path.relative_to(folder)
    kind = draw.random()
    if kind < 0.6 and data:
        at = draw.randrange(len(data))
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << draw.randrange(8)]) + data[at + 1 :])
        return f"{name}, one bit of byte {at}"
    if kind < 0.8:
        path.write_bytes(data[: draw.randrange(len(data) + 1)])
        return f"{name}, cut"
    if kind < 0.9:
        path.write_bytes(b"")
        return f"{name}, emptied"
    path.unlink()
    return f"{name}, deleted"
