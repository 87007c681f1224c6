"""Documents to passages: the chunks of a file, from a confined process of its own."""
