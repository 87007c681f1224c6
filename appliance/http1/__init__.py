"""HTTP/1.1 without a framework: server, client and the types between them."""
