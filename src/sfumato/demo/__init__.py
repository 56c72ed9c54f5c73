"""The whole road once: emoji, a first stage, latents, a denoiser, samples, numbers and a page that shows them."""
