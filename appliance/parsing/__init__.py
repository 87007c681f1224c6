"""Documents to text: PDF, DOCX, HTML, Markdown, text and code, each in a confined process of its own."""
