"""Copy a DAG into another Astro project, with the modules, data and packages that it needs. `make copy` runs it."""


class CopyError(Exception):
    """The pattern cannot be copied, and nothing was written; the message says why."""
