"""HTTP/1.1 without a framework: types, a parser without I/O, server, client and writer.

It imports nothing of the gateway. An application passes a :class:`~appliance.http1.types.Handler` to the server
and a :class:`~appliance.http1.client.ResponseSink` to the client.
"""
