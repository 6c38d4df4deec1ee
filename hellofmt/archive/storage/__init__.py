"""Where bytes lie: local files, ranges of remote ones, a cache."""
