"""The page at /ui: versions, the running rollout, traffic, reviews, cost and the audit log, for a browser."""
