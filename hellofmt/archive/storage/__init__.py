"""Where bytes are stored: local files, ranges of remote files, a cache."""
