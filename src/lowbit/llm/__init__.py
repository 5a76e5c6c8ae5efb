"""Language models: Hugging Face decoders, quantized layer by layer, written for several engines, judged by perplexity and tasks."""
