"""Gradual rollout: what is seen of two versions, and what follows from it. Decisions are pure; state lives in the registry's database."""
