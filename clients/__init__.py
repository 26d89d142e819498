"""The edges of the world: S3, the long-term store and the catalogue."""
