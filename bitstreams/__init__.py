"""Known VTA configurations and bitstreams."""
