"""The manual: its pages in two languages, the generated ones, its drawings, the site and the printable files."""
