"""The page fetcher: reads public web pages for the assistant, from a process and a host of its own."""
