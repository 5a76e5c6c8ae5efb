"""The search for the best version of a language model: engines times recipes, judged by perplexity and tasks, timed on a workload."""
