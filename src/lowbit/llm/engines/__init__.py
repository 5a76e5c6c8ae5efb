"""What runs language models: one engine a file, all behind lowbit.llm.engines.base."""
