"""Write archives: drafts, shards, whole files."""
