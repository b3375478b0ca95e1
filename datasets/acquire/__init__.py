"""Where tiles come from: published archives, or a synthetic generator."""
