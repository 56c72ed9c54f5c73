"""The studies' names with their default hours on two cores; nothing here imports torch."""

HOURS = {
    "compression": 1.7, "cost": 1.0, "guidance": 0.9, "conditioning": 0.75, "families": 1.8, "stability": 0.5,
    "parameters": 0.45, "limits": 1.8,
}  # fmt: skip
TOLD = {
    "compression": "how much to compress: f = 1 to 32, KL and VQ",
    "cost": "latents beside pixels: speed, seconds to a distance, energy",
    "guidance": "quality for diversity, by class and by words",
    "conditioning": "text encoders trained, left and none; where words look",
    "families": "GAN, VAE, autoregressive, pixels, two stages, latents",
    "stability": "how much a GAN hangs on its learning rate and seed, beside latents",
    "parameters": "transformers over codes of two sizes where compression falls, beside latents",
    "limits": "few steps, many channels, exact super-resolution",
}
# What a study is asked besides, and what it is where nothing is said.
CHOICES: dict[str, dict[str, str | tuple[str, ...]]] = {"compression": {"equal": "time", "kinds": ("kl", "vq")}}
