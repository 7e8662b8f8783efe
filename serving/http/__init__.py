"""What stands between the socket and the service: connections, limits, schemas, routes."""
