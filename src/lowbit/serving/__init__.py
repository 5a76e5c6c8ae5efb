"""A server for bundles: the Open Inference Protocol over REST and gRPC, batching, routing between variants, caching, draining."""
