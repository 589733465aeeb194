"""Connect to the server: addresses, sessions that reconnect, errors, the server's clock, and the schema's version."""
