"""Writes docs/reproduction.md from the committed reference runs of the tables: python -m docs.write_reproduction"""

from pathlib import Path

from experiments.tables import running, scoreboard, table_ids

PAGE = Path(__file__).with_name("reproduction.md")


def page() -> str:
    return scoreboard.page([running.committed(table_id) for table_id in table_ids()])


if __name__ == "__main__":
    PAGE.write_text(page())
