"""One file an architecture. A module here defines `SPECS`, a tuple of `Architecture`; nothing else has to change."""
