"""An index on disk: texts by id with their vectors, to be searched exactly or in a compressed form, and changed."""
