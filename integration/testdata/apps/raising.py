"""Cannot be imported."""

raise RuntimeError("no database at import")
