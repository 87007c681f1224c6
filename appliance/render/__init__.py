"""Output for people: terminal, HTML and SVG."""
