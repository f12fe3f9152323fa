"""One file per benchmark family."""
