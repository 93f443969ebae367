"""Facts: what the source is. Everything here reads; nothing rewrites."""
