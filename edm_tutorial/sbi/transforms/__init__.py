"""Maps between parameters as they are and the vector that the denoiser sees."""
