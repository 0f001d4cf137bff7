"""Analysis tools of the literature over files: pure functions, and what each shows of a table of columns."""
