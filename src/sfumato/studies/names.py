"""The studies' names with their default hours on two cores; nothing here imports torch."""

HOURS = {"compression": 2.0, "cost": 1.0, "guidance": 1.2, "conditioning": 1.0, "families": 1.8, "limits": 1.8}
TOLD = {
    "compression": "how much to compress: f = 1 to 32, KL and VQ",
    "cost": "latents beside pixels: speed, seconds to a distance, energy",
    "guidance": "quality for diversity, by class and by words",
    "conditioning": "text encoders trained, left and none; where words look",
    "families": "GAN, VAE, autoregressive, pixels, two stages, latents",
    "limits": "few steps, many channels, exact super-resolution",
}
# What a study is asked besides, and what it is where nothing is said.
CHOICES: dict[str, dict[str, str | tuple[str, ...]]] = {"compression": {"equal": "time", "kinds": ("kl", "vq")}}
