"""What the specification says: layout, manifest, tensors, index, images, limits and digests."""
