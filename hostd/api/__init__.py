"""HTTP API of a host: REST, problem documents, the OpenAPI document and the client stream."""
