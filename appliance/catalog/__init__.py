"""What is known of cards, processors and models, each figure with its source."""
