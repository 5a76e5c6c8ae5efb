"""How good a language model is: perplexity, divergence from the 16-bit model, tasks and answers, with paired intervals."""
