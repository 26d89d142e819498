"""Long-term stores: what the archiver asks of one, and the drivers that answer."""
