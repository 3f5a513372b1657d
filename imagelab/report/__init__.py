"""What a run leaves behind: figures, results, scores of samples, the page."""
