"""Open, check and read archives and sets of shards."""
