"""What a server keeps of its traffic: windows, answers that wait for their labels, samples, reviews, the bill."""
