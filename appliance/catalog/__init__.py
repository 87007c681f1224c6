"""Facts about cards, processors and models, each figure with its source."""
