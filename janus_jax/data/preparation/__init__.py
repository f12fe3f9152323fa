"""From a data set in a public format to ArrayRecord files with a manifest, in parallel and restartable."""
